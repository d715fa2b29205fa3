"""Which charts a run gets, from which numbers, and what would have to be set for those it lacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from scgrpo.report import paper
from scgrpo.report.charts import Bars, Change, Changes, Chart, Estimate, Line, Shape, Weighting
from scgrpo.report.recorded import EDGES, NEAR_ZERO, Recorded, Spread
from scgrpo.report.text import number
from scgrpo.report.timing import PARTS, step_time
from scgrpo.report.view import Benchmark, RunView

_SMOOTH_FROM = 40  # points; a shorter curve is readable as it is

_LOGGED = "every run of scgrpo train logs it (logging_steps)."
_EVALUATED = "set eval_problems above 0, and eval_every for points in between; or run scgrpo eval --run."
_WEIGHTED = "no rollout was weighted by its D here; credit: sc_grpo and its relatives do that."
_RECORDED = "needs recorded rollouts (rollouts_every above 0) of a method that weights by D, such as credit: sc_grpo."


@dataclass
class Figure:
    """Charts that belong together, and a line for each that could not be drawn. `key` is its place on the page."""

    key: str
    title: str
    text: str
    charts: list[Shape] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add(self, chart: Shape, otherwise: str) -> None:
        """Take a chart, or say what it would need."""
        if chart.has_data:
            self.charts.append(chart)
        else:
            self.missing.append(f"{chart.title}{f' ({chart.paper})' if chart.paper else ''}: {otherwise}")


def build_figures(main: RunView, others: Sequence[RunView], recorded: Recorded) -> list[Figure]:
    """Figures of a run; those that compare show the runs beside it too."""
    views = [main, *others]
    return [_training(main, views), _domains(main, views), _weight(main, recorded), _time(views)]


def _training(main: RunView, views: Sequence[RunView]) -> Figure:
    figure = Figure("training", "Training", "Over optimizer steps. In each legend: first → last value.")
    figure.add(_compare("reward", "Reward in training", "mean reward", views, "reward", paper="Fig. 6"), _LOGGED)
    own = [benchmark for benchmark in main.benchmarks() if main.in_domain(benchmark)] or main.benchmarks()
    for benchmark in own:
        for key, title in (("avg_at_k", f"Avg@{benchmark[1]}"), ("pass_at_k", f"Pass@{benchmark[1]}")):
            figure.add(_held_out(views, benchmark, key, title), _EVALUATED)
    if not own:
        figure.missing.append(f"Held-out Avg@k and Pass@k (Fig. 6): {_EVALUATED}")
    length = ("length", "Completion length", "tokens, mean", views, "completions/mean_length")
    figure.add(_compare(*length, paper="Fig. 6", from_zero=True), _LOGGED)
    figure.add(
        _compare("entropy", "Entropy of the policy", "nats per token", views, "entropy", paper="Fig. 7"), _LOGGED
    )
    figure.add(_routes(main), _LOGGED)
    return figure


def _domains(main: RunView, views: Sequence[RunView]) -> Figure:
    figure = Figure(
        "domains",
        "In and out of domain",
        "Held-out problems of the task trained on, and of others. Open: before training; filled: after.",
    )
    benchmarks = main.benchmarks()
    if len({task for task, _ in benchmarks}) < 2:
        figure.missing.append(
            "In and out of domain (Fig. 5): needs evaluations on a second task; scgrpo eval --run RUN --task NAME "
            "adds one."
        )
        return figure
    for key, title in (("avg_at_k", "Avg@k by task"), ("pass_at_k", "Pass@k by task")):
        changes = [
            Change(_with_domain(main, benchmark), view.label, style, *ends)
            for benchmark in benchmarks
            for style, view in enumerate(views)
            if any(ends := [_estimate(end, key) for end in view.before_after(benchmark)])
        ]
        note = "Bars: 95 % intervals over problems."
        figure.add(Changes(f"domains-{key}", title, "fraction", changes, note=note, paper="Fig. 5"), _EVALUATED)
    return figure


def _weight(view: RunView, recorded: Recorded) -> Figure:
    figure = Figure(
        "weight",
        "The weight, and the KL it is made of",
        f"Of {view.label} only. D is the KL of a token, in nats; c is the threshold at which its weight is 1/2.",
    )
    weightings = _weightings(view, recorded.spreads)
    for chart in weightings:
        figure.add(chart, _RECORDED)
    if not weightings:
        figure.missing.append(f"The weight over the distribution of D (Fig. 8): {_RECORDED}")
    figure.add(_token_kl(view), _WEIGHTED)
    figure.add(_near_zero(recorded.spreads), _RECORDED)
    figure.add(_mean_weights(view), _WEIGHTED)
    return figure


def _time(views: Sequence[RunView]) -> Figure:
    figure = Figure(
        "time",
        "Time",
        "Sampling: with grading. Scoring: the conditioned pass, and the weights made of it. Update: forward and "
        "backward of the loss.",
    )
    times = [own for own in map(step_time, views) if own is not None]
    bars = {own.run: [own.sampling, own.scoring, own.update] for own in times}
    note = "Means over the logged steps but the first."
    figure.add(
        Bars("time", "Seconds per step, by part", "seconds", list(PARTS), bars, note=note, paper="Fig. 3"), _LOGGED
    )
    figure.add(_compare("step_time", "Time per step", "seconds", views, "step_time", from_zero=True), _LOGGED)
    return figure


def _compare(
    key: str,
    title: str,
    unit: str,
    views: Sequence[RunView],
    metric: str,
    *,
    paper: str = "",
    from_zero: bool = False,
) -> Chart:
    lines = []
    for style, view in enumerate(views):
        steps, values = view.series(metric)
        if steps:
            lines.append(Line(view.label, style, steps, values, smooth=_window(len(steps))))
    widest = max((line.smooth for line in lines), default=1)
    note = f"Thick: trailing mean over {widest} logged steps." if widest > 1 else ""
    return Chart(key, title, unit, lines, from_zero=from_zero, note=note, paper=paper)


def _held_out(views: Sequence[RunView], benchmark: Benchmark, key: str, name: str) -> Chart:
    task, k = benchmark
    lines = []
    for style, view in enumerate(views):
        records = [(r["step"], e) for r in view.evals_of(benchmark) if (e := _estimate(r, key)) is not None]
        if records:
            value, low, high = (list(column) for column in zip(*(e for _, e in records), strict=True))
            steps = [float(step) for step, _ in records]
            lines.append(Line(view.label, style, steps, value, low, high, markers=True))
    note = "Bands and bars: 95 % intervals over problems."
    title = f"Held-out {name}, {task}"
    return Chart(f"{key}-{task}-{k}", title, "fraction", lines, note=note, paper="Fig. 6")


def _estimate(record: dict | None, key: str) -> Estimate | None:
    """(value, low, high) of an evaluation, NaN for bounds that are not known."""
    found = (record or {}).get(key)
    if not isinstance(found, dict) or found.get("value") is None:
        return None
    value, low, high = (math.nan if found.get(x) is None else float(found[x]) for x in ("value", "low", "high"))
    return value, low, high


def _with_domain(view: RunView, benchmark: Benchmark) -> str:
    task, k = benchmark
    several = len({k for name, k in view.benchmarks() if name == task}) > 1
    name = f"{task}, k = {k}" if several else task
    return f"{name} (trained on)" if view.in_domain(benchmark) else name


def _weightings(view: RunView, spreads: Sequence[Spread]) -> list[Weighting]:
    """Of the first, the middle and the last recorded step with scored rollouts, those whose threshold was logged."""
    if view.median("credit/token_kl_p75") is None:  # the threshold is one of something else than D
        return []
    logged = list(zip(*view.series("credit/threshold"), strict=True))
    chosen = (
        {spread.step: spread for spread in (spreads[0], spreads[len(spreads) // 2], spreads[-1])} if spreads else {}
    )
    charts = []
    for step, spread in chosen.items():
        # Rollouts are counted by the steps done when they were sampled, metrics by those done afterwards.
        c = next((value for at, value in logged if at > step and math.isfinite(value)), None)
        if c is None:
            continue
        zero = (
            f"{number(100 * spread.near_zero[-1])} % of {spread.num_tokens} recorded tokens have D < {NEAR_ZERO[-1]}"
        )
        note = f"c = {number(c)} nats; {zero}."
        title = f"Weight function, step {step}"
        charts.append(
            Weighting(f"weight-{step}", title, "D, nats", EDGES, spread.shares, c, note=note, paper="Fig. 8")
        )
    return charts


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
    told = (f"{name} {low} to {high}" for name, (low, high) in paper.TOKEN_KL.items())
    note = f"The paper, {paper.MODEL}: {', '.join(told)} nats."
    lines = [x for x in lines if x.steps] if middle.steps else []
    return Chart("token_kl", "token_kl, D", "nats, log scale", lines, log=True, note=note, paper="Fig. 9")


def _near_zero(spreads: Sequence[Spread]) -> Chart:
    steps = [float(spread.step) for spread in spreads]
    lines = [
        Line(f"D < {bound} nats", style, steps, [spread.near_zero[style] for spread in spreads], markers=True)
        for style, bound in enumerate(NEAR_ZERO)
    ]
    note = "Of the scored tokens that were recorded."
    return Chart("near_zero", "Tokens near 0", "share of tokens", lines, from_zero=True, note=note, paper="Fig. 9")


def _mean_weights(view: RunView) -> Chart:
    names = (("all", "weight_mean"), ("solved", "weight_mean_solved"), ("failed", "weight_mean_failed"))
    lines = [Line(name, i, *view.series(f"credit/{metric}")) for i, (name, metric) in enumerate(names)]
    lines = [line for line in lines if line.steps]
    return Chart("weights", "Mean credit weight", "f, weighted tokens", lines, from_zero=True)


def _routes(view: RunView) -> Chart:
    names = (("partial solve", "partial"), ("none solved", "none_solved"), ("fallback (plain GRPO)", "fallback"))
    lines = [Line(name, i, *view.series(f"credit/route_{route}_frac")) for i, (name, route) in enumerate(names)]
    lines = [Line(x.name, x.style, x.steps, x.values, smooth=_window(len(x.steps))) for x in lines if x.steps]
    return Chart("routes", "Routes", "share of rollouts", lines, from_zero=True, note=f"{view.label} only.")


def _window(num_points: int) -> int:
    return 1 if num_points < _SMOOTH_FROM else max(2, round(num_points / 20))
