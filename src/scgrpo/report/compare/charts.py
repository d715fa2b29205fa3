"""Learning curves with bands, and forest plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from scgrpo.report.charts import Chart, Difference, Forest, Line
from scgrpo.report.compare.contrasts import Contrast, Family
from scgrpo.report.compare.study import Testbed
from scgrpo.report.text import shorten
from scgrpo.runs.results import RunResult
from scgrpo.stats import Floats, t_interval

Axis = Literal["step", "tokens"]
_LINES_PER_CHART = 5  # besides the reference; more cannot be told apart
_GRID = 40  # points of a curve over tokens


def learning_charts(testbed: Testbed, reference: str, axis: Axis) -> list[Chart]:
    """Mean over runs with a 95 % t band, a few methods per chart, the reference in each."""
    lines = {method: _line(testbed, method, axis) for method in testbed.methods}
    drawn = {method: line for method, line in lines.items() if line is not None}
    others = [method for method in drawn if method != reference]
    parts = [others[i : i + _LINES_PER_CHART] for i in range(0, len(others), _LINES_PER_CHART)] or [[]]
    span = _range(list(drawn.values()))
    charts = []
    for number, part in enumerate(parts, start=1):
        shown = [drawn[reference]] if reference in drawn else []
        shown = [_styled(line, -1) for line in shown] + [_styled(drawn[m], i) for i, m in enumerate(part)]
        if shown:
            which = f" ({number} of {len(parts)})" if len(parts) > 1 else ""
            x = "step" if axis == "step" else "completion tokens sampled"
            title = f"{shorten(testbed.name)}, by {axis}{which}"
            charts.append(Chart(f"{axis}-{number}", title, "Avg@k", shown, x=x, y_range=span))
    return charts


def forests(families: Sequence[Family], margin: float) -> list[Forest]:
    """A forest plot per family, all on one scale. `margin`: a difference that would matter."""
    rows = [[_difference(contrast) for contrast in family.contrasts] for family in families]
    numbers = [n for its in rows for row in its for n in row.estimate if math.isfinite(n)]
    span = min([0.0, *numbers]), max([0.0, *numbers])
    return [_forest(family, its, span, margin) for family, its in zip(families, rows, strict=True)]


def _forest(family: Family, rows: list[Difference], span: tuple[float, float], margin: float) -> Forest:
    place = "Pooled over testbeds" if family.testbed is None else shorten(family.testbed)
    reference = shorten(family.reference)
    key = f"forest-{family.testbed}-{family.reference}"
    return Forest(key, f"{place}, against {reference}", f"Avg@k minus that of {reference}", rows, span, margin)


def _difference(contrast: Contrast) -> Difference:
    d = contrast.difference
    label = contrast.method + (" †" if contrast.likeness == "unlike" else "")
    return Difference(label, (d.value, d.low, d.high), contrast.verdict != "not shown")


def _line(testbed: Testbed, method: str, axis: Axis) -> Line | None:
    curves = [curve for run in testbed.done(method).values() if len((curve := _curve(run, axis))[0]) > 1]
    grid = _grid([xs for xs, _ in curves], axis)
    if not len(grid):
        return None
    heights = np.array([np.interp(grid, xs, ys) for xs, ys in curves])
    means, lows, highs = zip(*(t_interval(column) for column in heights.T), strict=True)
    name = f"{shorten(method)}, {len(curves)} run{'s' if len(curves) > 1 else ''}"
    band = (list(lows), list(highs)) if len(curves) > 1 else (None, None)
    return Line(name, 0, [float(x) for x in grid], list(means), *band)


def _curve(run: RunResult, axis: Axis) -> tuple[list[float], list[float]]:
    points = [point for point in run.curve if point.avg_at_k is not None]
    xs = [float(point.step if axis == "step" else point.tokens_sampled) for point in points]
    return xs, [point.avg_at_k for point in points if point.avg_at_k is not None]


def _grid(curves: Sequence[Sequence[float]], axis: Axis) -> Floats:
    """Where the mean is drawn: the range that all runs cover; their own steps there, or evenly spread tokens."""
    if not curves:
        return np.zeros(0)
    first, last = max(xs[0] for xs in curves), min(xs[-1] for xs in curves)
    if not first < last:
        return np.zeros(0)
    if axis == "tokens":
        return np.linspace(first, last, _GRID)
    return np.array(sorted({x for xs in curves for x in xs if first <= x <= last}))


def _styled(line: Line, style: int) -> Line:
    return Line(line.name, style, line.steps, line.values, line.low, line.high)


def _range(lines: Sequence[Line]) -> tuple[float, float] | None:
    """Of all bands and lines: charts of one testbed compare by eye."""
    numbers = [v for line in lines for part in (line.values, line.low or [], line.high or []) for v in part]
    if not numbers:
        return None
    low, high = min(numbers), max(numbers)
    room = 0.04 * (high - low or 1.0)
    return low - room, high + room
