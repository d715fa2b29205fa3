"""A run as the report reads it: series, evaluations, settings, what is missing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scgrpo.errors import RunError
from scgrpo.runs import RunDirectory

# A task and the number of samples: evaluations are comparable within one.
Benchmark = tuple[str, int]


@dataclass(frozen=True)
class RunView:
    """One run.

    Attributes:
        label: how the run is called in tables and legends.
        metrics: one record per step, ascending; a later record of a step completes an earlier one.
        evals: in file order.
    """

    run: RunDirectory
    label: str
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    evals: list[dict[str, Any]]

    @property
    def folder(self) -> str:
        """Name of the run directory, also when it was given as `.`."""
        return self.run.path.resolve().name

    @property
    def train(self) -> dict[str, Any]:
        """Trainer settings."""
        return _mapping(self.config.get("train"))

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of a metric where it was logged; a value that was not finite is NaN."""
        points = [(m["step"], m[name]) for m in self.metrics if name in m]
        return [float(s) for s, _ in points], [math.nan if v is None else float(v) for _, v in points]

    def median(self, name: str) -> float | None:
        """Median over the logged steps; None when nothing was logged."""
        values = [v for v in self.series(name)[1] if math.isfinite(v)]
        return statistics.median(values) if values else None

    def benchmarks(self) -> list[Benchmark]:
        """What was evaluated, in order of first appearance."""
        return list(dict.fromkeys(_benchmark(record) for record in self.evals))

    def in_domain(self, benchmark: Benchmark) -> bool:
        """Whether it is the task trained on."""
        return benchmark[0] == _mapping(self.config.get("task")).get("name")

    def evals_of(self, benchmark: Benchmark) -> list[dict[str, Any]]:
        """Evaluations of one benchmark by step; of a step evaluated twice, the later record."""
        by_step = {record["step"]: record for record in self.evals if _benchmark(record) == benchmark}
        return [by_step[step] for step in sorted(by_step)]

    def before_after(self, benchmark: Benchmark) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """The evaluation before training and the one after it, each None if it is missing."""
        records = self.evals_of(benchmark)
        before = next((r for r in records if r.get("label") == "before"), None)
        after = next((r for r in reversed(records) if r.get("label") == "after"), None)
        return before, after


def load_views(run: Path, beside: Sequence[Path]) -> tuple[RunView, list[RunView], list[str]]:
    """This run, the runs beside it (given, or listed in its configuration), and what was wrong with any.

    Raises:
        RunError: this run, or one that was asked for, cannot be read.
    """
    main = _load(run)
    listed = [run / name for name in main.config.get("beside") or []]
    notes: list[str] = []
    others: list[RunView] = []
    known = {run.resolve()}
    for path, optional in [*((p, False) for p in beside), *((p, True) for p in listed)]:
        if path.resolve() in known:
            continue
        known.add(path.resolve())
        try:
            others.append(_load(path))
        except RunError as error:
            if not optional:
                raise
            notes.append(f"The run {path.name}, listed for comparison, is not shown: {error.problem}")
    named = _label([main, *others])
    notes = [f"{view.folder}: {note}" for view in named for note in view.run.notes] + notes
    return named[0], named[1:], notes


def load_views_apart(paths: Sequence[Path]) -> list[RunView]:
    """These runs alone, each once, named by what they train.

    Raises:
        RunError: one of them cannot be read.
    """
    return _label([_load(path) for path in {path.resolve(): path for path in paths}.values()])


def _load(path: Path) -> RunView:
    run = RunDirectory.open(path)
    by_step: dict[int, dict[str, Any]] = {}
    for record in run.metrics():
        by_step.setdefault(record["step"], {}).update(record)
    metrics = [by_step[step] for step in sorted(by_step)]
    return RunView(run, "", run.config(), metrics, run.evals())


def _label(views: list[RunView]) -> list[RunView]:
    """Name runs by what they train, by their folder where that is not enough, and by their path where that is not."""
    methods = [str(view.config.get("label") or view.train.get("credit") or view.folder) for view in views]
    methods = ["uniform (GRPO)" if method == "uniform" else method for method in methods]
    shown = methods
    for place in (lambda view: view.folder, lambda view: str(view.run.path.resolve())):
        shown = [
            name if shown.count(name) == 1 else f"{method}, {place(view)}"
            for name, method, view in zip(shown, methods, views, strict=True)
        ]
    return [replace(view, label=name) for view, name in zip(views, shown, strict=True)]


def _benchmark(record: dict[str, Any]) -> Benchmark:
    return str(record.get("task", "")), int(record.get("k") or 0)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
