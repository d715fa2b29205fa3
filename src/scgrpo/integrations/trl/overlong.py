"""Soft overlong punishment (DAPO, arXiv 2503.14476, eq. 13): a reward for length, 0 until the last stretch.

    0                                         |y| <= L_max - L_cache
    ((L_max - L_cache) - |y|) / L_cache       up to L_max, where it is -1

TRL's function computes it; L_max = max_completion_length and L_cache a share of it (the paper: 4096 of 20480). Two
things are ours:
1. it weighs one half by default, as verifiers here say 0 or 1 and the paper's -1 or 1;
2. it decides nothing by itself: it never says what is solved, and a rollout nobody else graded has no reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from trl.rewards import get_soft_overlong_punishment

NAME = "soft_overlong_punishment_reward"
WEIGHT = 0.5


def with_punishment(
    reward_funcs: Any, weights: Sequence[float] | None, frac: float, max_completion_length: int
) -> tuple[list[Any], list[float]]:
    """Reward functions and weights with the punishment as the last one.

    Args:
        reward_funcs: as GRPOTrainer takes them; weights: theirs, or one more for the punishment's own.
    """
    others = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs] * bool(reward_funcs)
    punishment = get_soft_overlong_punishment(max_completion_length, max(1, round(frac * max_completion_length)))
    weights = [1.0] * len(others) if weights is None else list(weights)
    return [*others, punishment], [*weights, WEIGHT] if len(weights) == len(others) else weights


def only_where_graded(rewards: Float[Tensor, "n funcs"], names: Sequence[str]) -> Float[Tensor, "n funcs"]:
    """NaN for the punishment of rollouts without any other reward: their length alone is nothing to train on."""
    if NAME not in names:
        return rewards
    column = torch.tensor([name == NAME for name in names], device=rewards.device)
    alone = rewards[:, ~column].isnan().all(dim=1)
    return rewards.masked_fill(alone[:, None] & column, torch.nan)
