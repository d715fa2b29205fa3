"""REINFORCE++ (arXiv 2501.03262): no group baseline; returns per token, whitened over the whole batch.

    R_t = sum_{s >= t} reward_s,    A_t = (R_t - mean R) / std R    over all tokens of the batch

The host's token rewards hold the outcome at the last token and, where it is configured so, the KL penalty
`-beta * (log pi_old - log pi_ref)` at every one. Without a penalty the returns of a rollout are all its outcome.

Departures: 1. mean and variance are those of the tokens the loss counts of rollouts that have a reward, the variance
at least 1e-8 as in the authors' OpenRLHF; 2. no discount (theirs is 1).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scgrpo.credit.methods import Credit, Evidence, Groups, Plan, register_credit_method
from scgrpo.credit.routing import route_groups
from scgrpo.errors import ConfigError

_MIN_VARIANCE = 1e-8


@register_credit_method("reinforce++")
@dataclass(frozen=True)
class ReinforcePlusPlus:
    """Whitened token returns in place of the host's group advantages; nothing is re-scored."""

    needs_rewards: ClassVar[bool] = True  # of the host: `Groups.rewards`

    def plan(self, groups: Groups, rng: random.Random) -> Plan:
        none = groups.group.new_empty(0)
        return Plan(rollout=none, demonstration=none, verified=none.bool())

    def assign(self, groups: Groups, plan: Plan, evidence: Evidence) -> Credit:
        if groups.rewards is None:
            raise ConfigError("REINFORCE++ needs the rewards.", "Use a host that fills in Groups.rewards.")
        counted = groups.mask & ~groups.rewards.isnan()
        advantages = whitened(returns(groups.rewards, counted), counted).to(groups.advantages)
        base = advantages.sum(dim=1) / counted.sum(dim=1).clamp(min=1)
        return Credit(base, advantages, torch.ones_like(advantages), route_groups(groups), {})


def returns(rewards: Float[Tensor, "b t"], counted: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Sum of the rewards of a token and those after it, in float64 on the CPU; 0 where nothing is counted."""
    # On the CPU, as not every accelerator has float64: equal rewards must not differ by rounding, see `whitened`.
    kept = rewards.masked_fill(~counted, 0).cpu().double()
    return kept.flip(1).cumsum(1).flip(1) * counted.cpu()


def whitened(values: Float[Tensor, "b t"], counted: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Values with mean 0 and variance 1 over the counted tokens of all rows; 0 elsewhere."""
    counted = counted.to(values.device)
    number = counted.sum().clamp(min=1)
    centred = (values - (values * counted).sum() / number) * counted
    variance = centred.square().sum() / number
    return centred * variance.clamp(min=_MIN_VARIANCE).rsqrt()
