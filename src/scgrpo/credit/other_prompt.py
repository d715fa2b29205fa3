"""Control: a demonstration from another prompt. Is it *this* solution, or any text in the context?

Departures from SC-GRPO (sc_grpo.py):
1. a rollout of a partial-solve group sees a solved rollout of another group, drawn uniformly; those of a solve-none
   group see one unsolved rollout of another group. Wording, routes and weights are SC-GRPO's own;
2. where no other group has such a rollout, the rollout is not scored: weight 1 (`demonstration_frac` falls).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from scgrpo.credit.methods import Groups, Plan, register_credit_method
from scgrpo.credit.sc_grpo import SCGRPO


@register_credit_method("other_prompt")
@dataclass(frozen=True)
class OtherPrompt(SCGRPO):
    """Demonstrations that answer another prompt."""

    def plan(self, groups: Groups, rng: random.Random) -> Plan:
        plan = super().plan(groups, rng)
        group, solved = groups.group.tolist(), groups.solved.tolist()
        usable = [row for row, fit in enumerate(groups.usable.tolist()) if fit]
        # All rollouts of a solve-none group are shown the same one: its length enters their common score.
        common: dict[int, int] = {}
        kept, shown = [], []
        for pair, (rollout, verified) in enumerate(zip(plan.rollout.tolist(), plan.verified.tolist(), strict=True)):
            own = group[rollout]
            others = [row for row in usable if group[row] != own and solved[row] == verified]
            if not others:
                continue
            kept.append(pair)
            shown.append(rng.choice(others) if verified else common.setdefault(own, rng.choice(others)))
        demonstration = torch.tensor(shown, dtype=torch.long, device=plan.rollout.device)
        return Plan(plan.rollout[kept], demonstration, plan.verified[kept])
