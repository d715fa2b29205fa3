"""Every credit method through the trainer, and the combinations of settings that cannot work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from trl_harness import canned, parameters, starts_with_a

from scgrpo.credit import credit_method_names

Run = Callable[..., tuple[Any, Any, Any]]
# A group of each route, two failed and two solved in the first; the last letters are cut-off rollouts.
MIXED = "SSFFSFFFSSSSFFFFSSsf"
LAGGING = {"rlsd", "rlcsd", "cast"}  # need a teacher of their own
SEVERAL = {"rlcsd", "rlcsd_weight"}  # more than the loss's forward can serve
METHODS = sorted(
    {
        *("permuted", "random", "entropy", "other_prompt", "failed", "oracle"),
        *("rlsd", "antisd", "cast", "entropy_mask", "stare", "rlcsd", "rlcsd_weight"),
    }
)


def blames(position: int) -> Any:
    """The verifier, who also says where a failed rollout goes wrong."""

    def reward(completions: list[Any], **_: Any) -> list[float]:
        scores = starts_with_a(completions)
        reward.first_error = [None if score else position for score in scores]  # type: ignore[attr-defined]
        return scores

    reward.first_error = []  # type: ignore[attr-defined]
    return reward


def options(credit: str, **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"credit": credit, "completions": canned(MIXED), "per_device_train_batch_size": 20}
    if credit in LAGGING:
        given |= {"teacher_weights": "snapshot", "teacher_snapshot_steps": 2}
    if credit == "oracle":
        given["reward_funcs"] = blames(0)
    return {**given, **more}


def test_no_method_is_forgotten() -> None:
    assert set(METHODS) == set(credit_method_names()) - {"sc_grpo", "uniform"}


@pytest.mark.parametrize("credit", METHODS)
def test_each_trains_the_same_with_either_timing(run_trainer: Run, credit: str) -> None:
    trainer, seen, a = run_trainer(**options(credit, max_steps=2))
    assert trainer._in_loss
    _, other, b = run_trainer(**options(credit, max_steps=2, teacher_timing="generation"))
    assert len(seen.scored) == 2
    for scored, again in zip(seen.scored, other.scored, strict=True):
        assert len(scored.plan)
        assert scored.credit.advantages.isfinite().all()
        torch.testing.assert_close(scored.credit.weights, again.credit.weights, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(seen.losses, other.losses, atol=1e-4, rtol=1e-3)
    for (name, x), y in zip(parameters(a).items(), parameters(b).values(), strict=True):
        assert x.isfinite().all()
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-3, msg=name)
    logs = trainer.state.log_history[0]
    assert "credit/weight_mean" in logs
    assert "credit/route_partial_frac" in logs
