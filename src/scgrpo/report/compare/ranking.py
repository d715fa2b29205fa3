"""Which methods may stand in one order: those whose learning rates were tuned alike. No others ever do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from scgrpo.report.compare.study import Rates, Testbed


@dataclass(frozen=True)
class Place:
    """A method in an order: its mean Avg@k at the end, and how many of its runs failed."""

    method: str
    mean: float
    num_failed: int


@dataclass(frozen=True)
class Ranking:
    """Methods of a testbed tuned over the same learning rates, best first, over the pairs that all of them have."""

    testbed: str
    grid: tuple[float, ...]
    num_cells: int
    places: list[Place]

    @property
    def rates(self) -> str:
        """The learning rates tried, as text."""
        return rates_text(self.grid)


def rank(testbed: Testbed) -> tuple[list[Ranking], list[str]]:
    """Orders of methods tuned alike, and in words why the other methods are in none."""
    groups: dict[tuple[float, ...], list[str]] = {}
    rankings, reasons = [], []
    for method in testbed.methods:
        if testbed.done(method):
            groups.setdefault(testbed.rates(method).grid, []).append(method)
        else:
            reasons.append(f"{method}: no run ended with a result.")
    for grid, methods in groups.items():
        if not grid:
            reasons.append(_untuned(testbed, methods))
        elif len(methods) == 1:
            reasons.append(
                f"{methods[0]}: no other method was tuned over the same learning rates ({rates_text(grid)})."
            )
        elif ranking := _ranking(testbed, grid, methods):
            rankings.append(ranking)
        else:
            reasons.append(f"{', '.join(methods)}: no base and seed has a result of each, so there is no order.")
    return rankings, reasons


def rate_warnings(testbed: Testbed) -> list[str]:
    """Methods whose chosen learning rate is at an end of those tried, and such that were tuned in several ways."""
    found = []
    for method in testbed.methods:
        rates = testbed.rates(method)
        if rates.at_an_end:
            found.append(
                f"{method}: the learning rate {rates_text(rates.used)} is at an end of those tried "
                f"({rates_text(rates.grid)}); a better one may lie beyond."
            )
        elif len(rates.tried) > 1:
            found.append(f"{method}: its runs were tuned over different lists of learning rates.")
    return found


def rates_text(rates: Sequence[float]) -> str:
    """Learning rates as one reads them."""
    return ", ".join(f"{rate:g}" for rate in rates)


def tuning_text(rates: Rates) -> str:
    """How the learning rate of a method was chosen."""
    if rates.grid:
        return f"of {rates_text(rates.grid)}"
    return "given, not tuned" if rates.tried == ((),) else "tuned in several ways"


def _untuned(testbed: Testbed, methods: Sequence[str]) -> str:
    used = {testbed.rates(method).used for method in methods}
    names = "All methods" if len(methods) == len(testbed.methods) else ", ".join(methods)
    if len(methods) == 1:
        return f"{names}: its learning rate was not tuned, or not in one way; it is in no order."
    if all(testbed.like(methods[0], other) == "same_rate" for other in methods[1:]):
        return f"{names}: same learning rate for all ({rates_text(min(used))}), not tuned: no ranking."
    return f"{names}: learning rates were not tuned, or not in one way, and differ: no ranking."


def _ranking(testbed: Testbed, grid: tuple[float, ...], methods: Sequence[str]) -> Ranking | None:
    done = {method: testbed.done(method) for method in methods}
    cells = [cell for cell in testbed.cells() if all(cell in runs for runs in done.values())]
    if not cells:
        return None
    bases = sorted({base for base, _ in cells})

    def mean(method: str) -> float:
        """Bases count once each, as in the contrasts."""
        finals = {cell: done[method][cell].curve[-1].avg_at_k or 0.0 for cell in cells}
        return fmean(fmean(v for (b, _), v in finals.items() if b == base) for base in bases)

    places = [Place(method, mean(method), len(testbed.failed(method))) for method in methods]
    return Ranking(testbed.name, grid, len(cells), sorted(places, key=lambda place: (-place.mean, place.method)))
