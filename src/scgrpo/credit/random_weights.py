"""Control: random weights with the histogram of SC-GRPO's. Does it matter which rollout and token gets a weight?

All weights of scored tokens in the generation batch are permuted uniformly among them: the histogram stays, and
nothing ties a weight to its token, its rollout or its group any more.

Departures from SC-GRPO (sc_grpo.py):
1. the places; routes, thresholds and the pseudo-advantages of solve-none groups are SC-GRPO's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from scgrpo.credit.diagnostics import weight_metrics
from scgrpo.credit.methods import Credit, Evidence, Groups, Plan, register_credit_method
from scgrpo.credit.sc_grpo import SCGRPO
from scgrpo.credit.weighting import shuffled


@register_credit_method("random")
@dataclass(frozen=True)
class RandomWeights(SCGRPO):
    """Weights permuted over the whole generation batch, anew at each step."""

    seed: int = 0

    def assign(self, groups: Groups, plan: Plan, evidence: Evidence) -> Credit:
        credit = super().assign(groups, plan, evidence)
        scored = torch.zeros_like(groups.solved)
        scored[plan.rollout] = True
        active = groups.mask & scored[:, None]
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + groups.step)
        weights = shuffled(credit.weights, active, generator)
        metrics = {**credit.metrics, **weight_metrics(groups, active, weights)}
        return replace(credit, weights=weights, advantages=credit.base[:, None] * weights, metrics=metrics)
