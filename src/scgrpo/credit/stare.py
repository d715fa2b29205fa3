"""STARE (arXiv 2606.19236, variant O1): surprising tokens of good rollouts count a little more while entropy is low.

    w_t = 1 + strength (1.1) for the top_fraction (10 %) of tokens of rollouts with A > 0 with the largest
          -log pi(y_t), while the mean entropy of the batch is below entropy_gate (0.3 nats); else 1

Departures from the source:
1. the gate reads the entropy of this very generation batch, over all tokens that count;
2. tokens are ranked once per generation batch, before it is trained on, not in each update;
3. the two-sided variant and the adaptive schedule of the source are left out (its defaults are without).
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


@register_credit_method("stare")
@dataclass(frozen=True)
class STARE:
    """A gated bonus for surprising tokens that went well."""

    strength: float = 0.1
    top_fraction: float = 0.1
    entropy_gate: float = 0.3  # nats

    def plan(self, groups: Groups, rng: random.Random) -> Plan:
        return unprompted_plan(groups, torch.ones_like(groups.solved))

    def assign(self, groups: Groups, plan: Plan, evidence: Evidence) -> Credit:
        logps = of_rollouts("student_logps", evidence.student_logps, groups, plan)
        entropies = of_rollouts("student_entropy", evidence.student_entropy, groups, plan)
        scored = torch.zeros_like(groups.solved)
        scored[plan.rollout] = True
        active, base = groups.mask & scored[:, None], groups.advantages
        entropy = entropies[active].mean().item() if bool(active.any()) else 0.0
        on = entropy < self.entropy_gate
        lifted = top_tokens(-logps, active & (base > 0)[:, None], self.top_fraction)
        weights = torch.where(lifted & on, 1 + self.strength, 1.0).to(base.dtype)
        metrics = {"batch_entropy": entropy, "gate": float(on), **weight_metrics(groups, active, weights)}
        return Credit(base, base[:, None] * weights, weights, partial_route(groups), metrics)

    def __post_init__(self) -> None:
        if not 0 < self.top_fraction <= 1 or not self.strength >= 0 or not self.entropy_gate >= 0:
            raise ConfigError(
                f"STARE with strength {self.strength}, top_fraction {self.top_fraction}, entropy_gate "
                f"{self.entropy_gate}.",
                "Choose strength >= 0, top_fraction in (0, 1], entropy_gate >= 0 nats.",
            )
