"""Rows without a gradient need no forward: `SCGRPOConfig(drop_zero_advantages=True)`.

A row whose advantages are all 0 adds 0 to every loss TRL has and nothing to the gradient; it only counts in the
denominators. Dropped, its share of the denominator comes back as a factor, so loss and gradient stay what they were
(up to rounding). What the log says about a micro-batch (entropy, clipping) is then about the rows that were kept.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def kept_rows(inputs: dict[str, Any], mask: Tensor) -> Tensor:
    """(B,) rows with a gradient; the first one if there is none, as every process must run its forward."""
    advantages = inputs["advantages"]
    counted = advantages[:, None] * mask if advantages.dim() == 1 else advantages * mask
    kept = counted.ne(0).any(dim=1)
    if not bool(kept.any()):
        kept[0] = True
    return kept


def drop_rows(inputs: dict[str, Any], loss_type: str) -> tuple[dict[str, Any], float]:
    """The micro-batch without rows of zero advantage and without the padding only they needed, and the factor that
    gives the loss of the whole."""
    mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    kept = kept_rows(inputs, mask)
    rows = len(kept)
    if bool(kept.all()):
        return inputs, 1.0
    longest = int(inputs["completion_mask"][kept].sum(1).max())
    width = inputs["completion_mask"].shape[1]
    smaller = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows:
            value = value[kept]
            if value.dim() == 2 and value.shape[1] == width and not name.startswith("prompt"):
                value = value[:, : max(longest, 1)]
        smaller[name] = value
    if loss_type in ("grpo", "sapo", "dr_grpo"):
        return smaller, int(kept.sum()) / rows
    if loss_type == "bnpo":
        return smaller, float(mask[kept].sum() / mask.sum().clamp(min=1))
    return smaller, 1.0  # dapo, cispo, vespo: the denominator is that of the generation batch


def check_droppable(args: Any, aux_loss: bool) -> list[str]:
    """Settings under which a row of zero advantage has a gradient, or its tokens count for the others."""
    problems = []
    if args.beta != 0:
        problems.append("drop_zero_advantages with beta > 0: the KL to the reference has a gradient in every row.")
    if args.top_entropy_quantile < 1:
        problems.append("drop_zero_advantages with top_entropy_quantile < 1: the quantile is over all rows.")
    if aux_loss:
        problems.append("drop_zero_advantages with a load-balancing loss: every row has its gradient.")
    return problems
