"""Reward functions that fail: broken is not wrong."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scgrpo.errors import NonFiniteError, ScgrpoError, VerifierError

logger = logging.getLogger(__name__)


def guarded(reward_func: Any) -> Any:
    """A reward function whose exception costs only the rollouts that cause it.

    When a batch raises, it is graded again one rollout at a time; those that raise get None (no verdict: TRL leaves
    them out of the group's baseline and gives them advantage 0). Reward models, coroutines and names of models pass
    through unchanged. A verifier that *hangs* cannot be stopped from inside its process: put it behind
    `scgrpo.tasks.pool.VerifierPool`.

    Raises:
        VerifierError: every rollout of the batch raised: the function itself is broken.
    """
    if isinstance(reward_func, (str, nn.Module)) or inspect.iscoroutinefunction(reward_func):
        return reward_func
    name = getattr(reward_func, "__name__", type(reward_func).__name__)

    @functools.wraps(reward_func)
    def graded(prompts: list, completions: list, **kwargs: Any) -> list[float | None]:
        try:
            return reward_func(prompts=prompts, completions=completions, **kwargs)
        except ScgrpoError:  # it has already been dealt with rollout by rollout
            raise
        except Exception as error:  # noqa: BLE001 (a user's function may raise anything)
            logger.warning("Reward function %r raised %r; grading its batch one by one.", name, error)
            rewards, last = _one_by_one(reward_func, prompts, completions, kwargs)
        if last is not None and all(reward is None for reward in rewards):
            raise VerifierError(
                f"Reward function {name!r} raised on each of {len(prompts)} rollouts, last with {last!r}.",
                "Nothing was trained on it. Call the function on one row of your data to see why.",
            ) from last
        return rewards

    if not hasattr(reward_func, "__name__"):
        graded.__name__ = name
    return graded


def _one_by_one(
    reward_func: Callable[..., list], prompts: list, completions: list, kwargs: dict[str, Any]
) -> tuple[list[float | None], Exception | None]:
    rewards: list[float | None] = []
    last: Exception | None = None
    for row in range(len(prompts)):
        # Columns are lists with one value per rollout; the rest (state, loggers) is shared.
        own = {
            key: [value[row]] if isinstance(value, list) and len(value) == len(prompts) else value
            for key, value in kwargs.items()
        }
        try:
            rewards += reward_func(prompts=[prompts[row]], completions=[completions[row]], **own)
        except Exception as error:  # noqa: BLE001
            rewards.append(None)
            last = error
    return rewards, last


def finds_first_errors(reward_func: Any) -> bool:
    """Whether a reward function tells where failed rollouts go wrong: it has an attribute `first_error`."""
    return hasattr(inspect.unwrap(reward_func), "first_error")


def first_errors(reward_func: Any, rollouts: int) -> list[int] | None:
    """Token positions of the first errors in the rollouts graded last, -1 where there is none; None if the reward
    function does not tell. All unknown if it was not called on just these rollouts (some were graded one by one)."""
    if not finds_first_errors(reward_func):
        return None
    found = list(inspect.unwrap(reward_func).first_error)
    if len(found) != rollouts:
        return [-1] * rollouts
    return [-1 if position is None else int(position) for position in found]


def exclude_ungraded(
    rewards: Float[Tensor, "n funcs"], success: int, num_generations: int, names: list[str]
) -> Float[Tensor, "n funcs"]:
    """Rewards (N, functions) of contiguous groups, with NaN in every column of a rollout that has no verdict.

    TRL sums the functions that did answer, which would count a failed verification as reward 0. A whole group
    without verdicts is left alone: there, the verifier does not apply (a mixture of tasks).

    Raises:
        NonFiniteError: an infinite reward.
    """
    if bool(torch.isinf(rewards).any()):
        row, column = torch.isinf(rewards).nonzero()[0].tolist()
        raise NonFiniteError(
            f"Reward function {names[column]!r} returned {rewards[row, column].item()} for rollout {row}.",
            "Return a finite number, or None for a rollout that cannot be graded.",
        )
    missing = rewards[:, success].isnan().view(-1, num_generations)
    excluded = (missing & ~missing.all(dim=1, keepdim=True)).flatten()
    return rewards.masked_fill(excluded[:, None], torch.nan) if bool(excluded.any()) else rewards
