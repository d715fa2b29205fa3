"""Summaries of learning curves."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from scgrpo.errors import ShapeError


def area_under_curve(x: ArrayLike, y: ArrayLike, until: float | None = None) -> float:
    """Mean height of a curve of straight lines: the trapezoid area over `[x_0, until]`, divided by its length.

    Args:
        x: ascending; steps, or tokens.
        y: same length, in the unit of the result.
        until: where to stop, the curve being cut there; default: its end. Curves compare over the same range.

    Returns:
        NaN where there is no such range: fewer than two points, a curve that ends before `until`, or no length.

    Raises:
        ShapeError: lengths differ, or x does not ascend.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if xs.shape != ys.shape or xs.ndim != 1 or bool((np.diff(xs) < 0).any()):
        raise ShapeError(
            f"A curve of {xs.shape} points and {ys.shape} heights.", "Give ascending x, and a y for each."
        )
    if len(xs) < 2:
        return math.nan
    end = float(xs[-1]) if until is None else until
    if not xs[0] < end <= xs[-1]:
        return math.nan
    kept = xs < end
    xs, ys = np.append(xs[kept], end), np.append(ys[kept], np.interp(end, xs, ys))
    return float((np.diff(xs) * (ys[1:] + ys[:-1]) / 2).sum() / (end - xs[0]))
