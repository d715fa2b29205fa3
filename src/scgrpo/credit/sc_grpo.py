"""SC-GRPO: learning from own solutions, with credit per token (arXiv 2606.18810). START HERE.

A group of G rollouts answers one prompt; n_c of them are verified as solved. Per token, D is how far the model's
own prediction moves when one of its own rollouts, the *demonstration*, stands in its context; f = D / (D + c) says
how much of the answer's advantage that token gets. `f >= 0` and carries no gradient, so GRPO with per-token
advantages `f * A` is the whole method: no loss is copied.

Where the paper is silent, or we differ (full table in docs/method.md):
1. the threshold's scope is the whole generation batch (the paper's micro-batch: `scope="micro_batch"`);
2. one threshold serves partial-solve and solve-none groups;
3. in a solve-none group the mean and standard deviation of the diversity scores are over the scored rollouts,
   and the demonstration itself gets advantage 0;
4. `normalize`, `weight_sign`, `mix`, `anneal_steps`, `fixed_threshold`, `demonstrations` and `routes` are ours;
   their defaults are the paper's method.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scgrpo.credit.diagnostics import credit_metrics
from scgrpo.credit.methods import Credit, Evidence, Groups, Plan, of_rollouts, register_credit_method
from scgrpo.credit.routing import Demonstrations, Route, Routes, choose_demonstrations, group_members, route_groups
from scgrpo.credit.weighting import Normalize, WeightSign, annealed, saturating_weight, shape_weights, thresholds
from scgrpo.errors import ConfigError

Scope = Literal["generation_batch", "micro_batch"]


# [method]
@register_credit_method("sc_grpo")
@dataclass(frozen=True)
class SCGRPO:
    """Self-conditioned credit assignment."""

    quantile: float = 0.75  # c is this quantile of the active D ...
    floor: float = 1e-4  # ... and never below this many nats
    fixed_threshold: float | None = None  # nats: c is this instead
    scope: Scope = "generation_batch"
    alpha: float = 0.1  # size of the diversity pseudo-advantage of solve-none groups
    normalize: Normalize = "none"
    weight_sign: WeightSign = "both"
    mix: float = 1.0
    anneal_steps: int = 0  # optimizer steps over which `mix` falls to 0; 0 = it stays
    demonstrations: Demonstrations = "uniform"
    routes: Routes = "partial"

    def plan(self, groups: Groups, rng: random.Random) -> Plan:
        return choose_demonstrations(groups, self.route(groups), rng, self.demonstrations)

    def assign(self, groups: Groups, plan: Plan, evidence: Evidence) -> Credit:
        route = self.route(groups)
        token_kl = of_rollouts("token_kl", evidence.token_kl, groups, plan)
        scored = torch.zeros_like(groups.solved)
        scored[plan.rollout] = True
        active = groups.mask & scored[:, None]

        scope = groups.micro_batch if self.scope == "micro_batch" else torch.zeros_like(groups.group)
        c = thresholds(token_kl, active, scope, quantile=self.quantile, floor=self.floor, fixed=self.fixed_threshold)
        f = saturating_weight(token_kl, c)
        base = torch.where(route == Route.NONE_SOLVED, self.diversity(groups, plan, f), groups.advantages)

        mix = annealed(self.mix, groups.step, self.anneal_steps)
        shaped = shape_weights(f, active, self.applied(groups), scope, mix=mix, normalize=self.normalize)
        weights = torch.where(scored[:, None], shaped.to(base.dtype), 1.0)
        metrics = credit_metrics(groups, plan, route, token_kl, active, weights, c)
        return Credit(base, base[:, None] * weights, weights, route, metrics)

    def diversity(self, groups: Groups, plan: Plan, f: Float[Tensor, "b t"]) -> Float[Tensor, " b"]:
        """Solve-none groups have no advantage; reward departing from the demonstration `r` instead:
        `s_i = mean_{t <= min(|o_i|, |o_r|)} f_it`, pseudo-advantage `alpha * (s_i - mean s) / (std s + 1e-6)`."""
        advantages = torch.zeros_like(groups.advantages)
        for rows, shown in unsolved_pairs(groups, plan):
            length = torch.minimum(groups.lengths[rows], groups.lengths[shown])
            early = groups.mask[rows] & (torch.arange(f.shape[1], device=f.device) < length[:, None])
            # In float64, as 1 / (std + 1e-6) magnifies rounding; on the CPU, as not every accelerator has float64.
            score = (f[rows] * early).cpu().double().sum(1) / early.sum(1).clamp(min=1).cpu()
            if len(rows) > 1:  # a single score departs from nothing: 0
                advantages[rows] = self.alpha * ((score - score.mean()) / (score.std() + 1e-6)).to(advantages)
        return advantages

    def route(self, groups: Groups) -> Int[Tensor, " b"]:
        """`n_c = 0`: solve-none, `2 <= n_c < G`: partial-solve, else plain GRPO; without diversity only partial."""
        route = route_groups(groups, self.routes)
        return route if self.alpha > 0 else route.masked_fill(route == Route.NONE_SOLVED, int(Route.FALLBACK))

    # [/method]
    @property
    def needs_past(self) -> bool:
        """Whether demonstrations may be solutions of earlier batches."""
        return self.demonstrations == "buffer"

    def applied(self, groups: Groups) -> Tensor:
        """(B,) rollouts that get their own weight; the others get the mean weight."""
        if self.weight_sign == "both":
            return torch.ones_like(groups.solved)
        return groups.solved if self.weight_sign == "solved" else ~groups.solved

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.quantile <= 1:
            problems.append(f"quantile is {self.quantile}: choose one in [0, 1].")
        if not self.floor > 0:
            problems.append(f"floor is {self.floor} nats: it must be > 0, or D = 0 everywhere divides by zero.")
        if not self.alpha >= 0:
            problems.append(f"alpha is {self.alpha}: it must be >= 0 (0 switches the diversity term off).")
        if not 0 <= self.mix <= 1:
            problems.append(f"mix is {self.mix}: choose one in [0, 1] (1 = the paper's weight).")
        if self.fixed_threshold is not None and not self.fixed_threshold > 0:
            problems.append(f"fixed_threshold is {self.fixed_threshold} nats: choose one > 0, or leave it out.")
        if self.anneal_steps < 0:
            problems.append(f"anneal_steps is {self.anneal_steps}: choose a number of steps, or 0 for none.")
        for name, value, known in (
            ("scope", self.scope, get_args(Scope)),
            ("normalize", self.normalize, get_args(Normalize)),
            ("weight_sign", self.weight_sign, get_args(WeightSign)),
            ("demonstrations", self.demonstrations, get_args(Demonstrations)),
            ("routes", self.routes, get_args(Routes)),
        ):
            if value not in known:
                problems.append(f"{name} is {value!r}: choose one of {', '.join(known)}.")
        if problems:
            raise ConfigError("SC-GRPO cannot work with these settings:", " ".join(problems))


def unsolved_pairs(groups: Groups, plan: Plan) -> list[tuple[Int[Tensor, " m"], Int[Tensor, ""]]]:
    """(scored rows, their common demonstration) of every solve-none group."""
    group_of = groups.group[plan.rollout]
    pairs = []
    for members in group_members(groups):
        mine = (group_of == groups.group[members[0]]) & ~plan.verified
        if bool(mine.any()):
            pairs.append((plan.rollout[mine], plan.demonstration[mine][0]))
    return pairs
