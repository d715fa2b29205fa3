"""Control: SC-GRPO's weights at the wrong tokens. Is it *where* the weight falls, or that it is uneven?

`w'_i = w_i` permuted uniformly over the tokens of rollout i that count. Each rollout keeps the multiset of its
weights, so their mean and spread too; only their places are lost.

Departures from SC-GRPO (sc_grpo.py):
1. the places; routes, thresholds and the pseudo-advantages of solve-none groups are SC-GRPO's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from scgrpo.credit.methods import Credit, Evidence, Groups, Plan, register_credit_method
from scgrpo.credit.sc_grpo import SCGRPO
from scgrpo.credit.weighting import shuffled


@register_credit_method("permuted")
@dataclass(frozen=True)
class Permuted(SCGRPO):
    """Weights permuted within each rollout, anew at each step."""

    seed: int = 0

    def assign(self, groups: Groups, plan: Plan, evidence: Evidence) -> Credit:
        credit = super().assign(groups, plan, evidence)
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + groups.step)
        rows = [shuffled(w[None], m[None], generator) for w, m in zip(credit.weights, groups.mask, strict=True)]
        weights = torch.cat(rows)
        return replace(credit, weights=weights, advantages=credit.base[:, None] * weights)
