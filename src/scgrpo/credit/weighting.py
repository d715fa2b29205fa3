"""From token_kl to credit weights (arXiv 2606.18810, section 4.1): f = D / (D + c).

`c` is a quantile of the active token_kl in a *scope*, never below a floor. Scopes are given as one id per rollout:
one id for all (the whole generation batch) or one per micro-batch (the paper's).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

WeightSign = Literal["both", "solved", "failed"]
Normalize = Literal["none", "mean_one", "centered"]


def saturating_weight(token_kl: Float[Tensor, "b t"], threshold: Float[Tensor, " b"]) -> Float[Tensor, "b t"]:
    """`f = D / (D + c)`, in [0, 1): 0 at D = 0, 1/2 at D = c, increasing in D.

    Args:
        token_kl: (B, T) nats, >= 0.
        threshold: (B,) nats, > 0, the `c` of each rollout's scope.
    """
    c = threshold[:, None]
    f = token_kl / (token_kl + c)
    # D much larger than c rounds to 1 in floating point; the weight stays below it.
    return f.clamp(max=1 - torch.finfo(f.dtype).eps)


def thresholds(
    token_kl: Float[Tensor, "b t"],
    active: Bool[Tensor, "b t"],
    scope: Int[Tensor, " b"],
    *,
    quantile: float,
    floor: float,
    fixed: float | None = None,
) -> Float[Tensor, " b"]:
    """(B,) `c = max(quantile of the active token_kl in the rollout's scope, floor)`, nats; or `fixed` everywhere.

    A scope without active tokens gets the floor (nothing is weighted there).
    """
    if fixed is not None:
        return torch.full(scope.shape, fixed, dtype=token_kl.dtype, device=token_kl.device)
    c = torch.full(scope.shape, floor, dtype=token_kl.dtype, device=token_kl.device)
    for members in scope_members(scope):
        values = token_kl[members][active[members]]
        if values.numel():
            c[members] = linear_quantile(values, quantile).clamp(min=floor)
    return c


def shape_weights(
    f: Float[Tensor, "b t"],
    active: Bool[Tensor, "b t"],
    applied: Bool[Tensor, " b"],
    scope: Int[Tensor, " b"],
    *,
    mix: float,
    normalize: Normalize,
) -> Float[Tensor, "b t"]:
    """Variants of the weight, none of which is in the paper; the defaults return `f` unchanged.

    With f_bar the mean of f over the active tokens of the scope:
        where `applied` is False, the rollout's weight is f_bar;
        `mix` m < 1:               w = m * f + (1 - m) * f_bar;
        `normalize="mean_one"`:    w / mean of w over the active tokens of the scope;
        `normalize="centered"`:    w - f_bar + 1, that is 1 + m * (f - f_bar).
    """
    if bool(applied.all()) and mix == 1 and normalize == "none":
        return f
    weights = f.clone()
    for members in scope_members(scope):
        values = f[members][active[members]]
        if not values.numel():
            continue
        mean = values.mean()
        shaped = torch.where(applied[members, None], torch.lerp(mean, f[members], mix), mean)
        new_mean = shaped[active[members]].mean()
        if normalize == "centered":
            weights[members] = shaped - mean + 1
            continue
        # A scope in which every D is 0 has no weight to normalise: it stays 0, the method's own answer.
        weights[members] = shaped / new_mean if normalize == "mean_one" and new_mean > 0 else shaped
    return weights


def annealed(value: float, step: int, steps: int) -> float:
    """`value * (1 - step / steps)`, 0 from step number `steps` on; `steps = 0`: always `value`."""
    return value * max(0.0, 1 - step / steps) if steps else value


def shuffled(
    values: Float[Tensor, "b t"], chosen: Bool[Tensor, "b t"], generator: torch.Generator
) -> Float[Tensor, "b t"]:
    """The chosen values at each other's places, by a uniform permutation drawn on the CPU."""
    picked = values[chosen]
    order = torch.randperm(len(picked), generator=generator)
    return values.masked_scatter(chosen, picked[order.to(picked.device)])


def top_tokens(values: Float[Tensor, "b t"], candidates: Bool[Tensor, "b t"], fraction: float) -> Bool[Tensor, "b t"]:
    """The `ceil(fraction * N)` of the N candidates with the largest values; ties are broken arbitrarily."""
    picked = values[candidates]
    best = torch.zeros_like(picked, dtype=torch.bool)
    # A product such as 0.2 * 15 may come out a little above a whole number.
    best[picked.topk(min(math.ceil(fraction * len(picked) - 1e-6), len(picked))).indices] = True
    return torch.zeros_like(candidates).masked_scatter(candidates, best)


def factors(base: Float[Tensor, " b"], advantages: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Weights of a method that adds to advantages: `advantages / base`, 1 where the base is 0."""
    known = base != 0
    return torch.where(known[:, None], advantages / torch.where(known, base, 1.0)[:, None], 1.0)


def linear_quantile(values: Float[Tensor, " n"], quantile: float) -> Float[Tensor, ""]:
    """Quantile with linear interpolation, as `torch.quantile`, but without its limit of 2**24 values."""
    position = quantile * (values.numel() - 1)
    low = int(position)
    lower = values.kthvalue(low + 1).values
    if position == low:
        return lower
    return torch.lerp(lower, values.kthvalue(low + 2).values, position - low)


def scope_members(scope: Int[Tensor, " b"]) -> list[Int[Tensor, " m"]]:
    """Row numbers of each scope."""
    return [(scope == index).nonzero()[:, 0] for index in scope.unique()]
