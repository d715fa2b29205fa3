"""What a credit assignment looked like: the numbers behind `credit/...` in the logs."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from scgrpo.credit.methods import Groups, Plan
from scgrpo.credit.routing import Route
from scgrpo.credit.weighting import linear_quantile

_PERCENTILES = (25, 50, 75, 90, 95)


def route_metrics(groups: Groups, route: Int[Tensor, " b"]) -> dict[str, float]:
    """Share of rollouts on each route, and of rollouts without a verdict."""
    shares = {f"route_{r.name.lower()}_frac": (route == r).float().mean().item() for r in Route}
    return {**shares, "ungraded_frac": (~groups.graded).float().mean().item()}


def credit_metrics(
    groups: Groups,
    plan: Plan,
    route: Int[Tensor, " b"],
    token_kl: Float[Tensor, "b t"],
    active: Bool[Tensor, "b t"],
    weights: Float[Tensor, "b t"],
    threshold: Float[Tensor, " b"],
) -> dict[str, float]:
    """Metrics of one generation batch. Those over active tokens are left out when there are none.

    token_kl_p*, token_kl_max, threshold: nats (threshold: mean over rollouts with active tokens).
    weight_mean[_solved|_failed]: mean credit weight of active tokens.
    effective_token_frac: `(sum w)^2 / (N sum w^2)`, the share of the N active tokens that carry the credit;
        1 = spread evenly.
    """
    metrics = route_metrics(groups, route) | {"demonstration_frac": len(plan) / max(1, len(groups.group))}
    if not bool(active.any()):
        return metrics
    d = token_kl[active]
    metrics |= {f"token_kl_p{p}": linear_quantile(d, p / 100).item() for p in _PERCENTILES}
    metrics |= {
        "token_kl_max": d.max().item(),
        "threshold": threshold[active.any(dim=1)].mean().item(),
    }
    return metrics | weight_metrics(groups, active, weights)


def weight_metrics(groups: Groups, active: Bool[Tensor, "b t"], weights: Float[Tensor, "b t"]) -> dict[str, float]:
    """Those of `credit_metrics` that are about the weights; none without active tokens."""
    if not bool(active.any()):
        return {}
    w = weights[active]
    metrics = {
        "weight_mean": w.mean().item(),
        "effective_token_frac": (w.mean().square() / w.square().mean().clamp(min=1e-30)).item(),
    }
    for name, rows in (("solved", groups.solved), ("failed", ~groups.solved)):
        of_rows = active & rows[:, None]
        if bool(of_rows.any()):
            metrics[f"weight_mean_{name}"] = weights[of_rows].mean().item()
    return metrics
