"""Testbeds: base models from the cache, found by name, and the oracle's credit from the command line."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scgrpo.cli.setup import resolve_model
from scgrpo.errors import ConfigError
from scgrpo.tasks import get_task
from scgrpo.tiny import base_models
from scgrpo.tiny.base_models import base_model, cache_folder, parse_reference, recipe_key
from scgrpo.tiny.documents import Documents
from scgrpo.tiny.testbeds import TESTBEDS, Testbed, get_testbed, register_testbed
from scgrpo.tiny.vocabulary import completion_words

each_testbed = pytest.mark.parametrize("testbed", TESTBEDS.values(), ids=lambda testbed: testbed.name)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Testbed:
    """A testbed whose base model takes two steps, and an empty cache."""
    monkeypatch.setenv("SCGRPO_CACHE", str(tmp_path))
    reach = get_testbed("reach")
    testbed = Testbed("brief", "for tests", replace(reach.recipe, steps=2))
    monkeypatch.setitem(TESTBEDS, "brief", testbed)
    return testbed


def test_a_base_model_is_built_once_and_found_by_name(brief: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lines: list[str] = []
    folder = base_model("brief", 3, progress=lines.append)
    assert folder.parent == cache_folder()
    assert "plain pass rate" in "".join(lines)  # two steps miss the bands, and it says so
    assert json.loads((folder / "build.json").read_text())["seed"] == 3
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert len(AutoTokenizer.from_pretrained(folder)) == len(brief.recipe.vocabulary.words) == model.config.vocab_size
    monkeypatch.setattr(base_models, "build", None)  # it is not called again
    assert resolve_model("testbed:brief:3") == str(folder)
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_builders_at_the_same_time_make_one_model(brief: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    builds, found, original = [], [], base_models.build

    def counted(*args: object, **kwargs: object) -> object:
        builds.append(1)
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(base_models, "build", counted)
    threads = [
        threading.Thread(target=lambda: found.append(base_model("brief", progress=lambda _: None))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert len(set(found)) == 1


def test_a_broken_build_leaves_nothing_behind(brief: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(recipe: object, out_dir: Path, **_: object) -> None:
        out_dir.mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(base_models, "build", broken)
        with pytest.raises(KeyboardInterrupt):
            base_model("brief", progress=lambda _: None)
    assert [path for path in cache_folder().iterdir() if path.is_dir()] == []
    assert (base_model("brief", progress=lambda _: None) / "model.safetensors").is_file()


def test_the_key_changes_with_whatever_decides_the_weights(brief: Testbed) -> None:
    recipe = brief.recipe
    (subject,) = recipe.subjects
    others = [
        replace(recipe, steps=3),
        replace(recipe, follow=0.8),
        replace(recipe, shape=replace(recipe.shape, hidden_size=32)),
        replace(recipe, subjects=(replace(subject, skill=0.4),)),
        replace(recipe, subjects=get_testbed("countdown").recipe.subjects),
    ]
    keys = [recipe_key(recipe, 0), recipe_key(recipe, 1), *(recipe_key(other, 0) for other in others)]
    assert len(set(keys)) == len(keys)
    assert recipe_key(replace(recipe), 0) == keys[0]


def test_references() -> None:
    assert parse_reference("testbed:reach") == ("reach", 0)
    assert parse_reference("testbed:reach-recover:12") == ("reach-recover", 12)
    with pytest.raises(ConfigError, match="'x' is not a seed"):
        parse_reference("testbed:reach:x")
    with pytest.raises(ConfigError, match="Did you mean 'countdown'"):
        get_testbed("countdwn")
    with pytest.raises(ConfigError, match="already a testbed 'reach'"):
        register_testbed(get_testbed("reach"))


@each_testbed
def test_documents_are_in_the_vocabulary_and_fit_the_context(testbed: Testbed) -> None:
    recipe, vocabulary = testbed.recipe, testbed.recipe.vocabulary
    stream = Documents(recipe, seed=1)
    held_out = {row["prompt"][0]["content"] for row in testbed.task.rows("eval", limit=10_000)}
    for index in range(60):
        for document in stream.batch(8, schooling=index % 2 == 0):
            words = sum(len(message["content"].split(" ")) for message in document.messages)
            completion = [word for word, _ in completion_words(document.completion)]
            assert words + len(completion) < recipe.shape.context_length - 10
            vocabulary.encode(" ".join(completion))
            for message in document.messages:
                vocabulary.encode(message["content"])
            assert document.messages[-1]["content"] not in held_out


@each_testbed
def test_the_task_of_a_testbed_is_found_by_its_name(testbed: Testbed) -> None:
    task = get_task(testbed.task.name)
    assert type(task) is type(testbed.task)
    canned = task.canned()
    graded = task.verify([*canned.right, *canned.wrong], [canned.row] * (len(canned.right) + len(canned.wrong)))
    assert [verdict.score for verdict in graded] == [1.0] * len(canned.right) + [0.0] * len(canned.wrong)


def test_building_leaves_the_number_of_threads(brief: Testbed) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    base_model("brief", 7, progress=lambda _: None)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("credit", ["oracle", "uniform"])
def test_only_the_oracle_searches_for_first_errors(
    credit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scgrpo.cli.main import main
    from scgrpo.runs import RunDirectory
    from scgrpo.tasks.reach import ReachTask

    searched: list[int | None] = []
    original = ReachTask.first_errors

    def counted(self: ReachTask, completions: list[str], rows: list[dict]) -> list[int | None]:
        searched.extend(original(self, completions, rows))
        return searched[-len(completions) :]

    monkeypatch.setattr(ReachTask, "first_errors", counted)
    settings = {
        "credit": credit,
        "compare_with": "none",
        "max_steps": "2",
        "per_device_train_batch_size": "32",
        "eval_problems": "0",
        "rollouts_every": "0",
        "output_dir": str(tmp_path / "run"),
    }
    argv = [part for key, value in settings.items() for part in (f"--{key}", value)]
    assert main(["train", "--config", "reach", *argv]) == 0
    steps = RunDirectory(tmp_path / "run").metrics()
    if credit == "uniform":
        assert searched == []
        return
    assert len(searched) == 64
    # Unknown are failed rollouts of groups without a solved one, which have no advantage, and those cut off.
    failed = sum(place is not None for place in searched)
    known = sum(step["credit/first_error_known_frac"] for step in steps) / 2
    assert 0.2 < known <= 1
    assert 30 < failed < 64


def test_recovering_documents_stray_from_their_demonstration() -> None:
    testbed = get_testbed("reach-recover")
    recipe = replace(testbed.recipe, kind_shares={"verified": 1.0}, follow=1.0, recover=0.5)
    repeated = 0
    for document in Documents(recipe, seed=0).batch(400):
        shown = document.messages[0]["content"].removeprefix("verified ")
        repeated += document.completion == shown
        # It is right, begins as the demonstration does or strays at once, and ends at the same number.
        assert document.completion.split(" ")[-1] == shown.split(" ")[-1]
    assert 170 < repeated < 230
