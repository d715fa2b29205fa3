"""Which learning rate a method gets on a testbed, from the runs that tried them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scgrpo.runs.results import RunResult


@dataclass(frozen=True)
class Choice:
    """What tuning came to for one method on one testbed.

    Attributes:
        rates: those tried, ascending.
        means: mean Avg@k at the end over the runs of a rate; None where one of them failed or has none.
        rate: the one with the highest mean, the smaller of equals; None: every rate failed.
    """

    rates: Sequence[float]
    means: Sequence[float | None]
    rate: float | None

    @property
    def end(self) -> str:
        """`smallest` or `largest` if the choice is at that end of the rates, where a better one may lie beyond."""
        if self.rate is None or len(self.rates) < 2:
            return ""
        return {self.rates[0]: "smallest", self.rates[-1]: "largest"}.get(self.rate, "")


def choose(rates: Sequence[float], results: Iterable[RunResult]) -> Choice:
    """The choice among `rates` by all runs of one method on one testbed that tried them."""
    ordered = sorted(rates)
    found: dict[float, list[float | None]] = {rate: [] for rate in ordered}
    for result in results:
        found[result.learning_rate].append(final_score(result))
    means = []
    for scores in found.values():
        known = [score for score in scores if score is not None]
        means.append(statistics.fmean(known) if known and len(known) == len(scores) else None)
    best = None
    for place, mean in enumerate(means):
        if mean is not None and (best is None or mean > (means[best] or 0.0)):
            best = place
    return Choice(ordered, means, None if best is None else ordered[best])


def final_score(result: RunResult) -> float | None:
    """Avg@k at the last evaluation of a run that was done; None: it failed, or nothing could be graded."""
    return result.curve[-1].avg_at_k if result.status == "done" and result.curve else None
