"""Games from the command line to the end: training, what is masked, evaluation, with models that can hardly play."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scgrpo.cli.main import main
from scgrpo.runs import RunDirectory
from scgrpo.tasks.games.frozen_lake import INVALID, FrozenLakeTask
from scgrpo.tiny.build import build
from scgrpo.tiny.recipe import Shape, Subject
from scgrpo.tiny.testbeds import get_testbed

pytest.importorskip("gymnasium", reason="the extra `games` is not installed")

# Small enough that who hardly knows the game wins now and then.
POND: dict[str, Any] = {"form": "words", "size": 3, "frozen_probability": 0.7, "max_turns": 8, "num_maps": 40}
FAST = {
    "max_steps": 2,
    "compare_with": "none",
    "eval_every": 0,
    "eval_problems": 4,
    "eval_k": 2,
    "rollouts_every": 1,
    "num_generations": 4,
}


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has seen the form of the game, and hardly more."""
    folder = tmp_path_factory.mktemp("walker")
    small = Shape(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    recipe = replace(
        get_testbed("frozen_lake").recipe,
        subjects=(Subject(FrozenLakeTask(**POND), skill=0.3),),
        steps=60,
        shape=small,
    )
    build(recipe, folder, seed=0, num_samples=1, progress=lambda _: None)
    return folder


def train(out: Path, **settings: Any) -> RunDirectory:
    argv = [part for name, value in {**FAST, **settings}.items() for part in (f"--{name}", str(value))]
    assert main(["train", *argv, "--output_dir", str(out)]) == 0
    return RunDirectory.open(out)


def test_a_lake_is_trained_on_with_transcripts_as_demonstrations(walker: Path, tmp_path: Path) -> None:
    run = train(
        tmp_path / "run",
        config="frozen-lake",
        model_name_or_path=walker,
        task_options=json.dumps(POND),
        per_device_train_batch_size=32,
        max_train_rows=64,
    )
    rows = [row for step in run.rollout_steps() for row in run.rollouts(step)]
    assert any(mask for row in rows for mask in row.mask)
    cells = {str(cell) for cell in range(9)}
    for row in rows:
        hidden = [token for token, own in zip(row.tokens, row.mask, strict=True) if not own]
        assert set(hidden[1::3]) <= {*cells, INVALID}
        assert set(hidden[0::3]) <= {"<user>"}
        if row.token_kl is not None:
            assert not any(kl for kl, own in zip(row.token_kl, row.mask, strict=True) if not own)
    scored = [row for row in rows if row.token_kl is not None]
    assert any("\nuser: " in row.demonstration_text for row in scored), "some rollouts are re-scored"
    # A control token inside an action does not act as one in a demonstration: it is broken up, into unknown words.
    said = [row for row in scored if "<" not in row.demonstration_text.replace("< ", "<")]
    assert said
    assert not any("<unk>" in row.teacher_prompt for row in said)
    assert [record["label"] for record in run.evals()] == ["before", "after"]


def test_a_model_that_says_nothing_sensible_plays_to_the_end(tmp_path: Path) -> None:
    """Bytes drawn at random in the chat form: no action is any, and nothing breaks."""
    from scgrpo.tiny.random_model import write_random_model

    run = train(
        tmp_path / "run",
        config="gsm8k-smoke",
        model_name_or_path=write_random_model(tmp_path / "model"),
        task="guess_number",
        task_options='{"form": "plain", "max_numbers": 12, "max_turns": 3}',
        teacher_template="agent",
        per_device_train_batch_size=8,
        max_train_rows=16,
        max_completion_length=400,
    )
    rows = [row for step in run.rollout_steps() for row in run.rollouts(step)]
    assert rows
    assert all(set(row.rewards.values()) == {0.0} for row in rows)


@pytest.mark.parametrize("config", ["frozen-lake", "guess-number-qwen3-1.7b"])
def test_the_dry_run_of_a_recipe(config: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "--config", config, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "ok  right answer" in shown
    assert "BAD" not in shown


def test_evaluation_from_the_command_line(walker: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--task", "frozen_lake", "--task_options", json.dumps(POND), "--max_new_tokens", "58"]
    command = ["eval", "--model", str(walker), *options, "--problems", "6", "--k", "2", "--temperature", "1"]
    assert main([*command, "--batch_size", "12"]) == 0
    assert "6 problems" in capsys.readouterr().out
