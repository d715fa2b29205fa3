"""Control: the credit of someone who knows. How much could any weight gain here?

Where the host knows the first error of a failed rollout, at token k of the T that count:

    w_t = u_t / mean_t u_t,   u_k = 1, u_t = 1 - strength elsewhere       (mean one per rollout)

Everything else has weight 1: solved rollouts, failed ones whose first error is not known (or lies outside the mask).

Source: the testbeds of this project (strength 0.85); no paper. Advantages are the host's, of all groups.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import torch

from scgrpo.credit.diagnostics import weight_metrics
from scgrpo.credit.methods import Credit, Evidence, Groups, Plan, register_credit_method
from scgrpo.credit.routing import partial_route, unprompted_plan
from scgrpo.errors import ConfigError


@register_credit_method("oracle")
@dataclass(frozen=True)
class Oracle:
    """Failed rollouts are blamed at their first error."""

    strength: float = 0.85
    needs_first_error: ClassVar[bool] = True

    def plan(self, groups: Groups, rng: random.Random) -> Plan:
        # Nothing has to be measured, but a host leaves advantages alone where nothing is planned.
        return unprompted_plan(groups, self.known(groups))

    def assign(self, groups: Groups, plan: Plan, evidence: Evidence) -> Credit:
        known = self.known(groups)
        base = groups.advantages
        weights = torch.ones_like(groups.mask, dtype=base.dtype)
        if groups.first_error is not None and bool(known.any()):
            places = torch.arange(groups.mask.shape[1], device=base.device)
            blamed = places == groups.first_error[:, None]
            u = torch.where(blamed, 1.0, 1 - self.strength).to(base.dtype)
            mean = (u * groups.mask).sum(1) / groups.mask.sum(1).clamp(min=1)
            weights = torch.where(known[:, None], u / mean[:, None], weights)
        metrics = {
            "first_error_known_frac": known.sum().item() / max(1, int((groups.graded & ~groups.solved).sum())),
            **weight_metrics(groups, groups.mask & known[:, None], weights),
        }
        return Credit(base, base[:, None] * weights, weights, partial_route(groups), metrics)

    def known(self, groups: Groups) -> torch.Tensor:
        """(B,) failed rollouts whose first error is one of the tokens that count."""
        if groups.first_error is None:
            raise ConfigError(
                "Oracle credit needs to know where failed rollouts go wrong, and the host does not tell.",
                "Give the reward function an attribute `first_error` (a token position per rollout, -1: unknown), or "
                "choose another credit method.",
            )
        place = groups.first_error.clamp(0, groups.mask.shape[1] - 1)
        inside = (groups.first_error >= 0) & (groups.first_error < groups.mask.shape[1])
        inside &= groups.mask.gather(1, place[:, None])[:, 0]
        return inside & groups.graded & ~groups.solved & (groups.advantages != 0)

    def __post_init__(self) -> None:
        if not 0 <= self.strength < 1:
            raise ConfigError(f"strength is {self.strength}.", "Choose one in [0, 1): 0 is uniform credit.")
