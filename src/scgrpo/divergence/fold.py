"""From a tile of logits to a few numbers per token, and how the numbers of several tiles combine.

Statistics are a tensor of 3 or 4 rows, one column per token. With l the logits, p the student's and q the teacher's
distribution *within the words covered*:

    0  logsumexp of the student's logits
    1  logsumexp of the teacher's logits
    2  E_lead[l_lead - l_other], where lead is the distribution the divergence is an expectation under
    3  E_p[l_p], only where the entropy is wanted

They combine by weighting each part with its share of the probability: associatively, so that tiles, shards of the
vocabulary and processes are all the same to `combine`. Three folds give the same statistics: `fold_plain` is the
definition (and what `torch.compile` fuses), `fold_eager` the same in few passes, `triton_fold` a GPU kernel.
"""

from __future__ import annotations

import math
from typing import no_type_check

import torch
from torch import Tensor

STUDENT, TEACHER = 0, 1

LOG2E = 1 / math.log(2)
# Elements per block of `fold_eager` on a CPU: two operands and a scratch of this size stay near the core. Elsewhere
# the tile is one block, as each block costs launches.
BLOCK = 1 << 18


@no_type_check  # no run-time type checks inside compiled code
def fold_plain(tile: Tensor, lead: int, entropy: bool) -> Tensor:
    """(3 or 4, n) statistics of logits (2, n, w)."""
    top = tile.amax(-1)
    # exp2, because Inductor stores any exp that is used twice to memory; the argument is <= 0, so nothing overflows.
    mass = [torch.exp2((tile[side] - top[side, :, None]) * LOG2E) for side in (STUDENT, TEACHER)]
    total = [part.sum(-1) for part in mass]
    gap = (mass[lead] * (tile[lead] - tile[1 - lead])).sum(-1) / total[lead]
    rows = [top[STUDENT] + total[STUDENT].log(), top[TEACHER] + total[TEACHER].log(), gap]
    if entropy:
        rows.append((mass[STUDENT] * tile[STUDENT]).sum(-1) / total[STUDENT])
    return torch.stack(rows)


def fold_eager(tile: Tensor, lead: int, entropy: bool) -> Tensor:
    """As `fold_plain`, block by block within a core's cache; overwrites the tile.

    PyTorch's softmax is one fused pass. Its largest entry is 1 / sum e^(l - max), which gives the logsumexp back.
    """
    _, n, width = tile.shape
    out = tile.new_empty(4 if entropy else 3, n)
    other = 1 - lead
    step = max(1, BLOCK // width if tile.device.type == "cpu" else n)
    scratch = tile.new_empty(min(step, n), width)
    for start in range(0, n, step):
        block, rows = tile[:, start : start + step], out[:, start : start + step]
        probs = scratch[: block.shape[1]]
        for side in (other, lead):
            logits = block[side]
            torch.softmax(logits, -1, out=probs)
            torch.sub(logits.amax(-1), probs.amax(-1).log_(), out=rows[side])
            if entropy and side == STUDENT:
                _mean(probs, logits, rows[3], spare=None)
            if side == other:
                torch.sub(block[lead], logits, out=logits)  # the gap takes the place of the other's logits
        _mean(probs, block[other], rows[2], spare=block[other])
    return out


def _mean(probs: Tensor, values: Tensor, out: Tensor, spare: Tensor | None) -> None:
    products = torch.mul(probs, values, out=spare)
    torch.sum(products, -1, out=out)


def combine(parts: Tensor, lead: int) -> Tensor:
    """(k, n) statistics of the union of parts (m, k, n) that cover different words."""
    share = parts[:, :2].softmax(0)  # sums to 1 however large the logits, so means stay means
    owners = [lead, STUDENT][: parts.shape[1] - 2]
    return torch.cat([parts[:, :2].logsumexp(0), (share[:, owners] * parts[:, 2:]).sum(0)])
