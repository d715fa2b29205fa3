"""80/20 (arXiv 2506.01939): only the tokens the policy was least sure of are trained on.

    w_t = 1 for the top_fraction of tokens with the largest entropy in the generation batch, else 0

Departures from the source:
1. tokens compete within the generation batch, over the rollouts with an advantage (the source filters the others out
   before, as DAPO does);
2. exactly `ceil(top_fraction * N)` of the N tokens are kept, where ties would let the source keep more.

TRL's own `top_entropy_quantile` does the same per micro-batch; here it is one method among others.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from scgrpo.credit.diagnostics import weight_metrics
from scgrpo.credit.methods import Credit, Evidence, Groups, Plan, of_rollouts, register_credit_method
from scgrpo.credit.routing import partial_route, unprompted_plan
from scgrpo.credit.weighting import top_tokens
from scgrpo.errors import ConfigError


@register_credit_method("entropy_mask")
@dataclass(frozen=True)
class EntropyMask:
    """Weight 1 on forking tokens, 0 elsewhere."""

    top_fraction: float = 0.2

    def plan(self, groups: Groups, rng: random.Random) -> Plan:
        return unprompted_plan(groups, groups.advantages != 0)

    def assign(self, groups: Groups, plan: Plan, evidence: Evidence) -> Credit:
        entropy = of_rollouts("student_entropy", evidence.student_entropy, groups, plan)
        scored = torch.zeros_like(groups.solved)
        scored[plan.rollout] = True
        active, base = groups.mask & scored[:, None], groups.advantages
        kept = top_tokens(entropy, active, self.top_fraction)
        weights = torch.where(scored[:, None], kept.to(base.dtype), 1.0)
        metrics = weight_metrics(groups, active, weights)
        if bool(kept.any()):
            metrics["entropy_cut"] = entropy[kept].min().item()
        return Credit(base, base[:, None] * weights, weights, partial_route(groups), metrics)

    def __post_init__(self) -> None:
        if not 0 < self.top_fraction <= 1:
            raise ConfigError(f"top_fraction is {self.top_fraction}.", "Choose one in (0, 1]: 1 is plain GRPO.")
