"""RLCSD's contrast (arXiv 2606.11709) as a drop-in for SC-GRPO's weight.

    f = D_c / (D_c + c),   D_c = KL( pi_T(. | wrong) || pi_T(. | correct) ),   c as in SC-GRPO

Where a wrong and a correct sibling make the teacher say the same, the token is routine.

Departures from SC-GRPO (sc_grpo.py):
1. D_c instead of D for rollouts of partial-solve groups, which need two usable failed rollouts too (else plain GRPO);
   both siblings are shown in the wording that claims nothing. Solve-none groups are as ever.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch

from scgrpo.credit.failed_demonstration import FailedDemonstration
from scgrpo.credit.methods import NONE, Groups, Plan, register_credit_method
from scgrpo.credit.routing import Route


@register_credit_method("rlcsd_weight")
@dataclass(frozen=True)
class RLCSDWeight(FailedDemonstration):
    """SC-GRPO's weight from a wrong demonstration against a correct one."""

    def plan(self, groups: Groups, rng: random.Random) -> Plan:
        plan = super().plan(groups, rng)
        right, group = (groups.usable & groups.solved).tolist(), groups.group.tolist()
        partial = (self.route(groups) == Route.PARTIAL).tolist()
        contrast = [
            rng.choice([j for j, good in enumerate(right) if good and group[j] == group[i] and j != i])
            if partial[i]
            else NONE
            for i in plan.rollout.tolist()
        ]
        return replace(plan, contrast=torch.tensor(contrast, dtype=torch.long, device=plan.rollout.device))
