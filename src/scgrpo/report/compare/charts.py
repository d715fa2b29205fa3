"""Learning curves with bands, and forest plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from scgrpo.report.charts import Chart, Line
from scgrpo.report.compare.contrasts import Family
from scgrpo.report.compare.study import Testbed
from scgrpo.report.curves import COLOURS, FAINT, INK, Panel, draw_chart, few_ticks
from scgrpo.runs.results import RunResult
from scgrpo.stats import Floats, t_interval

Axis = Literal["step", "tokens"]
_LINES_PER_CHART = 5  # besides the reference; more cannot be told apart
_GRID = 40  # points of a curve over tokens
_LONGEST = 34  # characters of a name in a picture


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


def forest_rows(family: Family) -> Forest:
    """The contrasts of a family as a forest plot."""
    place = "Pooled over testbeds" if family.testbed is None else shorten(family.testbed)
    title = f"{place}, against {shorten(family.reference)}"
    rows = [
        _Row(
            shorten(c.method) + (" †" if c.likeness == "unlike" else ""),
            c.difference.value,
            c.difference.low,
            c.difference.high,
            c.verdict != "not shown",
        )
        for c in family.contrasts
    ]
    return Forest(title, f"Avg@k minus that of {shorten(family.reference)}", rows)


def panels(charts: Sequence[Chart]) -> list[Panel]:
    """Learning curves for a picture of its own."""
    return [Panel(chart.title, partial(draw_chart, chart=chart), legend="below", size=(4.3, 3.4)) for chart in charts]


@dataclass(frozen=True)
class _Row:
    label: str
    value: float
    low: float
    high: float
    is_shown: bool


@dataclass(frozen=True)
class Forest:
    """Differences with intervals, one row per method. Filled: shown."""

    title: str
    x: str
    rows: list[_Row]

    @property
    def size(self) -> tuple[float, float]:
        """Inches."""
        return 4.3, 0.75 + 0.2 * len(self.rows)

    def span(self) -> tuple[float, float]:
        """Smallest and largest number drawn, 0 among them."""
        numbers = [n for row in self.rows for n in (row.low, row.value, row.high) if math.isfinite(n)]
        return min([0.0, *numbers]), max([0.0, *numbers])

    def draw(self, axes: Any, span: tuple[float, float], margin: float) -> None:
        """Into these axes. `span`: of the x axis, so that several plots compare; `margin`: what would matter."""
        axes.axvspan(-margin, margin, color=FAINT, alpha=0.35, linewidth=0)
        axes.axvline(0, color=INK, linewidth=0.8)
        for y, row in enumerate(self.rows):
            colour = COLOURS[0] if row.is_shown else INK
            if math.isfinite(row.low):
                axes.plot([row.low, row.high], [y, y], color=colour, linewidth=1.4)
            if math.isfinite(row.value):
                face = colour if row.is_shown else "none"
                axes.plot([row.value], [y], marker="s", markersize=4.5, color=colour, markerfacecolor=face)
        axes.set_yticks(range(len(self.rows)), [row.label for row in self.rows])
        axes.set_ylim(len(self.rows) - 0.4, -0.6)
        room = 0.04 * (span[1] - span[0] or 1.0)
        axes.set_xlim(span[0] - room, span[1] + room)
        axes.set_xlabel(self.x)
        axes.grid(axis="x", linewidth=0.5)
        axes.tick_params(length=2)
        few_ticks(axes)


def shorten(name: str) -> str:
    """A name short enough for a picture: its middle left out."""
    half = (_LONGEST - 1) // 2
    return name if len(name) <= _LONGEST else f"{name[:half]}…{name[-half:]}"


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
