"""GSPO in its token form (arXiv 2507.18071, eq. 13 and 14): a ratio per sequence that lets tokens keep their weights.

    s_t = sg[s] * pi_t / sg[pi_t],    s = exp(mean_t log(pi_t / pi_old_t)),    sg = without gradient

Its value is the sequence's ratio, its gradient the token's. With TRL's `importance_sampling_level="sequence"` value
and gradient are the sequence's, and of advantages per token only the mean is left.

TRL's token-level loss takes `exp(logps - old_logps)` for a ratio. Handed the right `old_logps`, which are constants,
it computes the token form; nothing of the loss is copied. Their values are those of `s` up to the rounding of a
log-prob (about 1e-6 in fp32).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor

LEVEL = "sequence_token"
# Those whose ratio is the one above; vespo and luspo make sequence ratios of their own.
LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo")
_OLD = "old_per_token_logps"


def anchors(
    logps: Float[Tensor, "b t"], old_logps: Float[Tensor, "b t"], mask: Float[Tensor, "b t"]
) -> Float[Tensor, "b t"]:
    """Old log-probs under which every token's ratio has the value of its sequence's: `sg[logps] - log s`."""
    logps = logps.detach()
    mean = ((logps - old_logps) * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return logps - mean


def anchor(inputs: dict[str, Any], logps: Tensor) -> None:
    """Put anchors in the inputs of a loss whose log-probs have just been computed.

    Without old log-probs the rollouts are those of the policy itself: every ratio is 1, as TRL has it already.
    """
    if _OLD in inputs:
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        inputs[_OLD] = anchors(logps, inputs[_OLD], mask.to(logps.dtype))


@contextmanager
def old_logps_kept(inputs: dict[str, Any]) -> Iterator[None]:
    """The inputs are used again by later passes over the batch: put back what `anchor` replaces."""
    old = inputs.get(_OLD)
    try:
        yield
    finally:
        if old is not None:
            inputs[_OLD] = old
