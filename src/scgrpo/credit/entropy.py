"""Control: the student's entropy as the weight. Is a demonstration needed to find the decisions?

    f = H / (H + c),   H = the entropy of pi(. | x, y_<t) in nats,   c = max(quantile of the active H, floor)

Departures from SC-GRPO (sc_grpo.py):
1. H instead of D everywhere, in the threshold and in the diversity score too. Routes are SC-GRPO's, so that the same
   rollouts are weighted;
2. rollouts of partial-solve groups see no demonstration, which saves the teacher's pass. Those of solve-none groups
   keep theirs, as its length enters their score (`alpha=0` does without).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from scgrpo.credit.methods import NONE, Credit, Evidence, Groups, Plan, register_credit_method
from scgrpo.credit.sc_grpo import SCGRPO


@register_credit_method("entropy")
@dataclass(frozen=True)
class Entropy(SCGRPO):
    """Weights by the student's own uncertainty."""

    def plan(self, groups: Groups, rng: random.Random) -> Plan:
        plan = super().plan(groups, rng)
        return replace(plan, demonstration=plan.demonstration.masked_fill(plan.verified, NONE))

    def assign(self, groups: Groups, plan: Plan, evidence: Evidence) -> Credit:
        # Rounding can leave the entropy of a certain token a little below 0.
        uncertainty = evidence.student_entropy.detach().clamp(min=0)
        credit = super().assign(groups, plan, replace(evidence, token_kl=uncertainty))
        metrics = {name.replace("token_kl", "student_entropy"): value for name, value in credit.metrics.items()}
        return replace(credit, metrics=metrics)
