"""What is compared: testbeds, their methods and runs, and how the learning rates were chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scgrpo.errors import ConfigError
from scgrpo.runs.results import RunResult

Cell = tuple[str, int]  # base, seed
Likeness = Literal["tuned", "same_rate", "unlike"]


@dataclass(frozen=True)
class Options:
    """What a comparison is asked for.

    Attributes:
        reference: method that the others are compared with.
        against: further references, each with its own tables.
        methods: which to show, in this order; [] = all, by name.
        bases: `fixed`: the claim is about the bases given; `random`: they stand for others like them.
        margin: a difference that would matter; what is not shown is said to exclude it or not.
        replicates, seed: of the bootstrap.
    """

    reference: str = "grpo"
    against: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    bases: Literal["fixed", "random"] = "fixed"
    margin: float = 0.02
    replicates: int = 4000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replicates < 200 or not self.margin > 0:
            raise ConfigError("replicates must be >= 200 and margin > 0.", "Leave them at 4000 and 0.02.")

    @property
    def references(self) -> list[str]:
        return list(dict.fromkeys([self.reference, *self.against]))


@dataclass(frozen=True)
class Rates:
    """Learning rates of a method on a testbed: those used, and the lists that were tried (one per way of tuning)."""

    used: tuple[float, ...]
    tried: tuple[tuple[float, ...], ...]

    @property
    def grid(self) -> tuple[float, ...]:
        """What was tried, where it was one and the same list for all runs; else ()."""
        return self.tried[0] if len(self.tried) == 1 else ()

    @property
    def at_an_end(self) -> bool:
        """A chosen rate is the smallest or the largest that was tried: a better one may lie beyond."""
        return any(self.grid and rate in (self.grid[0], self.grid[-1]) for rate in self.used)

    def like(self, other: Rates) -> Likeness:
        """Were both tuned over the same rates, or neither and both run at the same one?"""
        if self.grid and self.grid == other.grid:
            return "tuned"
        if self.tried == other.tried == ((),) and len(self.used) == 1 and self.used == other.used:
            return "same_rate"
        return "unlike"


@dataclass(frozen=True)
class Testbed:
    """A testbed with the runs that count.

    Attributes:
        methods: names, in the order shown.
        runs: by method and (base, seed); failed ones too.
    """

    name: str
    methods: list[str]
    runs: dict[str, dict[Cell, RunResult]]

    def done(self, method: str) -> dict[Cell, RunResult]:
        """Runs of a method that ended with a number."""
        return {cell: run for cell, run in self.runs.get(method, {}).items() if lack(run) is None}

    def failed(self, method: str) -> list[RunResult]:
        """Runs of a method that failed or ended without a number."""
        return [run for run in self.runs.get(method, {}).values() if lack(run) is not None]

    def cells(self) -> list[Cell]:
        """Every (base, seed) that any method was run at."""
        return sorted({cell for runs in self.runs.values() for cell in runs})

    def rates(self, method: str) -> Rates:
        runs = self.runs[method].values()
        used = tuple(sorted({run.learning_rate for run in runs}))
        return Rates(used, tuple(sorted({tuple(sorted(run.tuned)) for run in runs})))

    def like(self, method: str, other: str) -> Likeness:
        return self.rates(method).like(self.rates(other))


def lack(run: RunResult) -> str | None:
    """Why a run has no result, in words; None where it has one."""
    if run.status == "failed":
        return f"failed ({run.error})" if run.error else "failed"
    if not run.curve or run.curve[-1].avg_at_k is None:
        return "ended without a graded evaluation"
    return None


def gather(results: Sequence[RunResult], options: Options) -> tuple[list[Testbed], list[str]]:
    """Testbeds by name, with the methods asked for, and notes on what was left out.

    Raises:
        ConfigError: a method that no run has; no runs that count; a method with several learning rates at one
            (testbed, base, seed).
    """
    final = [result for result in results if result.stage == "final"]
    present = sorted({result.method for result in final})
    if not final:
        raise ConfigError("There is no run that counts (stage `final`) to compare.", "Finish the sweep first.")
    wanted = list(dict.fromkeys([*options.methods, *options.references])) if options.methods else present
    unknown = [method for method in dict.fromkeys([*wanted, *options.references]) if method not in present]
    if unknown:
        raise ConfigError(f"No run is of the method {unknown[0]!r}.", f"Choose of: {', '.join(present)}.")
    if len(wanted) < 2:
        raise ConfigError(f"There is only the method {wanted[0]!r}.", "Give runs of at least two methods.")
    testbeds = []
    for name in sorted({result.testbed for result in final}):
        runs = _by_method([result for result in final if result.testbed == name], wanted)
        if runs:
            testbeds.append(Testbed(name, [method for method in wanted if method in runs], runs))
    return testbeds, _notes(results, final, wanted)


def _by_method(results: Sequence[RunResult], methods: Sequence[str]) -> dict[str, dict[Cell, RunResult]]:
    runs: dict[str, dict[Cell, RunResult]] = {}
    for result in results:
        if result.method not in methods:
            continue
        cells = runs.setdefault(result.method, {})
        other = cells.setdefault((result.base, result.seed), result)
        if other is not result:
            raise ConfigError(
                f"{result.method} has runs at the learning rates {other.learning_rate:g} and "
                f"{result.learning_rate:g} on {result.testbed}, base {result.base}, seed {result.seed}.",
                "Keep the runs of one: delete the lines of the other from results.jsonl.",
            )
    return runs


def _notes(results: Sequence[RunResult], final: Sequence[RunResult], wanted: Sequence[str]) -> list[str]:
    notes = []
    tuning = len(results) - len(final)
    if tuning:
        notes.append(f"{tuning} runs that served to choose learning rates are not in any result.")
    left_out = Counter(result.method for result in final if result.method not in wanted)
    if left_out:
        shown = ", ".join(f"{method} ({count})" for method, count in sorted(left_out.items()))
        notes.append(f"Not asked for, and left out: {shown} (runs).")
    return notes
