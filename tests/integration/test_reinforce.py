"""REINFORCE++ in the trainer: its advantages reach TRL's loss, and the KL moves from the loss to the reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from trl_harness import canned, parameters

from scgrpo import SCGRPOConfig
from scgrpo.errors import ConfigError

Run = Callable[..., tuple[Any, Any, Any]]
OPTIONS: dict[str, Any] = {"method": "reinforce++", "credit": "of the method"}


def test_its_advantages_reach_the_loss_and_the_first_loss_is_minus_their_mean(run_trainer: Run) -> None:
    _, seen, _ = run_trainer(completions=canned("SSFFSSSF"), **OPTIONS)
    for inputs, scored in zip(seen.inputs, seen.scored, strict=True):
        mask = inputs["completion_mask"].bool()
        assert inputs["advantages"].shape == mask.shape
        found = inputs["advantages"][mask]
        assert found.mean().item() == pytest.approx(0, abs=1e-6)
        assert found.std(correction=0).item() == pytest.approx(1, abs=1e-5)
        assert found.unique().numel() == 2, "solved and failed, whatever the group"
        assert len(scored.plan) == 0
    for loss in seen.losses:  # on-policy: every ratio is 1, and the token mean of whitened values is 0
        assert loss.item() == pytest.approx(0, abs=1e-6)


def test_it_differs_from_the_group_baseline(run_trainer: Run) -> None:
    _, _, ours = run_trainer(completions=canned("SSFFSSSF"), **OPTIONS)
    _, _, grpo = run_trainer(completions=canned("SSFFSSSF"), credit="uniform", loss_type="dapo")
    assert any(not torch.equal(a, b) for a, b in zip(ours.parameters(), grpo.parameters(), strict=True))


@pytest.mark.parametrize("steps", [{}, {"per_device_train_batch_size": 4, "steps_per_generation": 2, "max_steps": 6}])
def test_the_kl_is_in_the_reward_and_not_in_the_loss(run_trainer: Run, steps: dict[str, Any]) -> None:
    trainer, seen, _ = run_trainer(completions=canned("SSFFSSSF"), beta=0.2, **OPTIONS, **steps)
    assert trainer.beta == 0.2
    assert all("kl" not in log for log in trainer.state.log_history)
    rows = [
        (ids[mask.bool()], old, ref)
        for inputs in seen.inputs
        for ids, mask, old, ref in zip(
            *(inputs[n] for n in ("completion_ids", "completion_mask")),
            inputs.get("old_per_token_logps", inputs["completion_ids"]),
            inputs["ref_per_token_logps"],
            strict=True,
        )
    ]
    last = seen.scored[-1]
    differing = 0
    for row, ids in enumerate(last.rollouts.completion_ids):
        mine = next(r for r in reversed(rows) if r[0].tolist() == list(ids))
        given, width = last.groups.rewards[row], len(ids)
        outcome = torch.zeros(width)
        outcome[-1] = last.rollouts.rewards[row, 0]
        if steps:
            penalty = 0.2 * (mine[1] - mine[2])[:width]
            torch.testing.assert_close(given[:width], outcome - penalty, rtol=0, atol=1e-6)
        differing += not torch.equal(given[:width], outcome)
    assert differing, "the policy has moved away from the reference"


def test_without_beta_there_is_no_reference(run_trainer: Run) -> None:
    trainer, seen, _ = run_trainer(completions=canned("SSFF"), **OPTIONS)
    assert trainer.ref_model is None
    assert "ref_per_token_logps" not in seen.inputs[0]


def test_over_refilled_batches(run_trainer: Run) -> None:
    patterns = [canned("SSFFFFFF"), canned("SSFFSSFF", seed=1)]
    trainer, seen, model = run_trainer(
        completions=lambda batch, row: patterns[batch % 2](batch, row),
        dynamic_sampling_max_rounds=1,
        beta=0.1,
        **OPTIONS,
    )
    assert trainer.state.log_history[0]["sampling/refilled_frac"] == 0.5
    assert seen.scored[0].groups.solved.tolist() == [True, True, False, False] * 2
    assert all(torch.isfinite(value).all() for value in parameters(model).values())


def test_weights_on_it_are_refused() -> None:
    with pytest.raises(ConfigError, match="is a credit method itself"):
        SCGRPOConfig(use_cpu=True, bf16=False, method="reinforce++", credit="sc_grpo")


@pytest.mark.parametrize("credit", ["uniform", "sc_grpo"])
def test_a_kl_that_would_be_lost_is_refused(run_trainer: Run, credit: str) -> None:
    with pytest.raises(ConfigError, match="the KL would be lost"):
        run_trainer(credit=credit, kl_in_reward=True, beta=0.1)
