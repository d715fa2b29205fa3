"""What goes wrong ends in a named outcome: an excluded rollout or a typed error, with nothing trained on it."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from trl_harness import EOS, SOLVED, canned, make_trainer, parameters, prompt_rows, starts_with_a

from scgrpo.errors import ConfigError, NonFiniteError, ShapeError, VerifierError
from scgrpo.tasks.pool import VerifierPool

Run = Callable[..., tuple[Any, Any, Any]]
ONE_GROUP = {"per_device_train_batch_size": 4, "max_steps": 1}


@pytest.fixture
def fails(tokenizer: Any, make_model: Callable[..., Any], tmp_path: Any) -> Callable[..., None]:
    """Training raises this error, and the parameters are what they were."""

    def check(
        error: type[Exception], match: str, poison: Callable[[Any], None] | None = None, **options: Any
    ) -> None:
        model = make_model()
        trainer, _ = make_trainer(tmp_path, model, tokenizer, **options)
        if poison is not None:
            poison(trainer)
        before = parameters(model)
        with pytest.raises(error, match=match):
            trainer.train()
        for name, value in parameters(model).items():
            assert (
                torch.equal(
                    value,
                    before[name],
                )
                or torch.isnan(before[name]).any()
            ), name

    return check


def nth(kind: Any, broken: int) -> Callable[..., list[Any]]:
    """The verifier, but what it does for the given row of the generation batch is `kind`."""
    count = 0

    def verifier(completions: list[Any], **_: Any) -> list[Any]:
        rewards: list[Any] = []
        for row, value in enumerate(starts_with_a(completions)):
            if row == broken and len(completions) > 1 and not isinstance(kind, Exception):
                rewards.append(kind)
            else:
                rewards.append(value)
        nonlocal count
        count += 1
        if isinstance(kind, Exception) and (len(completions) > 1 or count == 2 + broken):
            raise kind
        return rewards

    return verifier


@pytest.mark.parametrize("kind", [None, math.nan, ValueError("no such number")], ids=["None", "NaN", "raises"])
def test_a_rollout_without_verdict_is_left_out(run_trainer: Run, kind: Any) -> None:
    """Solved, solved, no verdict, failed: mean 2/3, standard deviation of (1, 1, 0)."""
    _, seen, _ = run_trainer(completions=canned("SSSF"), reward_funcs=nth(kind, 2), **ONE_GROUP)
    scored = seen.scored[0]
    std = math.sqrt(1 / 3) + 1e-4
    expected = [(1 / 3) / std, (1 / 3) / std, 0.0, (-2 / 3) / std]
    assert scored.groups.advantages.tolist() == pytest.approx(expected, abs=1e-6)
    assert scored.groups.graded.tolist() == [True, True, False, True]
    assert scored.groups.solved.tolist() == [True, True, False, False]
    assert 2 not in scored.plan.rollout.tolist() + scored.plan.demonstration.tolist()
    assert not scored.credit.advantages[2].any()


def test_a_rollout_without_verdict_is_left_out_of_a_weighted_sum_too(run_trainer: Run) -> None:
    """TRL would sum the function that did answer, and call the rollout wrong."""

    def length(completions: list[Any], **_: Any) -> list[float]:
        return [3.0] * len(completions)

    _, seen, _ = run_trainer(completions=canned("SSSF"), reward_funcs=[nth(None, 2), length], **ONE_GROUP)
    std = math.sqrt(1 / 3) + 1e-4
    assert seen.scored[0].groups.advantages[2] == 0
    assert seen.scored[0].groups.advantages[3] == pytest.approx((-2 / 3) / std, abs=1e-6)


def test_a_verifier_that_always_raises_stops_training(fails: Callable[..., None]) -> None:
    def broken(completions: list[Any], **_: Any) -> list[float]:
        raise KeyError("answer")

    fails(
        VerifierError, r"'broken' raised on each of 8 rollouts, last with KeyError\('answer'\)", reward_funcs=broken
    )


def hangs_on_b(text: str) -> float:
    """A verifier that loops for ever on some completions."""
    while text.startswith("b"):
        time.sleep(0.01)
    return 1.0


def test_a_verifier_that_hangs_is_killed_and_its_rollouts_have_no_verdict(run_trainer: Run, tmp_path: Any) -> None:
    (tmp_path / "hanging.py").write_text("import time\n\n\n" + inspect.getsource(hangs_on_b))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        with VerifierPool("hanging:hangs_on_b", timeout_s=0.5, num_workers=2) as pool:

            def verify(completions: list[Any], **_: Any) -> list[float | None]:
                return [v.score for v in pool.grade([{"text": c[0]["content"]} for c in completions])]

            _, seen, _ = run_trainer(completions=canned("SSSF"), reward_funcs=verify, **ONE_GROUP)
    scored = seen.scored[0]
    assert scored.groups.graded.tolist() == [True, True, True, False]
    assert scored.groups.advantages.tolist() == [0, 0, 0, 0]


def test_an_infinite_reward_is_an_error(fails: Callable[..., None]) -> None:
    fails(
        NonFiniteError,
        "'verifier' returned inf for rollout 3",
        reward_funcs=nth(math.inf, 3),
        completions=canned("SSFF"),
    )


def test_success_is_the_named_reward_and_never_the_weighted_sum(run_trainer: Run) -> None:
    def style(completions: list[Any], **_: Any) -> list[float]:
        return [1.0 - value for value in starts_with_a(completions)]

    options = {"reward_funcs": [style, starts_with_a], "reward_weights": [10.0, 1.0], "completions": canned("SSFF")}
    _, seen, _ = run_trainer(success_reward="starts_with_a", **options)
    assert seen.scored[0].groups.solved.tolist() == [True, True, False, False] * 2
    assert seen.scored[0].groups.advantages[0] < 0  # what is trained on is the sum
    _, first, _ = run_trainer(**options)
    assert first.scored[0].groups.solved.tolist() == [False, False, True, True] * 2


def test_an_unknown_success_reward_names_the_known(fails: Callable[..., None]) -> None:
    with pytest.raises(ConfigError, match=r"success_reward='accuracy' is not among .* Choose one of starts_with_a"):
        fails(ConfigError, "", success_reward="accuracy")


def test_the_threshold_of_success(run_trainer: Run) -> None:
    def graded(completions: list[Any], **_: Any) -> list[float]:
        return [0.2, 0.4, 0.6, 0.8] * (len(completions) // 4)

    _, seen, _ = run_trainer(completions=canned("SSFF"), reward_funcs=graded, success_threshold=0.6, **ONE_GROUP)
    assert seen.scored[0].groups.solved.tolist() == [False, False, True, True]


# ---- numbers that are none ----


def poison_head(trainer: Any) -> None:
    with torch.no_grad():
        trainer.model.lm_head.weight[SOLVED, 0] = torch.nan


@pytest.mark.parametrize("credit", ["sc_grpo", "uniform"])
def test_a_nan_in_the_model_never_reaches_the_optimizer(fails: Callable[..., None], credit: str) -> None:
    match = "logits are NaN or infinite for pair" if credit == "sc_grpo" else "The loss is nan"
    fails(NonFiniteError, match, poison_head, credit=credit, completions=canned("SSFF"))


def test_a_nan_in_the_teacher_alone_is_named(fails: Callable[..., None]) -> None:
    def poison(trainer: Any) -> None:
        @contextmanager
        def poisoned() -> Iterator[None]:
            weight = trainer.model.model.norm.weight
            good = weight.detach().clone()
            weight.data[0] = torch.inf
            yield
            weight.data.copy_(good)

        trainer._evidence.condition.score.teacher_weights = poisoned

    options = {"completions": canned("SSFF"), "teacher_prefix_sharing": "packed"}
    fails(NonFiniteError, r"logits are NaN or infinite for pair \d+, completion token \d+", poison, **options)


# ---- odd rollouts ----


def test_completions_of_one_token_and_of_no_counted_token(run_trainer: Run) -> None:
    """Row 1 is cut off and masked, row 3 is nothing but the end token."""

    def completion(batch: int, row: int) -> list[int]:
        return [[SOLVED, 9, EOS], [SOLVED, 9, 10], [SOLVED, EOS], [EOS]][row % 4]

    _, seen, model = run_trainer(completions=completion, mask_truncated_completions=True, **ONE_GROUP)
    scored = seen.scored[0]
    assert sorted(scored.plan.rollout.tolist()) == [0, 2, 3]
    assert not scored.credit.weights[1].ne(1).any()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_batch_of_which_nothing_counts_trains_nothing_and_does_not_fail(
    run_trainer: Run, make_model: Callable[..., Any]
) -> None:
    _, seen, model = run_trainer(completions=canned("sf"), mask_truncated_completions=True)
    assert all(len(scored.plan) == 0 for scored in seen.scored)
    for (name, a), b in zip(parameters(model).items(), parameters(make_model()).values(), strict=True):
        assert torch.equal(a, b), name


def test_a_group_of_one_is_refused(fails: Callable[..., None]) -> None:
    with pytest.raises((ValueError, ShapeError), match="generation"):
        fails(ValueError, "", num_generations=1)


def test_long_demonstrations_are_cut_and_counted(run_trainer: Run, tokenizer: Any) -> None:
    trainer, seen, _ = run_trainer(
        completions=canned("SSFF", longest=8), demonstration_max_tokens=2, per_device_train_batch_size=16, max_steps=1
    )
    scored = seen.scored[0]
    cut = [scored.demonstrations[row].truncated for row in scored.plan.demonstration.tolist()]
    assert any(cut)
    assert all(len(tokenizer(shown.text)["input_ids"]) <= 2 for shown in scored.demonstrations.values())
    log = next(log for log in trainer.state.log_history if "loss" in log)
    assert log["credit/demonstration_truncated_frac"] == pytest.approx(sum(cut) / len(cut))


def test_a_demonstration_that_cannot_fit_is_refused_before_training(fails: Callable[..., None]) -> None:
    with pytest.raises(ConfigError, match=r"A demonstration \(150 tokens\) and a completion \(150\) exceed the"):
        fails(ConfigError, "", max_completion_length=150)


def test_prompts_that_render_otherwise_than_they_were_sampled_are_refused(fails: Callable[..., None]) -> None:
    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        ids = [[7, 8, 9]] * len(prompts)  # its own idea of a prompt
        completions = [canned("SSFF")(0, row) for row in range(len(prompts))]
        return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}

    fails(
        ConfigError,
        "prompt ids that were sampled from are not what the prompt renders to",
        trainer_options={"rollout_func": rollout},
    )


def test_rows_need_a_prompt_that_is_a_chat_or_a_text(run_trainer: Run) -> None:
    rows = [{**row, "prompt": row["prompt"][0]["content"]} for row in prompt_rows(8)]
    _, seen, _ = run_trainer(rows=rows, completions=canned("SSFF"), max_steps=1)
    assert isinstance(seen.scored[0].rollouts.completions[0], str)
