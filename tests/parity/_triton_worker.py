"""Run by test_triton_fold.py with TRITON_INTERPRET=1, which must be set before Triton is imported: `worker.py FILE`.

Saves what the kernel makes of each case, with the case.
"""

from __future__ import annotations

import sys
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scgrpo.divergence import OutputHead, token_evidence
from scgrpo.divergence.backends import Fold

# (rows, width): one word, widths that are no power of two, a whole block of the kernel, and more than one.
SHAPES = [(1, 1), (3, 2), (1, 1000), (2, 1024), (4, 1025), (40, 77), (3, 3000)]
LEADS, ENTROPY = (0, 1), (False, True)
BROKEN_ROW = 2


def make_tile(rows: int, width: int, extreme: bool) -> Tensor:
    """Logits (2, rows, width). Extreme ones are 1e4 apart, and sorted, so that the running maximum jumps: upwards in
    even rows, in odd rows the largest come first."""
    generator = torch.Generator().manual_seed(rows * 10_000 + width)
    if not extreme:
        return 4 * torch.randn(2, rows, width, generator=generator)
    tile = (1e4 * torch.randint(-1, 2, (2, rows, width), generator=generator)).sort(-1).values
    tile[:, 1::2] = tile[:, 1::2].flip(-1)
    return tile


def folds(fold_triton: Fold) -> dict[str, Any]:
    found = {}
    # The interpreter computes with NumPy: finite logits may not take a difference of infinities anywhere.
    with np.errstate(invalid="raise", divide="raise", over="raise"):
        for (rows, width), extreme in product(SHAPES, (False, True)):
            tile = make_tile(rows, width, extreme)
            for lead, entropy in product(LEADS, ENTROPY):
                found[f"{rows}-{width}-{extreme}-{lead}-{entropy}"] = fold_triton(tile.clone(), lead, entropy)
    return found


def broken_rows(fold_triton: Fold) -> dict[str, Any]:
    """One logit of one row is not finite, in the first block of the kernel or in the second."""
    found = {}
    for value, side, column in product((float("nan"), float("inf"), -float("inf")), (0, 1), (0, 1024)):
        tile = make_tile(4, 1025, extreme=False)
        tile[side, BROKEN_ROW, column] = value
        with np.errstate(all="ignore"):
            found[f"{value}-{side}-{column}"] = [fold_triton(tile.clone(), lead, entropy=True) for lead in LEADS]
    return found


def evidence_case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, OutputHead]:
    """Hidden states, tokens and a head with everything a head can have."""
    generator = torch.Generator().manual_seed(0)
    student, weight = (torch.randn(k, 8, generator=generator).to(dtype) for k in (11, 101))
    teacher = student + 0.5 * torch.randn(11, 8, generator=generator).to(dtype)
    tokens = torch.randint(0, 101, (11,), generator=generator)
    bias = torch.linspace(-1, 1, 101, dtype=dtype)
    return student, teacher, tokens, OutputHead(weight, bias, scale=1.3, softcap=3.0, temperature=0.7)


def evidence() -> dict[str, Any]:
    found = {}
    for dtype, direction in product((torch.float32, torch.bfloat16), ("forward", "reverse")):
        tiles = {"tokens_per_tile": 4, "words_per_tile": 30}
        values = token_evidence(*evidence_case(dtype), direction=direction, backend="triton", **tiles)
        found[f"{dtype}-{direction}"] = vars(values)
    return found


if __name__ == "__main__":
    from scgrpo.divergence.triton_fold import fold_triton

    found = {"folds": folds(fold_triton), "broken": broken_rows(fold_triton), "evidence": evidence()}
    torch.save(found, sys.argv[1])
