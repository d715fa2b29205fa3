"""What a run is judged by: its last evaluation, or the area under its learning curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from scgrpo.report.compare.study import Testbed
from scgrpo.runs.results import Point, RunResult
from scgrpo.stats import Floats, area_under_curve

OutcomeKey = Literal["final", "area_steps", "area_tokens"]
TITLES: dict[OutcomeKey, str] = {
    "final": "Avg@k at the end",
    "area_steps": "Area under the learning curve, over steps",
    "area_tokens": "Area under the learning curve, over tokens sampled",
}


@dataclass(frozen=True)
class Outcome:
    """An outcome on a testbed. `until`: where areas end, the same for all its runs; NaN where there is none."""

    key: OutcomeKey
    until: float

    def of_run(self, run: RunResult) -> float:
        """The outcome of a run that ended; NaN where it has none."""
        if self.key == "final":
            last = run.curve[-1].avg_at_k
            return math.nan if last is None else last
        points = [(point, point.avg_at_k) for point in run.curve]
        if any(value is None for _, value in points):
            return math.nan
        return float(self._area(run.curve, [_or_nan(value) for _, value in points]))

    def by_problem(self, run: RunResult) -> dict[str, float]:
        """The outcome per problem id, NaN where ungraded; {} where the run did not record what that takes."""
        points = run.curve[-1:] if self.key == "final" else run.curve
        scores = [{p.problem_id: p.mean_score for p in point.problems} for point in points]
        if not scores or not scores[0] or any(point.keys() != scores[0].keys() for point in scores):
            return {}
        values = np.array([[_or_nan(score[problem]) for score in scores] for problem in scores[0]])
        if self.key == "final":
            return dict(zip(scores[0], values[:, -1].tolist(), strict=True))
        return dict(zip(scores[0], self._area(points, values).tolist(), strict=True))

    def _area(self, points: Sequence[Point], values: ArrayLike) -> Floats:
        return area_under_curve([_x(self.key)(p) for p in points], values, self.until)


def outcomes_of(testbed: Testbed) -> list[Outcome]:
    """Those that the runs of a testbed have. Areas end where the first of all its curves ends."""
    found = [Outcome("final", math.nan)]
    runs = [run for method in testbed.methods for run in testbed.done(method).values()]
    keys: tuple[OutcomeKey, ...] = ("area_steps", "area_tokens")
    for key in keys:
        until = float(min((_x(key)(run.curve[-1]) for run in runs), default=0))
        outcome = Outcome(key, until)
        if any(math.isfinite(outcome.of_run(run)) for run in runs):
            found.append(outcome)
    return found


def _x(key: OutcomeKey) -> Callable[[Point], float]:
    return (lambda point: point.tokens_sampled) if key == "area_tokens" else (lambda point: point.step)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
