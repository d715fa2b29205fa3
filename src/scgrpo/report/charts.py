"""Which curves are drawn, from which numbers. Drawing is in curves.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from scgrpo.report.text import number
from scgrpo.report.view import RunView

_SMOOTH_FROM = 40  # points; a shorter curve is readable as it is


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
class Chart:
    """A small picture of some curves. `from_zero`: the axis starts there, so heights compare; `y_range`: its ends."""

    key: str
    title: str
    unit: str
    lines: list[Line]
    log: bool = False
    from_zero: bool = False
    note: str = ""
    x: str = "step"
    y_range: tuple[float, float] | None = None


@dataclass
class Charts:
    """All charts of a report, and what could not be drawn."""

    drawn: list[Chart] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add(self, chart: Chart) -> None:
        if any(math.isfinite(v) for line in chart.lines for v in line.values):
            self.drawn.append(chart)
        else:
            self.missing.append(chart.title)


def build_charts(main: RunView, others: Sequence[RunView]) -> Charts:
    """Charts of a run; those that compare show the runs beside it too."""
    views = [main, *others]
    charts = Charts()
    charts.add(_compare("reward", "Reward in training", "mean reward", views, "reward"))
    for task, k in main.benchmarks():
        for key, title in (("avg_at_k", f"Avg@{k}"), ("pass_at_k", f"Pass@{k}")):
            lines = [_held_out(view, (task, k), key, style) for style, view in enumerate(views)]
            lines = [line for line in lines if line.steps]
            note = "Bands and bars: 95 % intervals over problems."
            charts.add(Chart(f"{key}-{task}-{k}", f"Held-out {title}, {task}", "fraction", lines, note=note))
    if not main.benchmarks():
        charts.missing += ["Held-out Avg@k", "Held-out Pass@k"]
    charts.add(_compare("entropy", "Entropy of the policy", "nats per token", views, "entropy"))
    charts.add(
        _compare("length", "Completion length", "tokens, mean", views, "completions/mean_length", from_zero=True)
    )
    charts.add(_token_kl(main))
    charts.add(_weights(main))
    charts.add(_routes(main))
    charts.add(_compare("step_time", "Time per step", "seconds", views, "step_time", from_zero=True))
    return charts


def _compare(
    key: str, title: str, unit: str, views: Sequence[RunView], metric: str, *, from_zero: bool = False
) -> Chart:
    lines = []
    for style, view in enumerate(views):
        steps, values = view.series(metric)
        if steps:
            lines.append(Line(view.label, style, steps, values, smooth=_window(len(steps))))
    widest = max((line.smooth for line in lines), default=1)
    note = f"Thick: trailing mean over {widest} logged steps." if widest > 1 else ""
    return Chart(key, title, unit, lines, from_zero=from_zero, note=note)


def _held_out(view: RunView, benchmark: tuple[str, int], key: str, style: int) -> Line:
    records = [r for r in view.evals_of(benchmark) if isinstance(r.get(key), dict)]

    def of(bound: str) -> list[float]:
        return [math.nan if r[key].get(bound) is None else float(r[key][bound]) for r in records]

    steps = [float(r["step"]) for r in records]
    return Line(view.label, style, steps, of("value"), of("low"), of("high"), markers=True)


def _token_kl(view: RunView) -> Chart:
    def line(name: str, style: int, metric: str) -> Line:
        steps, values = view.series(f"credit/{metric}")
        return Line(name, style, steps, values)

    middle = line("p50", 0, "token_kl_p50")
    low, high = (dict(zip(*view.series(f"credit/token_kl_{p}"), strict=True)) for p in ("p25", "p75"))
    middle = Line(
        "p50 (band: p25 to p75)",
        0,
        middle.steps,
        middle.values,
        [low.get(step, math.nan) for step in middle.steps],
        [high.get(step, math.nan) for step in middle.steps],
    )
    lines = [
        line("max", 3, "token_kl_max"),
        line("p95", 2, "token_kl_p95"),
        line("p90", 1, "token_kl_p90"),
        line("threshold c", -1, "threshold"),
        middle,
    ]
    return Chart(
        "token_kl", "token_kl, D", "nats, log scale", [x for x in lines if x.steps], log=True, note=_alone(view)
    )


def _weights(view: RunView) -> Chart:
    names = (("all", "weight_mean"), ("solved", "weight_mean_solved"), ("failed", "weight_mean_failed"))
    lines = [Line(name, i, *view.series(f"credit/{metric}")) for i, (name, metric) in enumerate(names)]
    lines = [line for line in lines if line.steps]
    return Chart("weights", "Mean credit weight", "f, weighted tokens", lines, from_zero=True, note=_alone(view))


def _routes(view: RunView) -> Chart:
    names = (("partial solve", "partial"), ("none solved", "none_solved"), ("fallback (plain GRPO)", "fallback"))
    lines = [Line(name, i, *view.series(f"credit/route_{route}_frac")) for i, (name, route) in enumerate(names)]
    lines = [Line(x.name, x.style, x.steps, x.values, smooth=_window(len(x.steps))) for x in lines if x.steps]
    return Chart("routes", "Routes", "share of rollouts", lines, from_zero=True, note=_alone(view))


def _alone(view: RunView) -> str:
    return f"{view.label} only."


def _window(num_points: int) -> int:
    return 1 if num_points < _SMOOTH_FROM else max(2, round(num_points / 20))


def trailing_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` finite values up to each point; NaN where there is none."""
    means = []
    for end in range(1, len(values) + 1):
        recent = [v for v in values[max(0, end - window) : end] if math.isfinite(v)]
        means.append(sum(recent) / len(recent) if recent else math.nan)
    return means
