"""REINFORCE++ in numbers worked out by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from scgrpo.credit import Evidence, Groups, ReinforcePlusPlus
from scgrpo.credit.reinforce import returns, whitened
from scgrpo.errors import ConfigError
from scgrpo.integrations.trl.token_rewards import outcomes, token_rewards

NAN = float("nan")


def groups(rewards: torch.Tensor | None, mask: list[list[int]], **changes: Any) -> Groups:
    rows = len(mask)
    fields: dict[str, Any] = {
        "group": torch.arange(rows) // 2,
        "solved": torch.zeros(rows, dtype=torch.bool),
        "graded": torch.ones(rows, dtype=torch.bool),
        "truncated": torch.zeros(rows, dtype=torch.bool),
        "lengths": torch.tensor([sum(row) for row in mask]),
        "mask": torch.tensor(mask).bool(),
        "advantages": torch.zeros(rows),
        "micro_batch": torch.zeros(rows, dtype=torch.long),
        "rewards": rewards,
    }
    return Groups(**{**fields, **changes})


def credit(given: Groups) -> Any:
    method = ReinforcePlusPlus()
    plan = method.plan(given, random.Random(0))
    assert len(plan) == 0
    return method.assign(given, plan, Evidence(*torch.zeros(4, 0, given.mask.shape[1])))


def test_the_outcome_stands_at_the_last_counted_token_and_the_penalty_at_each() -> None:
    outcome = outcomes(torch.tensor([[1.0, 0.5], [NAN, 2.0], [NAN, NAN]]), torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(outcome, torch.tensor([1.25, 1.0, NAN]), equal_nan=True)
    mask = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    penalty = torch.tensor([[0.1, 9.0, 0.2, 9.0], [0.0, 0.1, 0.0, -0.1], [1.0, 1.0, 1.0, 1.0]])
    plain = torch.tensor([[0, 0, 1.25, 0], [0, 0, 0, 1.0], [NAN] * 4])
    torch.testing.assert_close(token_rewards(outcome, mask, None), plain, equal_nan=True)
    less = torch.tensor([[-0.1, 0, 1.05, 0], [0, -0.1, 0, 1.1], [NAN] * 4])
    torch.testing.assert_close(token_rewards(outcome, mask, penalty), less, equal_nan=True)
    assert token_rewards(torch.tensor([1.0]), torch.zeros(1, 3, dtype=torch.bool), None).tolist() == [[0, 0, 0]]


def test_returns_and_whitening_in_numbers() -> None:
    """Tokens 1, 1 (tool output between) and -1: mean 1/3, variance 8/9."""
    rewards = torch.tensor([[0.0, 5.0, 1.0], [-1.0, NAN, NAN]])
    counted = torch.tensor([[1, 0, 1], [1, 0, 0]]).bool()
    assert returns(rewards, counted).tolist() == [[1, 0, 1], [-1, 0, 0]]
    a = (2 / 3) / (8 / 9) ** 0.5
    expected = torch.tensor([[a, 0, a], [-2 * a, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(whitened(returns(rewards, counted), counted), expected)


def test_a_penalty_makes_earlier_tokens_answer_for_later_ones() -> None:
    rewards = token_rewards(
        torch.tensor([1.0, 0.0]), torch.ones(2, 3).bool(), torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.25]])
    )
    r = torch.tensor([[0.5, 0.5, 1.0], [-0.25, -0.25, -0.25]], dtype=torch.float64)
    expected = (r - r.mean()) / r.std(correction=0)
    found = credit(groups(rewards, [[1, 1, 1], [1, 1, 1]]))
    torch.testing.assert_close(found.advantages, expected.float())
    torch.testing.assert_close(found.base, expected.mean(1).float())
    assert bool((found.weights == 1).all())


def test_the_whole_batch_is_the_baseline_and_longer_rollouts_count_more() -> None:
    """Rewards 1, 0 | 1, 1 with lengths 3, 1 | 1, 1: mean 5/6 of six tokens."""
    mask = [[1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]]
    rewards = token_rewards(torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor(mask).bool(), None)
    found = credit(groups(rewards, mask)).advantages
    std = (5 / 36) ** 0.5
    expected = torch.tensor(mask) * torch.tensor([[1 / 6], [-5 / 6], [1 / 6], [1 / 6]]) / std
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.7])
def test_without_differences_nothing_is_learnt(value: float) -> None:
    mask = torch.ones(8, 5).bool()
    rewards = token_rewards(torch.full((8,), value), mask, None)
    assert credit(groups(rewards, mask.int().tolist())).advantages.abs().max() < 1e-9


def test_rollouts_without_a_reward_do_not_count() -> None:
    mask = [[1, 1], [1, 1], [1, 1], [1, 1]]
    rewards = token_rewards(torch.tensor([1.0, 0.0, NAN, 1.0]), torch.tensor(mask).bool(), None)
    found = credit(groups(rewards, mask)).advantages
    mean, std = 2 / 3, (2 / 9) ** 0.5
    expected = [[(r - mean) / std] * 2 for r in (1.0, 0.0)] + [[0.0, 0.0], [(1 - mean) / std] * 2]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_host_without_rewards_is_told_so() -> None:
    with pytest.raises(ConfigError, match="needs the rewards"):
        credit(groups(None, [[1], [1]]))
