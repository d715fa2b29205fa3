"""Summaries of learning curves."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from scgrpo.errors import ShapeError
from scgrpo.stats.student import Floats


def area_under_curve(x: ArrayLike, y: ArrayLike, until: float | None = None) -> Floats:
    """Mean height of a curve of straight lines: the trapezoid area over `[x_0, until]`, divided by its length.

    Args:
        x: [points], ascending; steps, or tokens.
        y: [..., points], in the unit of the result.
        until: where to stop, the curve being cut there; default: its end. Curves compare over the same range.

    Returns:
        [...]; NaN where there is no such range: fewer than two points, a curve that ends before `until`, or no
        length.

    Raises:
        ShapeError: lengths differ, or x does not ascend.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if xs.ndim != 1 or xs.shape != ys.shape[-1:] or bool((np.diff(xs) < 0).any()):
        raise ShapeError(
            f"A curve of {xs.shape} points and {ys.shape} heights.", "Give ascending x, and a y for each."
        )
    end = until if until is not None else float(xs[-1]) if len(xs) else math.nan
    if len(xs) < 2 or not xs[0] < end <= xs[-1]:
        return np.full(ys.shape[:-1], math.nan)
    after = int(np.searchsorted(xs, end))  # x[after - 1] < end <= x[after]
    part = (end - xs[after - 1]) / (xs[after] - xs[after - 1])
    last = ys[..., after - 1] + part * (ys[..., after] - ys[..., after - 1])
    xs, ys = np.append(xs[:after], end), np.concatenate([ys[..., :after], last[..., None]], axis=-1)
    return np.asarray((np.diff(xs) * (ys[..., 1:] + ys[..., :-1]) / 2).sum(-1) / (end - xs[0]))
