"""The embedded model: what is shipped loads, says what it should, and can be built again."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scgrpo.errors import ScgrpoError
from scgrpo.teacher.prompts import get_template, teacher_prompt
from scgrpo.tiny import tiny_model_path
from scgrpo.tiny.build import BuildReport, build, logit_difference, missed_bands
from scgrpo.tiny.documents import Documents, conditioned
from scgrpo.tiny.measure import PassRates, measure
from scgrpo.tiny.recipe import KIND_SHARES
from scgrpo.tiny.shipped import RECIPE
from scgrpo.tiny.train import lr_frac, make_model, tensors
from scgrpo.tiny.vocabulary import prompt_text

TASKS = [subject.task for subject in RECIPE.subjects]
WORDS, WORD_IDS, encode = RECIPE.vocabulary.words, RECIPE.vocabulary.ids, RECIPE.vocabulary.encode
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


@pytest.fixture(scope="module")
def checkpoint() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model_path(), dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(tiny_model_path())


def test_checkpoint_is_small_ordinary_and_without_pickles(checkpoint: tuple[Any, Any]) -> None:
    model, tokenizer = checkpoint
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.num_parameters() < 400_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.rope_parameters["rope_theta"] == 1000.0
    files = [path for path in tiny_model_path().rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".jinja"}
    assert sum(path.stat().st_size for path in files) < 2_000_000
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.padding_side == "left"


@each_task
def test_shipped_model_is_in_its_bands(checkpoint: tuple[Any, Any], task: Any) -> None:
    rates = measure(*checkpoint, task, num_samples=2, seed=1)
    recorded = json.loads((tiny_model_path() / "build.json").read_text())["pass_rates"][task.name]
    assert rates.num_samples == 400
    alone = replace(RECIPE, subjects=tuple(s for s in RECIPE.subjects if s.task is task))
    assert missed_bands(alone, {task.name: rates}) == ()
    # Four standard deviations of the difference of a mean over 400 and one over 800 samples.
    for name in ("plain", "verified", "wrong", "attempt"):
        rate = recorded[name]
        assert abs(getattr(rates, name) - rate) < 4 * (max(rate * (1 - rate), 0.01) * (1 / 400 + 1 / 800)) ** 0.5


def test_recorded_build_met_its_bands() -> None:
    record = json.loads((tiny_model_path() / "build.json").read_text())
    assert record["missed"] == []
    assert missed_bands(RECIPE, {name: PassRates(**rates) for name, rates in record["pass_rates"].items()}) == ()
    assert record["max_logit_difference"] < 1e-5


def test_chat_template(checkpoint: tuple[Any, Any]) -> None:
    _, tokenizer = checkpoint
    messages = [{"role": "user", "content": "reach 5 > 17"}]
    with_system = teacher_prompt(messages, "inc7 12 inc7 19", get_template("tiny"), verified=True)

    def render(messages: Any, **options: Any) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)

    assert render(messages, add_generation_prompt=True) == "<bos> <user> reach 5 > 17 <assistant>"
    assert render(with_system, add_generation_prompt=True) == (
        "<bos> <system> verified inc7 12 inc7 19 <user> reach 5 > 17 <assistant>"
    )
    answered = [*messages, {"role": "assistant", "content": "inc7 12"}]
    assert render(answered) == "<bos> <user> reach 5 > 17 <assistant> inc7 12 <eos>"
    # The documents were rendered without the template engine; both must agree, in text and in ids.
    for prompt in (messages, with_system):
        assert prompt_text(prompt) == render(prompt, add_generation_prompt=True)
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        assert ids == encode(prompt_text(prompt))


@pytest.mark.parametrize("verified", [True, False])
def test_documents_have_the_form_of_the_teacher_template(verified: bool) -> None:
    row = TASKS[0].rows("train", limit=1)[0]
    kind = "verified" if verified else "attempt"
    assert conditioned(row, kind, "inc7 3") == teacher_prompt(
        row["prompt"], "inc7 3", get_template("tiny"), verified=verified
    )


@each_task
def test_every_row_is_in_the_vocabulary_and_survives_the_round_trip(checkpoint: tuple[Any, Any], task: Any) -> None:
    _, tokenizer = checkpoint
    rng = random.Random(0)
    for row in [*task.rows("train"), *task.rows("eval", limit=1000)]:
        completion = task.solution(row, rng)
        for text in (prompt_text(conditioned(row, "verified", completion)), task.attempt(row, rng), completion):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert ids == encode(text)
        ids = tokenizer(completion)["input_ids"]
        assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == completion


def test_unknown_words_and_role_marks_stay_visible() -> None:
    tokenizer = RECIPE.vocabulary.tokenizer()
    assert tokenizer("reach five")["input_ids"] == [WORD_IDS["reach"], WORD_IDS["<unk>"]]
    # A completion that writes a role mark must not be graded as if it had not.
    assert tokenizer.decode(encode("inc7 <user> 12"), skip_special_tokens=True) == "inc7 <user> 12"
    assert len(WORDS) == len(set(WORDS)) == len(tokenizer) < 100


def test_documents_show_training_problems_only_and_keep_their_shares() -> None:
    held_out = {row["prompt"][0]["content"] for task in TASKS for row in task.rows("eval", limit=10_000)}
    stream = Documents(RECIPE, seed=3)
    kinds = dict.fromkeys(KIND_SHARES, 0)
    for _ in range(300):
        documents = stream.batch(16)
        contents = [document.messages[0]["content"].split(" ")[0] for document in documents]
        kind = contents[0] if contents[0] in kinds else "plain"
        assert all((content == kind) == (kind != "plain") for content in contents)
        kinds[kind] += 1
        assert not held_out & {document.messages[-1]["content"] for document in documents}
    assert all(abs(kinds[kind] / 300 - share) < 0.1 for kind, share in KIND_SHARES.items())


def test_the_shipped_documents_and_vocabulary_never_change() -> None:
    stream, digest = Documents(RECIPE, seed=0), hashlib.sha256()
    for index in range(40):
        for document in stream.batch(16, schooling=index < 20):
            digest.update(repr((document.messages, document.completion)).encode())
    assert digest.hexdigest() == "d92b98948f856f77760c7c67b78b0c1f93c175c95d4fd1826b338e91682f52ad"
    saved = json.loads((tiny_model_path() / "tokenizer.json").read_text())
    assert saved["model"]["vocab"] == RECIPE.vocabulary.ids


def test_labels_are_the_completion_and_its_end_only() -> None:
    documents = Documents(RECIPE, seed=0).batch(8)
    input_ids, labels = tensors(documents, RECIPE.vocabulary)
    for row, document in enumerate(documents):
        wanted = [*encode(document.completion), WORD_IDS["<eos>"]]
        start = len(encode(prompt_text(document.messages)))
        assert labels[row, start : start + len(wanted)].tolist() == wanted
        assert input_ids[row, start : start + len(wanted)].tolist() == wanted
        assert int((labels[row] != -100).sum()) == len(wanted)


def test_learning_rate_schedule() -> None:
    assert lr_frac(0, 4000) == pytest.approx(0.02)
    assert lr_frac(50, 4000) == pytest.approx(1.0, abs=1e-3)
    assert lr_frac(2000, 4000) == pytest.approx(0.515)
    assert lr_frac(4000, 4000) == pytest.approx(0.03)


def test_missed_bands_are_named() -> None:
    good = PassRates(plain=0.22, verified=0.9, wrong=0.2, attempt=0.2, num_samples=800)
    bad = PassRates(plain=0.1, verified=0.7, wrong=0.14, attempt=0.2, num_samples=800)
    assert missed_bands(RECIPE, {"reach": good, "countdown": good}) == ()
    plain, verified, wrong = missed_bands(RECIPE, {"reach": good, "countdown": bad})
    assert plain == "countdown: plain pass rate 0.100 is outside 0.15 to 0.35."
    assert "0.700 with a correct demonstration is below 0.75" in verified
    assert "0.140 with a wrong demonstration" in wrong


def test_an_export_that_differs_is_refused() -> None:
    torch.manual_seed(0)
    model, other = make_model(RECIPE), make_model(RECIPE)
    assert logit_difference(RECIPE, model, model) == 0.0
    with pytest.raises(ScgrpoError, match="differ from the trained model's by"):
        logit_difference(RECIPE, model, other)


def test_a_three_step_build_is_complete_repeatable_and_leaves_no_trace(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    lines: list[str] = []
    reports = [
        build(replace(RECIPE, steps=3), tmp_path / name, seed=5, num_samples=1, progress=lines.append)
        for name in ("first", "second")
    ]
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random_state)
    assert isinstance(reports[0], BuildReport)
    assert not reports[0].ok
    assert reports[0].missed[0].startswith("reach: plain pass rate 0.0")
    assert reports[0].pass_rates == reports[1].pass_rates
    assert "step 3/3: loss" in "".join(lines)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    shipped = {path.name for path in tiny_model_path().iterdir()}
    assert {path.name for path in (tmp_path / "first").iterdir()} == shipped
    assert json.loads((tmp_path / "first" / "build.json").read_text())["steps"] == 3
