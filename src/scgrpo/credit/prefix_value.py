"""Credit from the value of a prefix, read off the model's own solutions and its own certainty. Ours, not the paper's.

GRPO's baseline is one number for the whole rollout. Here each token gets its own: the outcome that was to be expected
*before* it. In units of the host's advantage A (0 = as good as the group's mean):

    A_t = sum_{l >= 0} lambda^l (v_{t+l+1} - v_{t+l}),   v = A after the last token        (lambda = 1: A_t = A - v_t)
    v_t = w . x_t

`x_t` is known before token t, so with lambda = 1 the gradient stays unbiased, whatever `v` is; a smaller lambda
blames the tokens at which `v` moved, as far as `v` can be believed. `w` is the ridge regression of A on x over the
tokens of the *other half* of the groups, so that no rollout sets its own baseline; where x says nothing v is near 0,
and this is GRPO. With s = sqrt(p (1 - p)) of the group's pass rate p, sums over the tokens before t, H the student's
entropy:

    own:            s, s * sum log pi(y), s * sum H, s * H_t                     no forward pass but the loss's own
    demonstrations: (V_t - p) / s, s * clip(L_t, -3, 3)                          K solved siblings tau_k
                    V_t = clip(p exp(L_t), 0, 1),   L_t = log mean_k exp(sum log pi(y | tau_k) - sum log pi(y))

V is Bayes' rule: `P(solves | prefix) = p P(prefix | solves) / P(prefix)`, with solved siblings in the context in the
place of "solves".

Source: this project; V, the mixture over demonstrations, is the "second lead" of its first testbeds.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scgrpo.credit.diagnostics import weight_metrics
from scgrpo.credit.methods import NONE, Credit, Evidence, Groups, Plan, register_credit_method, stack_pairs
from scgrpo.credit.routing import group_members, partial_route
from scgrpo.credit.weighting import factors
from scgrpo.errors import ConfigError

Features = Literal["both", "own", "demonstrations"]
_MAX_LOG_RATIO = 3.0  # nats; a demonstration that contradicts a prefix says no more than that


@register_credit_method("value_baseline")
@dataclass(frozen=True)
class ValueBaseline:
    """A baseline per token."""

    num_demonstrations: int = 3
    value_features: Features = "both"
    gae_lambda: float = 1.0
    shrink: float = 8.0  # rollouts; the regression is damped as if so many more had said nothing

    def plan(self, groups: Groups, rng: random.Random) -> Plan:
        shown = 0 if self.value_features == "own" else self.num_demonstrations
        return solved_siblings(groups, rng, shown)

    def assign(self, groups: Groups, plan: Plan, evidence: Evidence) -> Credit:
        base = groups.advantages
        scored = torch.zeros_like(groups.solved)
        scored[plan.rollout] = True
        active = groups.mask & scored[:, None]
        x = prefix_features(groups, plan, evidence, self.value_features)
        v = cross_fitted(x, base, active, groups, self.shrink)
        advantages = torch.where(active, generalized_advantages(base, v, active, self.gae_lambda), base[:, None])
        weights = factors(base, advantages)
        metrics = weight_metrics(groups, active, weights)
        if bool(active.any()):
            target = base[:, None].expand_as(v)[active]
            left = (target - v[active]).square().mean() / target.square().mean().clamp(min=1e-12)
            metrics["value_explained_frac"] = 1 - left.item()
        return Credit(base, advantages, weights, partial_route(groups), metrics)

    def __post_init__(self) -> None:
        if (
            self.num_demonstrations < 1
            or not 0 <= self.gae_lambda <= 1
            or not self.shrink > 0
            or self.value_features not in get_args(Features)
        ):
            raise ConfigError(
                f"value_baseline with num_demonstrations {self.num_demonstrations}, "
                f"value_features {self.value_features!r}, gae_lambda {self.gae_lambda}, shrink {self.shrink}.",
                f"Choose at least 1 demonstration, value_features from {', '.join(get_args(Features))}, "
                "gae_lambda in [0, 1], shrink above 0.",
            )


def solved_siblings(groups: Groups, rng: random.Random, most: int) -> Plan:
    """For every rollout that counts and has an advantage: up to `most` solved siblings, none of them itself; where
    there is none, the rollout alone, for what the policy itself says of it."""
    usable, solved = groups.usable.tolist(), groups.solved.tolist()
    counts = (groups.scorable & (groups.advantages != 0)).tolist()
    pairs: list[tuple[int, int]] = []
    for members in (m.tolist() for m in group_members(groups)):
        right = [j for j in members if usable[j] and solved[j]]
        for i in members:
            others = [j for j in right if j != i]
            drawn = rng.sample(others, min(most, len(others))) or [NONE]
            pairs += [(i, j) for j in drawn if counts[i]]
    table = torch.tensor(pairs, dtype=torch.long, device=groups.group.device).reshape(-1, 2)
    return Plan(table[:, 0], table[:, 1], table[:, 1] != NONE)


def prefix_features(groups: Groups, plan: Plan, evidence: Evidence, chosen: Features) -> Float[Tensor, "b t f"]:
    """(B, T, F) what is known before each token, float64; 0 for rollouts without a pair. Tokens that do not count
    (tool output) change no sum."""
    shift, there = stack_pairs("shift", evidence.teacher_logps - evidence.student_logps, groups, plan)
    logps, _ = stack_pairs("student_logps", evidence.student_logps, groups, plan)
    entropy, _ = stack_pairs("student_entropy", evidence.student_entropy, groups, plan)
    rates = pass_rates(groups)[:, None]
    spread = (rates * (1 - rates)).sqrt()
    some = there.any(dim=1)
    names: list[Tensor] = []
    if chosen != "demonstrations":
        sums = [before(x[:, 0].double() * groups.mask) if x.shape[1] else None for x in (logps, entropy)]
        here = entropy[:, 0].double() if entropy.shape[1] else None
        names += [
            spread * x for x in (torch.ones_like(groups.mask, dtype=torch.float64), *sums, here) if x is not None
        ]
    if chosen != "own" and shift.shape[1]:
        ratio = before(shift.double() * groups.mask[:, None]).masked_fill(~there[..., None], -math.inf).logsumexp(1)
        ratio = torch.where(some[:, None], ratio - there.sum(1, keepdim=True).clamp(min=1).double().log(), 0.0)
        value = (rates * ratio.clamp(max=50).exp()).clamp(0, 1)
        names += [(value - rates) / spread.clamp(min=1e-3), spread * ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)]
    if not names:
        return torch.zeros(*groups.mask.shape, 0, dtype=torch.float64, device=groups.mask.device)
    return torch.stack(names, dim=-1) * some[:, None, None]


def cross_fitted(
    x: Float[Tensor, "b t f"],
    target: Float[Tensor, " b"],
    active: Bool[Tensor, "b t"],
    groups: Groups,
    shrink: float,
) -> Float[Tensor, "b t"]:
    """(B, T) `w . x`, with `w` from the groups of the other half; 0 where that half has no active token.

    `w = argmin sum over active tokens (target - w . x)^2 + shrink * tokens per rollout * sum_f m_f w_f^2`, with m_f
    the mean square of feature f: the tokens of a rollout share one outcome, so what damps is counted in rollouts.
    """
    order = torch.unique(groups.group[active.any(1)])
    half = torch.searchsorted(order, groups.group) % 2
    y = target.double()[:, None].expand_as(active)
    v = torch.zeros_like(y)
    for fold in (0, 1):
        learn, apply = active & (half != fold)[:, None], active & (half == fold)[:, None]
        if not bool(learn.any()) or not bool(apply.any()):
            continue
        a, length = x[learn], learn.sum() / learn.any(1).sum()
        damping = shrink * length * a.square().mean(0).clamp(min=1e-12)
        w = torch.linalg.solve(a.T @ a + torch.diag(damping), a.T @ y[learn])
        v[apply] = x[apply] @ w
    return v.to(target.dtype)


def generalized_advantages(
    target: Float[Tensor, " b"], v: Float[Tensor, "b t"], active: Bool[Tensor, "b t"], gae_lambda: float
) -> Float[Tensor, "b t"]:
    """(B, T) GAE(lambda) without discount, the outcome `target` after the last active token; 0 where not active."""
    if gae_lambda == 1:
        return (target[:, None] - v) * active
    advantages, ahead, following = torch.zeros_like(v), torch.zeros_like(target), target
    for t in reversed(range(v.shape[1])):
        on = active[:, t]
        ahead = torch.where(on, following - v[:, t] + gae_lambda * ahead, ahead)
        following = torch.where(on, v[:, t], following)
        advantages[:, t] = ahead * on
    return advantages


def pass_rates(groups: Groups) -> Float[Tensor, " b"]:
    """(B,) share of solved rollouts among the graded ones of each rollout's group, float64."""
    rates = torch.zeros_like(groups.group, dtype=torch.float64)
    for members in group_members(groups):
        rates[members] = groups.solved[members].sum().double() / groups.graded[members].sum().clamp(min=1)
    return rates


def before(x: Float[Tensor, "*b t"]) -> Float[Tensor, "*b t"]:
    """Sums over the tokens before each one."""
    return x.cumsum(-1) - x
