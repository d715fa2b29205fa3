"""Draws one chart into matplotlib axes."""

from __future__ import annotations

import itertools
import math
from typing import Any

from scgrpo.report.charts import Bars, Change, Changes, Chart, Forest, Line, Shape, Weighting, trailing_mean
from scgrpo.report.text import shorten

# Drawn in these colours; in the page each becomes a CSS variable, so that it can follow a dark theme.
INK, FAINT = "#1d2329", "#c9ced4"
COLOURS = ("#1f5fa8", "#b4500a", "#2a7446", "#86398b", "#6f6200", "#9c2b3a")
DASHES = ("solid", "dashed", "dashdot", "dotted")
RC = {
    "font.family": "sans-serif",
    "font.size": 8.0,
    "text.parse_math": False,  # a run called "$x$" is a name, not a formula
    "svg.fonttype": "none",
    "svg.hashsalt": "scgrpo",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "grid.color": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_SIZE = (4.3, 2.5)  # inches
_ROW = 0.3  # inches, of a chart that is a list
_SMALLEST_D = 1e-6  # nats; the log axis ends here, zeros are drawn on it


def size(chart: Shape) -> tuple[float, float]:
    """Width and height, inches."""
    return _SIZE if chart.rows is None else (_SIZE[0], min(6.0, max(1.5, 0.8 + _ROW * chart.rows)))


def line_style(style: int) -> tuple[str, str]:
    """(colour, dashes) of a line; -1 is the ink of the text, dashed."""
    if style < 0:
        return INK, "dashed"
    return COLOURS[style % len(COLOURS)], DASHES[style % len(DASHES)]


def draw(axes: Any, chart: Shape) -> None:
    """Draw a chart of any shape, without title and legend."""
    axes.tick_params(length=2)
    match chart:
        case Chart():
            _curves(axes, chart)
        case Bars():
            _bars(axes, chart)
        case Changes():
            _changes(axes, chart)
        case Forest():
            _forest(axes, chart)
        case Weighting():
            _weighting(axes, chart)
        case _:
            raise TypeError(f"no drawing for a {type(chart).__name__}")


def _curves(axes: Any, chart: Chart) -> None:
    if chart.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
    for line in chart.lines:
        _line(axes, line, floor=_SMALLEST_D if chart.log else None)
    if chart.from_zero:
        axes.set_ylim(bottom=0)
    if chart.y_range is not None:
        axes.set_ylim(*chart.y_range)
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.unit)
    axes.grid(axis="y", linewidth=0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if chart.x != "step":
        _few_ticks(axes)
        axes.xaxis.set_major_formatter("{x:,.0f}")


def _line(axes: Any, line: Line, floor: float | None) -> None:
    def shown(values: list[float]) -> list[float]:
        return values if floor is None else [max(v, floor) if v == v else v for v in values]

    colour, dashes = line_style(line.style)
    smoothed = shown(trailing_mean(line.values, line.smooth))
    if line.smooth > 1:
        axes.plot(line.steps, shown(line.values), color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(
        line.steps,
        smoothed,
        color=colour,
        linestyle=dashes,
        linewidth=1.5,
        marker="o" if line.markers or len(line.steps) == 1 else None,
        markersize=3.5,
        label=line.name,
    )
    if line.low is not None and line.high is not None:
        low, high = shown(line.low), shown(line.high)
        axes.fill_between(line.steps, low, high, color=colour, alpha=0.15, linewidth=0)
        if line.markers:
            axes.vlines(line.steps, low, high, color=colour, linewidth=1)


def _bars(axes: Any, chart: Bars) -> None:
    places = range(len(chart.values))
    left = [0.0] * len(chart.values)
    for index, part in enumerate(chart.parts):
        widths = [values[index] for values in chart.values.values()]
        axes.barh(places, widths, left=left, height=0.6, color=line_style(index)[0], label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(places, [shorten(name) for name in chart.values])
    axes.invert_yaxis()
    axes.set_xlabel(chart.unit)
    axes.grid(axis="x", linewidth=0.5)
    axes.set_axisbelow(True)


def _changes(axes: Any, chart: Changes) -> None:
    tasks = list(dict.fromkeys(change.task for change in chart.changes))
    place, ticks, named = 0.0, list[float](), set[str]()
    for task in tasks:
        own = [change for change in chart.changes if change.task == task]
        ticks.append(place + (len(own) - 1) / 2)
        for change in own:
            _change(axes, change, place, label=None if change.run in named else change.run)
            named.add(change.run)
            place += 1
        place += 1
    axes.set_yticks(ticks, [shorten(task) for task in tasks])
    axes.set_ylim(place - 1.3, -0.7)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(chart.unit)
    axes.grid(axis="x", linewidth=0.5)
    axes.set_axisbelow(True)


def _change(axes: Any, change: Change, place: float, label: str | None) -> None:
    """Before a little above after, as their intervals may overlap."""
    colour, dashes = line_style(change.style)
    ends = [(change.before, place - 0.2, "none"), (change.after, place + 0.2, colour)]
    known = [(end[0], y) for end, y, _ in ends if end is not None]
    axes.plot(*zip(*known, strict=True), color=colour, linestyle=dashes, linewidth=1.2, alpha=0.7, label=label)
    for end, y, face in ends:
        if end is not None:
            value, low, high = end
            axes.hlines(y, low, high, color=colour, linewidth=1)
            axes.plot([value], [y], "o", color=colour, markerfacecolor=face, markersize=4)


def _forest(axes: Any, chart: Forest) -> None:
    """Filled: shown. Grey: within the margin."""
    axes.axvspan(-chart.margin, chart.margin, color=FAINT, alpha=0.35, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    for y, row in enumerate(chart.differences):
        value, low, high = row.estimate
        colour, face = (COLOURS[0], COLOURS[0]) if row.is_shown else (INK, "none")
        axes.hlines(y, low, high, color=colour, linewidth=1.4)
        axes.plot([value], [y], "s", color=colour, markerfacecolor=face, markersize=4.5)
    axes.set_yticks(range(len(chart.differences)), [shorten(row.label) for row in chart.differences])
    axes.set_ylim(len(chart.differences) - 0.4, -0.6)
    low, high = chart.span
    room = 0.04 * (high - low or 1.0)
    axes.set_xlim(low - room, high + room)
    axes.set_xlabel(chart.unit)
    axes.grid(axis="x", linewidth=0.5)
    _few_ticks(axes)


def _few_ticks(axes: Any) -> None:
    """An x axis of long numbers, none of which overlap."""
    axes.xaxis.get_major_locator().set_params(nbins=5, prune="upper")


def _weighting(axes: Any, chart: Weighting) -> None:
    filled = [index for index, share in enumerate(chart.shares) if share > 0]
    last = max([*(chart.edges[index + 1] for index in filled), 10 * chart.c])
    edges, shares = chart.edges, chart.shares
    axes.set_xscale("log")
    axes.set_xlim(edges[0], last)
    widths = [b - a for a, b in itertools.pairwise(edges)]
    look = {"color": COLOURS[0], "alpha": 0.35, "linewidth": 0, "label": "share of tokens"}
    axes.bar(edges[:-1], shares, widths, align="edge", **look)
    axes.set_xlabel(chart.unit)
    axes.set_ylabel("share of tokens")
    weight = axes.twinx()
    weight.spines["right"].set_visible(True)
    weight.tick_params(length=2)
    points = [edges[0] * (last / edges[0]) ** (i / 80) for i in range(81)]
    colour, dashes = line_style(1)
    weight.plot(
        points, [d / (d + chart.c) for d in points], color=colour, linestyle=dashes, linewidth=1.5, label="weight f"
    )
    weight.axvline(chart.c, color=INK, linestyle="dashed", linewidth=0.8, label="c")
    weight.set_ylim(0, 1)
    weight.set_ylabel("weight f")
    decades = range(math.ceil(math.log10(edges[0]) - 1e-9), math.floor(math.log10(last)) + 1)
    shown = [10.0**e for e in decades if e % 2 == 0]
    axes.set_xticks(shown, [f"≤ {shown[0]:g}", *(f"{tick:g}" for tick in shown[1:])])  # the first bin takes the rest
    axes.set_xticks([], minor=True)
