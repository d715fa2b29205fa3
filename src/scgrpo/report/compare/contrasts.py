"""Contrasts: every method against a reference, by testbed and pooled over testbeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from scgrpo.report.compare.outcomes import Outcome, OutcomeKey
from scgrpo.report.compare.study import Cell, Likeness, Options, Testbed, lack
from scgrpo.runs.results import RunResult
from scgrpo.stats import Difference, Floats, cluster_contrast, holm, unit_contrast

POOLED = "pooled"
LEVEL = 0.05
Verdict = Literal["higher", "lower", "not shown"]


@dataclass(frozen=True)
class Contrast:
    """`method` minus `reference` on one outcome.

    Attributes:
        testbed: its name; None where pooled over testbeds.
        num_testbeds, num_bases, num_pairs: what the difference is a mean over. Bases count per testbed.
        num_problems: held-out problems that both sides have; 0 where results by problem were not recorded, so that
            the interval is over runs alone.
        num_left_out: problems of some runs that other runs of the contrast lack.
        failed: failed runs of the method, and of the reference.
        missing: pairs that one side lacks, in words.
        likeness: how alike their learning rates were chosen; of several testbeds the worst.
        corrected: p after Holm's correction over the family; NaN before it.
        family: tests in that family.
    """

    outcome: OutcomeKey
    testbed: str | None
    method: str
    reference: str
    difference: Difference
    num_testbeds: int
    num_bases: int
    num_pairs: int
    num_problems: int
    num_left_out: int
    failed: tuple[int, int]
    missing: list[str]
    likeness: Likeness
    corrected: float = math.nan
    family: int = 0

    @property
    def verdict(self) -> Verdict:
        """`higher` or `lower` where corrected p < 0.05 and the interval excludes 0."""
        difference = self.difference
        if not self.corrected < LEVEL or not (difference.low > 0 or difference.high < 0):
            return "not shown"
        return "higher" if difference.value > 0 else "lower"

    @property
    def is_hopeless(self) -> bool:
        """So few units that the test could not have given a corrected p below 0.05."""
        return self.num_pairs > 0 and self.difference.smallest_p * max(1, self.family) >= LEVEL

    @property
    def units_needed(self) -> int:
        """Units from which on the test could give a corrected p below 0.05 at all."""
        return next(n for n in range(1, 60) if 2.0 ** (1 - n) * max(1, self.family) < LEVEL)


@dataclass(frozen=True)
class Family:
    """Contrasts of one table, corrected together: one outcome, one reference, one testbed (None: pooled)."""

    outcome: OutcomeKey
    testbed: str | None
    reference: str
    contrasts: list[Contrast]


def build_families(
    testbeds: Sequence[Testbed], outcomes: Sequence[Sequence[Outcome]], options: Options
) -> list[Family]:
    """Families in the order of outcomes, references and testbeds, the pooled one first where there are several."""
    found: dict[tuple[OutcomeKey, str], list[tuple[Testbed, Outcome]]] = {}
    for testbed, its in zip(testbeds, outcomes, strict=True):
        for outcome in its:
            for reference in options.references:
                found.setdefault((outcome.key, reference), []).append((testbed, outcome))
    families = []
    for (key, reference), places in found.items():
        each: list[Family] = []
        units: dict[str, list[_Pairs]] = {}
        for testbed, outcome in places:
            pairs = [
                _Pairs.of(testbed, method, reference, outcome)
                for method in testbed.methods
                if method != reference and reference in testbed.methods
            ]
            each.append(_family(key, testbed.name, reference, [p.contrast(options) for p in pairs]))
            for p in pairs:
                units.setdefault(p.method, []).append(p)
        if len([family for family in each if family.contrasts]) > 1:
            families.append(_family(key, None, reference, [_pooled(pairs) for pairs in units.values()]))
        families += [family for family in each if family.contrasts]
    return families


def _family(outcome: OutcomeKey, testbed: str | None, reference: str, contrasts: Sequence[Contrast]) -> Family:
    corrected = holm([contrast.difference.p for contrast in contrasts])
    size = int(np.isfinite(corrected).sum())
    rows = [
        dataclasses.replace(contrast, corrected=float(p), family=size)
        for contrast, p in zip(contrasts, corrected, strict=True)
    ]
    return Family(outcome, testbed, reference, rows)


@dataclass(frozen=True)
class _Pairs:
    """Shared (base, seed) cells of a method and a reference, and their differences, [pairs, problems]."""

    testbed: Testbed
    method: str
    reference: str
    outcome: OutcomeKey
    cells: list[Cell]
    differences: Floats
    num_problems: int
    num_left_out: int
    missing: list[str]

    @classmethod
    def of(cls, testbed: Testbed, method: str, reference: str, outcome: Outcome) -> _Pairs:
        sides = [testbed.runs[name] for name in (method, reference)]
        absences = {
            cell: _absence({method: sides[0].get(cell), reference: sides[1].get(cell)}, cell, outcome)
            for cell in testbed.cells()
        }
        shared = [cell for cell, text in absences.items() if text is None and cell in sides[0]]
        by_problem = [tuple(outcome.by_problem(side[cell]) for side in sides) for cell in shared]
        everyones = _everyones([values for pair in by_problem for values in pair])
        union = {problem for pair in by_problem for values in pair for problem in values}
        rows = [[a[p] - b[p] for p in everyones] for a, b in by_problem]
        if not everyones or not all(any(map(math.isfinite, row)) for row in rows):
            everyones = []
            rows = [[outcome.of_run(sides[0][cell]) - outcome.of_run(sides[1][cell])] for cell in shared]
        return cls(
            testbed=testbed,
            method=method,
            reference=reference,
            outcome=outcome.key,
            cells=shared,
            differences=np.array(rows, dtype=np.float64).reshape(len(shared), max(1, len(everyones))),
            num_problems=len(everyones),
            num_left_out=len(union) - len(everyones),
            missing=[text for text in absences.values() if text],
        )

    def bases(self) -> list[str]:
        return list(dict.fromkeys(base for base, _ in self.cells))

    def base_means(self) -> Floats:
        """[bases, problems]: the mean over seeds, where a problem has any."""
        labels = np.array([base for base, _ in self.cells])
        means = []
        for base in self.bases():
            rows = self.differences[labels == base]
            known = ~np.isnan(rows)
            count = known.sum(0)
            means.append(np.where(count > 0, np.where(known, rows, 0).sum(0) / np.maximum(count, 1), np.nan))
        return np.array(means).reshape(len(means), -1)

    def contrast(self, options: Options) -> Contrast:
        chance = {"replicates": options.replicates, "seed": options.seed}
        if not self.cells:
            difference = unit_contrast(np.zeros(0))
        elif options.bases == "random":
            difference = cluster_contrast(self.base_means(), [0] * len(self.bases()), **chance)
        else:
            difference = cluster_contrast(self.differences, [base for base, _ in self.cells], **chance)
        failed = (len(self.testbed.failed(self.method)), len(self.testbed.failed(self.reference)))
        return Contrast(
            outcome=self.outcome,
            testbed=self.testbed.name,
            method=self.method,
            reference=self.reference,
            difference=difference,
            num_testbeds=1,
            num_bases=len(self.bases()),
            num_pairs=len(self.cells),
            num_problems=self.num_problems,
            num_left_out=self.num_left_out,
            failed=failed,
            missing=self.missing,
            likeness=self.testbed.like(self.method, self.reference),
        )


def _pooled(pairs: Sequence[_Pairs]) -> Contrast:
    """Units are (testbed, base): the claim that generalises over them."""
    values = [float(mean) for p in pairs if p.cells for mean in _row_means(p)]
    order: tuple[Likeness, ...] = ("tuned", "same_rate", "unlike")
    first, present = pairs[0], [p for p in pairs if p.cells]
    return Contrast(
        outcome=first.outcome,
        testbed=None,
        method=first.method,
        reference=first.reference,
        difference=unit_contrast(np.array(values)),
        num_testbeds=len(present),
        num_bases=len(values),
        num_pairs=sum(len(p.cells) for p in pairs),
        num_problems=sum(p.num_problems for p in present),
        num_left_out=sum(p.num_left_out for p in present),
        failed=(
            sum(len(p.testbed.failed(p.method)) for p in pairs),
            sum(len(p.testbed.failed(p.reference)) for p in pairs),
        ),
        missing=[f"{p.testbed.name}, {text}" for p in pairs for text in p.missing],
        likeness=max((p.testbed.like(p.method, p.reference) for p in pairs), key=order.index),
    )


def _row_means(pairs: _Pairs) -> Floats:
    """Mean over problems of each run's difference, then over the seeds of a base."""
    runs = np.nanmean(pairs.differences, axis=1)
    labels = np.array([base for base, _ in pairs.cells])
    return np.array([runs[labels == base].mean() for base in pairs.bases()])


def _everyones(values: Sequence[dict[str, float]]) -> list[str]:
    """Problems that all have, by id."""
    if not values:
        return []
    return sorted(set.intersection(*(set(v) for v in values)))


def _absence(sides: Mapping[str, RunResult | None], cell: Cell, outcome: Outcome) -> str | None:
    """Why there is no pair at this cell; None where there is one, or where neither side was meant to run."""
    if all(run is None for run in sides.values()):
        return None
    lacks = {name: _lack(run, outcome) for name, run in sides.items()}
    reasons = " and ".join(f"{name} {text}" for name, text in lacks.items() if text)
    return f"base {cell[0]}, seed {cell[1]}: {reasons}" if reasons else None


def _lack(run: RunResult | None, outcome: Outcome) -> str | None:
    if run is None:
        return "has no run"
    return lack(run) or (None if math.isfinite(outcome.of_run(run)) else "has no curve over that range")
