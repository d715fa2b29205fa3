"""Control: a failed rollout as the demonstration. Is it the *solution*, or any attempt at this prompt?

Departures from SC-GRPO (sc_grpo.py):
1. a rollout of a partial-solve group sees a failed rollout of its group other than itself, drawn uniformly. The
   teacher's prompt does not claim that it is right, so the wording differs from SC-GRPO's too;
2. a group needs two usable failed rollouts for that, else it is left to plain GRPO. Solve-none groups are as ever.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from scgrpo.credit.methods import Groups, Plan, register_credit_method
from scgrpo.credit.routing import Route, group_members
from scgrpo.credit.sc_grpo import SCGRPO


@register_credit_method("failed")
@dataclass(frozen=True)
class FailedDemonstration(SCGRPO):
    """Demonstrations that are wrong."""

    def plan(self, groups: Groups, rng: random.Random) -> Plan:
        plan = super().plan(groups, rng)
        failed = (groups.usable & ~groups.solved).tolist()
        group, shown = groups.group.tolist(), plan.demonstration.tolist()
        for pair, (rollout, verified) in enumerate(zip(plan.rollout.tolist(), plan.verified.tolist(), strict=True)):
            if verified:  # of a partial-solve group
                others = [j for j, bad in enumerate(failed) if bad and group[j] == group[rollout] and j != rollout]
                shown[pair] = rng.choice(others)
        demonstration = torch.tensor(shown, dtype=torch.long, device=plan.rollout.device)
        return replace(plan, demonstration=demonstration, verified=torch.zeros_like(plan.verified))

    def route(self, groups: Groups) -> Int[Tensor, " b"]:
        route = super().route(groups)
        for members in group_members(groups):
            few = int((groups.usable & ~groups.solved)[members].sum()) < 2
            if few and int(route[members[0]]) == Route.PARTIAL:
                route[members] = int(Route.FALLBACK)
        return route
