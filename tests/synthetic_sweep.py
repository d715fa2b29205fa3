"""Results of a sweep with known effects, as `scgrpo sweep` would append them."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scgrpo.runs.results import FILE_NAME, Compute, Point, Problem, RunResult, append_result

GRID = [1e-4, 3e-4, 1e-3]


def make_results(
    effects: Mapping[str, float],
    *,
    testbeds: Sequence[str] = ("reach",),
    bases: int = 3,
    seeds: int = 5,
    problems: int = 40,
    k: int = 8,
    spread: float = 0.02,
    steps: Sequence[int] = (0, 25, 50, 75, 100),
    tuned: Sequence[float] = GRID,
    rate: float = 3e-4,
    every_problem: bool = True,
) -> list[RunResult]:
    """Runs of methods whose expected Avg@k at the end is about 0.5 + effect.

    Args:
        spread: standard deviation between seeds, of each run on its own.
        every_problem: results by problem at every evaluation, not only the last.
    """
    return [
        _run(method, effect, testbed, f"base-{base}", seed, problems, k, spread, steps, every_problem, tuned, rate)
        for testbed in testbeds
        for base in range(bases)
        for method, effect in effects.items()
        for seed in range(seeds)
    ]


def write_sweep(folder: Path, results: Iterable[RunResult]) -> Path:
    """Append results to the sweep's file; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        append_result(folder / FILE_NAME, result)
    return folder


def fail(result: RunResult, error: str = "NonFiniteError: the loss is NaN") -> RunResult:
    return dataclasses.replace(result, status="failed", error=error, curve=[], compute=None)


def _generator(*names: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(names).encode()))


def _run(
    method: str,
    effect: float,
    testbed: str,
    base: str,
    seed: int,
    problems: int,
    k: int,
    spread: float,
    steps: Sequence[int],
    every_problem: bool,
    tuned: Sequence[float],
    rate: float,
) -> RunResult:
    difficulty = _generator(testbed, "problems").beta(2, 2, problems)
    rng = _generator(testbed, base, method, seed)
    end = effect + rng.normal(0, spread)
    curve = []
    for step in steps:
        progress = 1 - math.exp(-3 * step / steps[-1])
        chances = np.clip(difficulty - 0.3 + (0.3 + end) * progress / (1 - math.exp(-3)), 0, 1)
        solved = rng.binomial(k, chances)
        rows = [Problem(f"p{i:03d}", k, int(c), c / k) for i, c in enumerate(solved)]
        kept = rows if every_problem or step == steps[-1] else []
        curve.append(Point(step, step * 4000, float(solved.mean() / k), float((solved > 0).mean()), k, kept))
    teacher = 0 if method == "grpo" else 1_500_000
    compute = Compute(steps[-1], steps[-1] * 4000, steps[-1] * 3900, 1_800_000, teacher, 40.0 + teacher / 1e6, 60.0)
    values: dict[str, Any] = {"stage": "final", "settings": {}, "status": "done", "error": "", "path": ""}
    return RunResult(
        **values,
        testbed=testbed,
        base=base,
        method=method,
        learning_rate=rate,
        seed=seed,
        tuned=list(tuned),
        curve=curve,
        compute=compute,
    )
