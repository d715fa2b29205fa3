"""One pass over a tile of logits on a GPU: each logit is read once, two exponentials per pair.

The projection stays with cuBLAS: on a Hopper GPU a Triton product loses more than fusing it with the fold would save.
Runs on a CPU under TRITON_INTERPRET=1, where the test suite checks it against `fold_plain`.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
@no_type_check
def _kernel(lead_ptr, other_ptr, out_ptr, n, width, SWAP: tl.constexpr, ENTROPY: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    row = tl.program_id(0).to(tl.int64)
    top_l = -float("inf")
    top_o = -float("inf")
    sum_l = 0.0
    sum_o = 0.0
    gap = 0.0
    mean = 0.0
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        # Lanes beyond the row are 0 in the products and -inf, that is no mass, in the sums: never -inf - -inf.
        lead = tl.load(lead_ptr + row * width + column, mask=inside, other=0.0)
        other = tl.load(other_ptr + row * width + column, mask=inside, other=0.0)
        seen_l = tl.where(inside, lead, -float("inf"))
        seen_o = tl.where(inside, other, -float("inf"))
        new_l = tl.maximum(top_l, tl.max(seen_l, axis=0))
        new_o = tl.maximum(top_o, tl.max(seen_o, axis=0))
        mass_l = tl.exp(seen_l - new_l)
        mass_o = tl.exp(seen_o - new_o)
        shrink_l = tl.exp(top_l - new_l)
        shrink_o = tl.exp(top_o - new_o)
        sum_l = sum_l * shrink_l + tl.sum(mass_l, axis=0)
        sum_o = sum_o * shrink_o + tl.sum(mass_o, axis=0)
        gap = gap * shrink_l + tl.sum(mass_l * (lead - other), axis=0)
        if ENTROPY:  # of the student: the lead of the reverse direction, the other of the forward one
            if SWAP:
                mean = mean * shrink_l + tl.sum(mass_l * lead, axis=0)
            else:
                mean = mean * shrink_o + tl.sum(mass_o * other, axis=0)
        top_l = new_l
        top_o = new_o
    lse_l = top_l + tl.log(sum_l)
    lse_o = top_o + tl.log(sum_o)
    if SWAP:
        tl.store(out_ptr + row, lse_l)
        tl.store(out_ptr + n + row, lse_o)
    else:
        tl.store(out_ptr + row, lse_o)
        tl.store(out_ptr + n + row, lse_l)
    tl.store(out_ptr + 2 * n + row, gap / sum_l)
    if ENTROPY:
        tl.store(out_ptr + 3 * n + row, mean / (sum_l if SWAP else sum_o))


def fold_triton(tile: Tensor, lead: int, entropy: bool) -> Tensor:
    """As `scgrpo.divergence.fold.fold_plain`, for a contiguous fp32 tile."""
    _, n, width = tile.shape
    out = tile.new_empty(4 if entropy else 3, n)
    block = min(1024, triton.next_power_of_2(width))
    _kernel[(n,)](
        tile[lead], tile[1 - lead], out, n, width, SWAP=lead == 0, ENTROPY=entropy, BLOCK=block, num_warps=4
    )
    return out
