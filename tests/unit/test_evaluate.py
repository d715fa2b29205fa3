"""Sampling and grading with a small random model."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scgrpo.errors import ConfigError, DataError
from scgrpo.evaluation import Crew, EvalResult, evaluate
from scgrpo.evaluation.samplers import Sampling, _generate, generation_config, until_end
from scgrpo.evaluation.sampling import Batch
from scgrpo.tasks import Canned, Row, Split, Task, Verdict

LETTERS = "abcdefgh"


class Starts(Task):
    """Right is a completion that starts with one of the first 13 letters; digits break the verifier."""

    name = "starts"

    def __init__(self) -> None:
        self.completions: list[str] = []

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        prompts = [" ".join(LETTERS[: n + 1]) for n in range(len(LETTERS))]
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return [{"problem_id": f"p{n}", "prompt": chat} for n, chat in enumerate(chats)][:limit]

    def verify(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        self.completions += completions
        return [
            Verdict.error("a digit") if c[:1].isdigit() else Verdict(float("a" <= c[:1] <= "m")) for c in completions
        ]

    def canned(self) -> Canned:
        return Canned(self.rows("eval")[0], ("a",), ("z",))


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Any]) -> Any:
    return make_model(seed=3)


def run(model: Any, tokenizer: Any, task: Task | None = None, **settings: Any) -> EvalResult:
    return evaluate(model, tokenizer, task or Starts(), **({"k": 8, "max_new_tokens": 12} | settings))


def test_the_result_adds_up(model: Any, tokenizer: Any) -> None:
    task = Starts()
    result = run(model, tokenizer, task)
    assert (result.task, result.k, result.num_problems) == ("starts", 8, 8)
    assert [p.problem_id for p in result.per_problem] == [f"p{n}" for n in range(8)]
    assert len(task.completions) == 64
    broken = sum(c[:1].isdigit() for c in task.completions)
    assert 0 < broken < 32
    assert result.error_frac == broken / 64
    for n, problem in enumerate(result.per_problem):
        own = [c for c in task.completions[8 * n : 8 * n + 8] if not c[:1].isdigit()]
        solved = sum("a" <= c[:1] <= "m" for c in own)
        assert (problem.n, problem.num_errors, problem.num_solved) == (len(own), 8 - len(own), solved)
        assert problem.mean_score == pytest.approx(solved / len(own))
    means = [p.mean_score for p in result.per_problem]
    assert result.avg_at_k.value == pytest.approx(np.mean(means))
    whole = [float(p.num_solved > 0) for p in result.per_problem if p.n == 8]
    assert result.pass_at_k.num_problems == len(whole)
    assert 1 <= result.mean_completion_tokens <= 12
    assert 0 < result.truncated_frac < 1
    assert result.seconds > 0
    assert result.tokens_per_s > 0


def test_the_record_is_strict_json(model: Any, tokenizer: Any) -> None:
    record = run(model, tokenizer, k=8, rows=Starts().rows("eval", 3)).to_record(25, "during")
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert list(record)[:4] == ["step", "label", "task", "k"]
    assert (record["step"], record["label"], record["temperature"], record["top_p"]) == (25, "during", 1.0, 1.0)
    assert set(record["avg_at_k"]) == set(record["pass_at_k"]) == {"value", "low", "high"}
    assert set(record["per_problem"][0]) == {"problem_id", "n", "num_solved", "mean_score", "num_errors"}


def test_more_samples_than_k_make_pass_at_k_defined_despite_errors(model: Any, tokenizer: Any) -> None:
    result = run(model, tokenizer, k=2, num_samples=12)
    assert result.k == 2
    assert [p.n + p.num_errors for p in result.per_problem] == [12] * 8
    assert result.pass_at_k.num_problems == 8
    expected = [1 - math.comb(p.n - p.num_solved, 2) / math.comb(p.n, 2) for p in result.per_problem]
    assert result.pass_at_k.value == pytest.approx(np.mean(expected))


def test_same_seed_same_completions_and_the_callers_randomness_is_untouched(model: Any, tokenizer: Any) -> None:
    texts = []
    torch.manual_seed(11)
    random.seed(11)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    for seed in (0, 0, 1):
        task = Starts()
        run(model, tokenizer, task, seed=seed)
        texts.append(task.completions)
    assert texts[0] == texts[1] != texts[2]
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_the_models_mode_comes_back_also_after_an_error(make_model: Callable[..., Any], tokenizer: Any) -> None:
    model = make_model(attention_dropout=0.5)
    model.train()
    model.lm_head.eval()  # a part that its owner keeps in evaluation mode
    greedy = [run(model, tokenizer, k=1, temperature=0.0).avg_at_k.value for _ in range(2)]
    assert greedy[0] == greedy[1]  # no dropout while sampling
    assert model.training

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer, progress=stop)
    assert model.training
    assert not model.lm_head.training
    model.eval()
    run(model, tokenizer, k=1)
    assert not model.training


@pytest.mark.parametrize("batch_size", [1, 5, 8, 24, 1000])
def test_every_batch_size_samples_every_problem(model: Any, tokenizer: Any, batch_size: int) -> None:
    steps: list[tuple[int, int]] = []
    result = run(model, tokenizer, batch_size=batch_size, max_new_tokens=2, progress=lambda *s: steps.append(s))
    assert [p.n + p.num_errors for p in result.per_problem] == [8] * 8
    assert steps[-1] == (64, 64)
    assert len(steps) == {1: 64, 5: 16, 8: 8, 24: 3, 1000: 1}[batch_size]


def test_completions_belong_to_their_prompts(model: Any, tokenizer: Any) -> None:
    """Greedy completions in mixed batches are those of each prompt alone: padding and sorting change nothing."""
    alone = []
    for row in Starts().rows("eval"):
        task = Starts()
        run(model, tokenizer, task, rows=[row], k=1, temperature=0.0)
        alone += task.completions
    together = Starts()
    rows = list(reversed(together.rows("eval")))
    result = run(model, tokenizer, together, rows=rows, k=1, temperature=0.0, batch_size=3)
    assert together.completions == alone, "the shortest prompt comes first"
    assert len(set(alone)) > 1
    for problem, row, own in zip(result.per_problem, rows, alone[::-1], strict=True):
        (verdict,) = Starts().verify([own], [row])
        assert (problem.problem_id, problem.num_solved) == (row["problem_id"], int(verdict.score == 1))


def test_prompts_are_rendered_as_trl_does(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def generate(model: Any, prompts: Sequence[Sequence[int]], config: Any) -> list[list[int]]:
        seen.extend(list(p) for p in prompts)
        return [[2]] * len(prompts)

    monkeypatch.setattr("scgrpo.evaluation.samplers._generate", generate)
    chat = [{"role": "system", "content": "a"}, {"role": "user", "content": "b c"}]
    run(model, tokenizer, rows=[{"prompt": chat}, {"prompt": "b c"}], k=1)
    assert sorted(seen, key=len) == [
        tokenizer("b c")["input_ids"],
        tokenizer("<bos> <system> a <user> b c <assistant>")["input_ids"],
    ]


def test_the_models_own_sampling_settings_do_not_leak_in(make_model: Callable[..., Any], tokenizer: Any) -> None:
    model = make_model()
    own = model.generation_config
    own.temperature, own.top_k, own.top_p, own.repetition_penalty, own.eos_token_id = 0.01, 1, 0.1, 5.0, [2, 9]
    task = Starts()
    result = run(model, tokenizer, task, rows=task.rows("eval", 1), k=64, max_new_tokens=1)
    assert len(set(task.completions)) > 5
    config = generation_config(tokenizer, {2, 9}, Sampling(4, 0.7, 0.9, 0, 5, 8, 0), 4)
    assert (config.temperature, config.top_p, config.top_k, config.repetition_penalty) == (0.7, 0.9, 0, 1.0)
    assert (config.eos_token_id, config.num_return_sequences, config.max_new_tokens) == ([2, 9], 4, 5)
    assert result.mean_completion_tokens == 1.0


def test_completions_end_with_their_end_token() -> None:
    assert until_end([5, 6, 2, 7, 2], {2, 9}) == [5, 6, 2]
    assert until_end([9, 5], {2, 9}) == [9]
    assert until_end([5, 6], {2, 9}) == [5, 6]


def test_samples_follow_the_models_distribution(model: Any, tokenizer: Any) -> None:
    prompt = tokenizer("<bos> <user> a b <assistant>")["input_ids"]
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    config = generation_config(tokenizer, {2}, Sampling(4000, 1.0, 1.0, 0, 1, 4000, 0), 4000)
    torch.manual_seed(0)
    drawn = torch.tensor(_generate(model, [prompt], config))[:, 0]
    observed = torch.bincount(drawn, minlength=len(expected)) / len(drawn)
    assert float((observed - expected).abs().sum()) < 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {"k": 0},
        {"k": 4, "num_samples": 3},
        {"batch_size": 0},
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": 0.0, "k": 2},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
    ],
)
def test_impossible_settings(model: Any, tokenizer: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        run(model, tokenizer, **settings)


def test_nothing_to_evaluate_and_no_chat_template(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no rows"):
        run(model, tokenizer, rows=[])
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(DataError, match="no chat template"):
        run(model, tokenizer)


def test_processes_that_share_the_work_come_to_the_same_numbers(model: Any, tokenizer: Any) -> None:
    """One after another: each passes on what the others have drawn before it."""
    alone = run(model, tokenizer, batch_size=24)
    for count in (2, 3, 5):
        so_far: list[Any] = []
        drawn = []
        for index in range(count):
            task = Starts()

            def gather(own: list[Any], so_far: list[Any] = so_far) -> list[Any]:
                so_far.extend(own)
                return so_far if len(so_far) == 64 else [*so_far, *missing(so_far)]

            shared = run(model, tokenizer, task, batch_size=24, crew=Crew(index, count, gather))
            drawn.append(len(task.completions))
        assert sum(drawn) == 64
        assert max(drawn) < 64
        assert shared.per_problem == alone.per_problem
        assert shared.mean_completion_tokens == alone.mean_completion_tokens


def missing(known: Sequence[Any]) -> list[Any]:
    """Stand-ins for what later processes will draw."""
    keys = {(row, sample) for row in range(8) for sample in range(8)} - {one.key for one in known}
    return [replace(known[0], row=row, sample=sample) for row, sample in keys]


@given(st.integers(0, 12), st.integers(1, 6))
def test_every_batch_is_drawn_once_and_sharded_weights_meet_as_often_on_all(number: int, count: int) -> None:
    batches = [Batch((row,), 0, 1) for row in range(number)]
    for in_step in (False, True):
        turns = [list(Crew(index, count, in_step=in_step).turns(batches)) for index in range(count)]
        counted = [batch for own in turns for batch, counts in own if counts]
        assert sorted(counted, key=lambda batch: batch.rows) == batches
        if in_step:
            assert len({len(own) for own in turns}) == 1
        else:
            assert all(counts for own in turns for _, counts in own)
