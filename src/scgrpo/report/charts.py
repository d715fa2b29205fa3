"""What a chart holds, by shape. figures.py and compare/charts.py make them, draw.py draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from scgrpo.report.text import number

Estimate = tuple[float, float, float]  # value, low, high; NaN where there is none


@dataclass(frozen=True)
class Entry:
    """A line of a legend. `block`: it stands for an area, not for a line."""

    name: str
    style: int
    ends: str = ""
    block: bool = False


@dataclass(frozen=True)
class Line:
    """One curve. `style` picks colour and dashes; `low`, `high` bound a band; `smooth` is a trailing mean."""

    name: str
    style: int
    steps: list[float]
    values: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    smooth: int = 1
    markers: bool = False

    @property
    def ends(self) -> str:
        """First and last value that is a number, in words."""
        known = [v for v in self.values if math.isfinite(v)]
        return f"{number(known[0])} → {number(known[-1])}" if len(known) > 1 else number(known[0] if known else None)


@dataclass(frozen=True)
class Shape:
    """What every chart has. `paper`: the figure of the paper it corresponds to; `rows`: how high it has to be."""

    key: str
    title: str
    unit: str
    note: str = field(default="", kw_only=True)
    paper: str = field(default="", kw_only=True)

    @property
    def legend(self) -> list[Entry]:
        raise NotImplementedError

    @property
    def has_data(self) -> bool:
        raise NotImplementedError

    @property
    def rows(self) -> int | None:
        """Rows of a chart that is a list; None: the usual height."""
        return None


@dataclass(frozen=True)
class Chart(Shape):
    """Some curves. `from_zero`: the axis starts there, so heights compare; `y_range`: both its ends."""

    lines: list[Line]
    log: bool = False
    from_zero: bool = False
    x: str = "step"
    y_range: tuple[float, float] | None = None

    @property
    def legend(self) -> list[Entry]:
        return [Entry(x.name, x.style, x.ends) for x in sorted(self.lines, key=lambda line: line.style)]

    @property
    def has_data(self) -> bool:
        return any(math.isfinite(v) for line in self.lines for v in line.values)


@dataclass(frozen=True)
class Bars(Shape):
    """A bar per name, stacked of the parts; `values[name]` has one number per part."""

    parts: list[str]
    values: dict[str, list[float]]

    @property
    def legend(self) -> list[Entry]:
        return [Entry(part, style, block=True) for style, part in enumerate(self.parts)]

    @property
    def has_data(self) -> bool:
        return bool(self.values)

    @property
    def rows(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Change:
    """From before to after training, of one run on one task."""

    task: str
    run: str
    style: int
    before: Estimate | None
    after: Estimate | None


@dataclass(frozen=True)
class Changes(Shape):
    """Before and after, with intervals, task by task."""

    changes: list[Change]

    @property
    def legend(self) -> list[Entry]:
        return [Entry(*known) for known in dict.fromkeys((c.run, c.style) for c in self.changes)]

    @property
    def has_data(self) -> bool:
        return bool(self.changes)

    @property
    def rows(self) -> int:
        return len(self.changes) + len({c.task for c in self.changes})


@dataclass(frozen=True)
class Difference:
    """A row of a forest plot. `is_shown`: it is told from 0."""

    label: str
    estimate: Estimate
    is_shown: bool


@dataclass(frozen=True)
class Forest(Shape):
    """Differences with intervals. `span`: of the axis, so that several plots compare; `margin`: what would matter."""

    differences: list[Difference]
    span: tuple[float, float]
    margin: float

    @property
    def legend(self) -> list[Entry]:
        return []

    @property
    def has_data(self) -> bool:
        return bool(self.differences)

    @property
    def rows(self) -> int:
        return len(self.differences)


@dataclass(frozen=True)
class Weighting(Shape):
    """Shares of tokens by D (bars between `edges`, nats, on a log axis), and over them the weight `D / (D + c)`."""

    edges: list[float]
    shares: list[float]
    c: float

    @property
    def legend(self) -> list[Entry]:
        return [Entry("share of tokens", 0, block=True), Entry("weight f = D / (D + c)", 1), Entry("c", -1)]

    @property
    def has_data(self) -> bool:
        return bool(self.shares)


def trailing_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` finite values up to each point; NaN where there is none."""
    means = []
    for end in range(1, len(values) + 1):
        recent = [v for v in values[max(0, end - window) : end] if math.isfinite(v)]
        means.append(sum(recent) / len(recent) if recent else math.nan)
    return means
