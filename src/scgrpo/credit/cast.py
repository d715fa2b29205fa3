"""CAST (arXiv 2606.00172): an earlier self as the teacher, without any demonstration.

    g_t = log pi_snapshot(y_t) - log pi(y_t)                 (the policy's own prompt on both sides)
    B   = A in mixed groups, +1 where all are solved, -1 where none is
    w_t = exp(sign(B) g_t), clipped to [0.8, 1.05] where B > 0 and to [0.95, 1.2] where B < 0
    A_t = B (1 + strength (w_t - 1)); where g opposes B, sign(B) g_t < -margin, its sign is turned and |A_t| <= 1.2

Needs a teacher that lags behind (`teacher_weights="snapshot"`): with the policy's own weights g is 0.

Departures from the source, whose wording leaves room:
1. which of the two clips belongs to which sign of B, the bound of turned advantages, and `strength` = 1 are our
   reading; `flip=False` leaves all signs as they are;
2. `margin` is ours: right after the snapshot g is rounding noise, which must not turn anything.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from scgrpo.credit.diagnostics import weight_metrics
from scgrpo.credit.methods import Credit, Evidence, Groups, Plan, of_rollouts, register_credit_method
from scgrpo.credit.routing import group_members, partial_route, unprompted_plan
from scgrpo.credit.weighting import factors
from scgrpo.errors import ConfigError

_CLIPS = {True: (0.8, 1.05), False: (0.95, 1.2)}  # B > 0, B < 0
_BOUND = 1.2


@register_credit_method("cast")
@dataclass(frozen=True)
class CAST:
    """Self-teaching with clipped weights and turned signs."""

    strength: float = 1.0
    flip: bool = True
    margin: float = 0.05  # nats
    teachers: ClassVar[tuple[str, ...]] = ("snapshot", "ema", "frozen")

    def plan(self, groups: Groups, rng: random.Random) -> Plan:
        return unprompted_plan(groups, signed_base(groups) != 0)

    def assign(self, groups: Groups, plan: Plan, evidence: Evidence) -> Credit:
        g = of_rollouts("shift", evidence.teacher_logps - evidence.student_logps, groups, plan)
        base, scored = signed_base(groups), torch.zeros_like(groups.solved)
        scored[plan.rollout] = True
        agreement, positive = base.sign()[:, None] * g, (base > 0)[:, None]
        w = torch.where(positive, agreement.exp().clamp(*_CLIPS[True]), agreement.exp().clamp(*_CLIPS[False]))
        shaped = base[:, None] * (1 + self.strength * (w - 1)).to(base.dtype)
        turned = groups.mask & (agreement < -self.margin) & self.flip
        advantages = torch.where(turned, (-shaped).clamp(-_BOUND, _BOUND), shaped)
        active, weights = groups.mask & scored[:, None], factors(base, advantages)
        metrics = {
            "turned_token_frac": turned.sum().item() / max(1, int(active.sum())),
            **weight_metrics(groups, active, weights),
        }
        return Credit(base, advantages, weights, partial_route(groups), metrics)

    def __post_init__(self) -> None:
        if not self.strength >= 0 or not self.margin >= 0:
            raise ConfigError(f"CAST with strength {self.strength}, margin {self.margin}.", "Choose both >= 0.")


def signed_base(groups: Groups) -> Float[Tensor, " b"]:
    """(B,) the host's advantages; where a whole group has none, +1 if all of it is solved and -1 if nothing is."""
    base = groups.advantages.clone()
    for members in group_members(groups):
        graded, solved = groups.graded[members], groups.solved[members]
        if bool(groups.advantages[members].any()):
            continue
        sign = 1.0 if bool(solved[graded].all()) else 0.0 if bool(solved.any()) else -1.0
        base[members] = torch.where(graded, sign, 0.0).to(base.dtype)
    return base
