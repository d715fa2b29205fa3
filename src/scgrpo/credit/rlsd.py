"""RLSD (arXiv 2604.03128): a token's step has its sign from the verifier, its size from a teacher with a solution.

    w_t = clip(exp(sign(A) * Delta_t), 1 - clip, 1 + clip),   Delta_t = log pi_T(y_t) - log pi_S(y_t)
    A_t = A * ((1 - lambda) + lambda * w_t),                   lambda: strength 0.5 -> 0 over 50 optimizer steps

The teacher is a snapshot of the policy, renewed every 10 steps (`teacher_weights="snapshot"`).

Departures from the source:
1. the teacher sees a solved rollout of the same group (never the rollout itself) instead of a reference solution;
2. so groups with fewer than two usable solved rollouts keep their advantages.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import torch

from scgrpo.credit.diagnostics import weight_metrics
from scgrpo.credit.methods import Credit, Evidence, Groups, Plan, of_rollouts, register_credit_method
from scgrpo.credit.routing import choose_demonstrations, partial_route
from scgrpo.credit.weighting import annealed
from scgrpo.errors import ConfigError


@register_credit_method("rlsd")
@dataclass(frozen=True)
class RLSD:
    """Weights from the sampled token's log-ratio, clipped around 1."""

    strength: float = 0.5
    anneal_steps: int = 50  # optimizer steps until plain GRPO; 0 = never
    clip: float = 0.2
    teachers: ClassVar[tuple[str, ...]] = ("snapshot", "ema", "frozen")

    def plan(self, groups: Groups, rng: random.Random) -> Plan:
        return choose_demonstrations(groups, partial_route(groups), rng)

    def assign(self, groups: Groups, plan: Plan, evidence: Evidence) -> Credit:
        # 0 for rollouts without a pair: their weight is 1.
        delta = of_rollouts("shift", evidence.teacher_logps - evidence.student_logps, groups, plan)
        base = groups.advantages
        w = (base.sign()[:, None] * delta).exp().clamp(1 - self.clip, 1 + self.clip)
        strength = annealed(self.strength, groups.step, self.anneal_steps)
        weights = (1 + strength * (w - 1)).to(base.dtype)
        scored = torch.zeros_like(groups.solved)
        scored[plan.rollout] = True
        metrics = {"strength": strength, **weight_metrics(groups, groups.mask & scored[:, None], weights)}
        return Credit(base, base[:, None] * weights, weights, partial_route(groups), metrics)

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1 or not 0 < self.clip < 1 or self.anneal_steps < 0:
            raise ConfigError(
                f"RLSD with strength {self.strength}, clip {self.clip}, anneal_steps {self.anneal_steps}.",
                "Choose strength in [0, 1], clip in (0, 1), anneal_steps >= 0 (0 = no annealing).",
            )
