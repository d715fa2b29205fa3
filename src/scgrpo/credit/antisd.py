"""AntiSD (arXiv 2605.11609): away from a teacher who has seen a solution, as it likes what the solution implies and
dislikes deliberation.

    A_t = A - strength / 2 * (softplus(Delta_t) - log 2),   Delta_t = log pi_T(y_t) - log pi_S(y_t)

`log 2 - softplus(Delta)` is the student's side of the Jensen-Shannon divergence that is ascended; the term is 0 where
both agree and at most `strength / 2 * log 2`. It is switched off while the teacher's mean entropy is below
`entropy_gate` nats.

Departures from the source:
1. the teacher sees a solved rollout of the same group; groups with fewer than two usable ones keep their advantages;
2. the teacher's entropy is estimated from the sampled tokens, `sum r (-log pi_T) / sum r` with `r = exp(Delta)`, as
   evidence holds the student's only;
3. the values of `strength` and `entropy_gate` are ours.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from scgrpo.credit.diagnostics import weight_metrics
from scgrpo.credit.methods import Credit, Evidence, Groups, Plan, of_rollouts, register_credit_method
from scgrpo.credit.routing import choose_demonstrations, partial_route
from scgrpo.credit.weighting import factors
from scgrpo.errors import ConfigError


@register_credit_method("antisd")
@dataclass(frozen=True)
class AntiSD:
    """Advantages with a bounded bonus for what the teacher would not have said."""

    strength: float = 1.0
    entropy_gate: float = 0.1  # nats

    def plan(self, groups: Groups, rng: random.Random) -> Plan:
        return choose_demonstrations(groups, partial_route(groups), rng)

    def assign(self, groups: Groups, plan: Plan, evidence: Evidence) -> Credit:
        teacher = of_rollouts("teacher_logps", evidence.teacher_logps, groups, plan)
        student = of_rollouts("student_logps", evidence.student_logps, groups, plan)
        scored = torch.zeros_like(groups.solved)
        scored[plan.rollout] = True
        active, delta, base = groups.mask & scored[:, None], teacher - student, groups.advantages
        entropy = teacher_entropy(teacher, delta, active)
        on = self.strength if entropy >= self.entropy_gate else 0.0
        bonus = on / 2 * (math.log(2) - softplus(delta))
        advantages = torch.where(active, base[:, None] + bonus.to(base.dtype), base[:, None])
        weights = factors(base, advantages)
        metrics = {"teacher_entropy": entropy, "gate": float(on > 0), **weight_metrics(groups, active, weights)}
        return Credit(base, advantages, weights, partial_route(groups), metrics)

    def __post_init__(self) -> None:
        if not self.strength >= 0 or not self.entropy_gate >= 0:
            raise ConfigError(
                f"AntiSD with strength {self.strength}, entropy_gate {self.entropy_gate}.",
                "Choose both >= 0 (entropy_gate=0: always on).",
            )


def teacher_entropy(
    teacher_logps: Float[Tensor, "b t"], delta: Float[Tensor, "b t"], active: Bool[Tensor, "b t"]
) -> float:
    """Mean entropy of the teacher over the active tokens, nats: importance-weighted, as the student sampled them."""
    if not bool(active.any()):
        return 0.0
    share = delta[active].softmax(0)  # r / sum r
    return float(-(share * teacher_logps[active]).sum())
