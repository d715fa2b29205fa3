"""Dynamic sampling in the trainer: the refilled batch is trained on as if it had been sampled so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from trl_harness import canned, parameters, prompt_rows, starts_with_a

from scgrpo import SCGRPOConfig
from scgrpo.errors import ConfigError
from scgrpo.integrations.trl import overlong

Run = Callable[..., tuple[Any, Any, Any]]
# Three batches of four groups: what is sampled first, and what two refills bring.
ROUNDS = ("SSSSSSFFFFFFSFFF", "FFFFSSSFSSSSSSSS", "SSSSFSFSFFFFFFFS")
REFILLED = "SSSFSSFFFSFSSFFF"  # places 0 and 2 were degenerate; group 1 of the second, group 1 of the third


def rounds(*patterns: str) -> Callable[[int, int], list[int]]:
    """The patterns in turn, one per batch sampled."""
    given = [canned(pattern, seed=number) for number, pattern in enumerate(patterns)]
    return lambda batch, row: given[batch % len(given)](batch, row)


def as_refilled(batch: int, row: int) -> list[int]:
    """What the three rounds come to, sampled at once."""
    number, place = {0: (1, 1), 1: (0, 1), 2: (2, 1), 3: (0, 3)}[row // 4]
    return rounds(*ROUNDS)(3 * batch + number, 4 * place + row % 4)


OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 16,
    "max_steps": 2,
    "rows": prompt_rows(1) * 4,
}


@pytest.mark.parametrize(
    "settings",
    [
        {"credit": "uniform", "loss_type": "dapo"},
        {"credit": "sc_grpo", "teacher_timing": "loss"},
        {"credit": "sc_grpo", "teacher_timing": "generation", "scale_rewards": "none"},
        {"credit": "sc_grpo", "per_device_train_batch_size": 4, "steps_per_generation": 4, "beta": 0.1},
    ],
    ids=["uniform", "scored in the loss", "scored before", "with log-probs of TRL"],
)
def test_a_refilled_batch_is_trained_on_like_one_sampled_so(run_trainer: Run, settings: dict[str, Any]) -> None:
    if "steps_per_generation" in settings:
        settings = {**settings, "max_steps": 8}
    trainer, seen, model = run_trainer(
        completions=rounds(*ROUNDS), dynamic_sampling_max_rounds=3, **{**OPTIONS, **settings}
    )
    _, plain, other = run_trainer(completions=as_refilled, **{**OPTIONS, **settings})
    assert trainer._sampling.prompts.drawn == 2 * 2 * 4, "two rounds for each of two batches"
    for a, b in zip(seen.inputs, plain.inputs, strict=True):
        assert a["num_items_in_batch"] == b["num_items_in_batch"]
    for a, b in zip(seen.scored, plain.scored, strict=True):
        assert [list(x) for x in a.rollouts.completion_ids] == [list(x) for x in b.rollouts.completion_ids]
        assert torch.equal(a.rollouts.rewards, b.rollouts.rewards)
        assert torch.equal(a.groups.solved, b.groups.solved)
        assert torch.equal(a.plan.demonstration, b.plan.demonstration)
        torch.testing.assert_close(a.groups.advantages, b.groups.advantages, rtol=0, atol=0)
    for a, b in zip(seen.losses, plain.losses, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    for (name, a), b in zip(parameters(model).items(), parameters(other).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, msg=name)


def test_it_is_logged_what_was_replaced(run_trainer: Run) -> None:
    trainer, seen, _ = run_trainer(
        completions=rounds(*ROUNDS), credit="uniform", dynamic_sampling_max_rounds=3, **{**OPTIONS, "max_steps": 1}
    )
    log = trainer.state.log_history[0]
    tokens = sum(len(rounds(*ROUNDS)(batch, row)) for batch in (1, 2) for row in range(16))
    assert {name: value for name, value in log.items() if name.startswith("sampling/")} == {
        "sampling/rounds": 2,
        "sampling/degenerate_frac": 0.5,
        "sampling/refilled_frac": 0.5,
        "sampling/left_degenerate_frac": 0,
        "sampling/num_extra_tokens": tokens,
    }
    solved = "".join(ROUNDS).count("S") / 48
    assert log["reward"] == pytest.approx(solved), "TRL's own metrics are about everything that was sampled"
    table = list(trainer._logs["rewards"]["starts_with_a"])
    assert table == [float(letter == "S") for letter in REFILLED], "its table is about what is trained on"
    assert list(trainer._logs["completion"]) == list(seen.scored[0].rollouts.completions)


def test_prompts_come_with_their_rollouts(run_trainer: Run, tokenizer: Any) -> None:
    _, seen, _ = run_trainer(
        completions=rounds(*ROUNDS),
        credit="uniform",
        dynamic_sampling_max_rounds=3,
        **{**OPTIONS, "max_steps": 1, "rows": prompt_rows(10)},
    )
    scored, inputs = seen.scored[0], seen.inputs[0]
    by_completion = {}
    for prompt, keep, ids, mask in zip(
        *(inputs[n] for n in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")), strict=True
    ):
        by_completion[tuple(ids[mask.bool()].tolist())] = prompt[keep.bool()].tolist()
    for row, ids in enumerate(scored.rollouts.completion_ids):
        prompt = scored.rollouts.inputs[row]["prompt"]
        rendered = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        assert by_completion[tuple(ids)] == rendered
        assert scored.rollouts.prompts[row] == prompt
        assert prompt == scored.rollouts.inputs[row - row % 4]["prompt"], "one prompt per group"


def test_first_errors_come_with_their_rollouts(run_trainer: Run) -> None:
    def blames(completions: list[Any], **_: Any) -> list[float]:
        blames.first_error = [blames.batch] * len(completions)  # type: ignore[attr-defined]
        blames.batch += 1  # type: ignore[attr-defined]
        return starts_with_a(completions)

    blames.first_error, blames.batch = [], 0  # type: ignore[attr-defined]
    options = {**OPTIONS, "max_steps": 1, "credit": "oracle", "reward_funcs": blames}
    _, seen, _ = run_trainer(completions=rounds(*ROUNDS), dynamic_sampling_max_rounds=3, **options)
    assert seen.scored[0].groups.first_error.tolist() == [1] * 4 + [0] * 4 + [2] * 4 + [0] * 4


def test_what_stays_degenerate_has_no_advantage_even_where_lengths_differ(run_trainer: Run) -> None:
    """The punishment gives an all-solved group advantages; the paper would not train on it."""
    options = {"completions": rounds("SSSSSSFF"), "max_steps": 1, "overlong_frac": 1.0, "credit": "uniform"}
    trainer, seen, _ = run_trainer(dynamic_sampling_max_rounds=1, **options)
    assert trainer.reward_func_names == ["starts_with_a", overlong.NAME]
    assert trainer.reward_weights.tolist() == [1.0, 0.5]
    advantages = seen.scored[0].groups.advantages
    assert bool((advantages[4:] != 0).all())
    # The good group of the refill took the first place; here it is the same pattern, so nothing is left.
    assert bool((advantages[:4] != 0).any())
    _, seen, _ = run_trainer(dynamic_sampling_max_rounds=1, **{**options, "completions": rounds("SSSSFFFF")})
    assert not bool(seen.scored[0].groups.advantages.any())
    assert all(not bool(inputs["advantages"].any()) for inputs in seen.inputs)
    _, seen, _ = run_trainer(**options)
    assert bool(seen.scored[0].groups.advantages[:4].any()), "without dynamic sampling they are trained on"


def test_the_punishment_never_says_what_is_solved(run_trainer: Run) -> None:
    def wordy(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(c[0]["content"])) for c in completions]

    trainer, seen, _ = run_trainer(
        method="dapo", completions=canned("SFSF"), reward_funcs=[starts_with_a, wordy], max_steps=1, credit="sc_grpo"
    )
    assert trainer._success == 0
    assert seen.scored[0].groups.solved.tolist() == [True, False] * 4
    assert trainer.loss_type == "dapo"
    assert (trainer.epsilon_low, trainer.epsilon_high, trainer.beta) == (0.2, 0.28, 0)
    assert len(seen.scored[0].plan) == 8


def test_a_punishment_alone_is_nothing_to_train_on(run_trainer: Run) -> None:
    with pytest.raises(ConfigError, match="Nothing is rewarded"):
        run_trainer(overlong_frac=0.2, reward_funcs=None)


def test_dapo_trains_end_to_end(run_trainer: Run) -> None:
    trainer, _, _ = run_trainer(method="dapo", credit="of the method")
    log = trainer.state.log_history[0]
    assert "sampling/rounds" in log
    assert f"rewards/{overlong.NAME}/mean" in log


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"dynamic_sampling_max_rounds": 2, "scale_rewards": "batch"}, "must not depend on other groups"),
        ({"dynamic_sampling_max_rounds": -1}, "at least 0"),
        ({"overlong_frac": 1.5}, "share in"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        SCGRPOConfig(use_cpu=True, bf16=False, **settings)


def test_a_stream_cannot_be_drawn_from(run_trainer: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    plain = Dataset.from_list
    monkeypatch.setattr(Dataset, "from_list", lambda rows: plain(rows).to_iterable_dataset())
    with pytest.raises(ConfigError, match="not a stream"):
        run_trainer(dynamic_sampling_max_rounds=1)
