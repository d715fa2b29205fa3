"""Seconds per step by what they are spent on, and what a run costs over plain GRPO beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scgrpo.report import paper
from scgrpo.report.text import NOTHING, duration
from scgrpo.report.view import RunView

PARTS = ("sampling", "scoring", "update")


@dataclass(frozen=True)
class StepTime:
    """Mean seconds per optimizer step. What the update is, is what `step_time` has beyond the parts logged."""

    run: str
    sampling: float
    scoring: float
    update: float
    num_steps: int

    @property
    def update_with_scoring(self) -> float:
        """The actor's update, as the paper counts it: the conditioned pass is a part of it."""
        return self.scoring + self.update

    @property
    def whole(self) -> float:
        return self.sampling + self.scoring + self.update


@dataclass(frozen=True)
class TimeRow:
    """One row of the table, as text."""

    run: str
    update_overhead: str = NOTHING
    whole_overhead: str = NOTHING
    sampling: str = NOTHING
    scoring: str = NOTHING
    update: str = NOTHING
    whole: str = NOTHING


def baseline(views: Sequence[RunView]) -> RunView | None:
    """The run that others are measured against: the first with uniform credit."""
    return next((view for view in views if view.train.get("credit") == "uniform"), None)


def step_time(view: RunView) -> StepTime | None:
    """Means over the logged steps but the first, which sets things up; None where the parts were not logged."""
    logged = []
    for record in view.metrics:
        names = ("step_time", "timing/sampling_s", "timing/scoring_s", "timing/recording_s")
        values = [record.get(name) for name in names]
        if all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            whole, sampling, scoring, recording = map(float, values)  # type: ignore[arg-type]
            logged.append((sampling, scoring, whole - sampling - scoring - recording))
    logged = logged[1:] or logged
    if not logged:
        return None
    sampling, scoring, update = (sum(values) / len(logged) for values in zip(*logged, strict=True))
    return StepTime(view.label, sampling, scoring, max(0.0, update), len(logged))


def time_rows(views: Sequence[RunView]) -> list[TimeRow]:
    """Runs that logged the parts, with their overhead over the one with uniform credit."""
    times = {view.label: step_time(view) for view in views}
    plain = baseline(views)
    base = times[plain.label] if plain is not None else None
    rows = []
    for label, own in times.items():
        if own is None:
            continue
        over = (NOTHING, NOTHING)
        if base is not None and own is not base:
            over = (_over(own.update_with_scoring, base.update_with_scoring), _over(own.whole, base.whole))
        sampling, scoring, update, whole = map(duration, (own.sampling, own.scoring, own.update, own.whole))
        rows.append(TimeRow(label, *over, sampling, scoring, update, whole))
    return rows


def paper_rows() -> list[TimeRow]:
    """The paper's overheads."""
    return [
        TimeRow(f"the paper, {name}", f"{update:+.0f} %", f"{whole:+.0f} %")
        for name, (update, whole) in paper.OVERHEAD.items()
    ]


def _over(own: float, base: float) -> str:
    return f"{100 * (own / base - 1):+.0f} %" if base > 0 else NOTHING
