"""Where runs come from: `results.jsonl` of sweeps, or run directories of `scgrpo train`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scgrpo.errors import RunError
from scgrpo.report.view import Benchmark, RunView
from scgrpo.runs import RunDirectory
from scgrpo.runs.files import read_json_lines
from scgrpo.runs.results import FILE_NAME, Point, Problem, RunKey, RunResult, read_results


def read_sources(sources: Sequence[Path]) -> tuple[list[RunResult], list[str]]:
    """Runs of all sources in the order of their keys, whatever the order of files and lines; and notes in words.

    Raises:
        RunError: a source that is neither a sweep nor a run, or is damaged; two run directories of one method, base
            and seed.
    """
    found: dict[RunKey, RunResult] = {}
    notes: list[str] = []
    repeated = 0
    for source in sources:
        path = source / FILE_NAME if source.is_dir() else source
        is_sweep = path.exists() or not source.is_dir()
        damage = read_json_lines(path).damage if is_sweep else None
        if damage:
            notes.append(f"{path.parent.name}: {damage}")
        for result in read_results(path) if is_sweep else _run_results(source, notes):
            known = found.get(result.key)
            if known is not None and not is_sweep:
                raise RunError(
                    f"{source} and {known.path or 'a sweep'} are both {_named(result)}.",
                    "Give one of them: runs of a method differ in seed, model or task.",
                )
            repeated += known is not None and known != result
            found[result.key] = result
    if repeated:
        notes.append(
            f"Runs of which several sweeps have different results: {repeated}. Those of the last sweep given count."
        )
    return [found[key] for key in sorted(found)], notes


def _named(result: RunResult) -> str:
    return f"{result.method} on {result.testbed}, {result.base}, seed {result.seed}"


def _run_results(path: Path, notes: list[str]) -> list[RunResult]:
    """One per benchmark that the run was evaluated on; one failed if it was not evaluated."""
    run = RunDirectory.open(path)
    view = RunView(run, "", run.config(), [], run.evals())
    notes += [f"{view.folder}: {note}" for note in run.notes]
    rate, seed = view.train.get("learning_rate"), view.train.get("seed")
    if not isinstance(rate, int | float) or not isinstance(seed, int):
        raise RunError(f"{path} does not say its learning rate and seed.", "Give runs that `scgrpo train` wrote.")
    task = view.config.get("task")
    benchmarks = view.benchmarks() or [(str(task.get("name", "")) if isinstance(task, dict) else "", 0)]
    return [_run_result(view, benchmark, float(rate), seed) for benchmark in benchmarks]


def _run_result(view: RunView, benchmark: Benchmark, rate: float, seed: int) -> RunResult:
    model = view.config.get("model")
    ended = view.before_after(benchmark)[1] is not None
    several = len({k for task, k in view.benchmarks() if task == benchmark[0]}) > 1
    return RunResult(
        stage="final",
        testbed=f"{benchmark[0]}, k = {benchmark[1]}" if several else benchmark[0],
        base=Path(str(model.get("name_or_path", ""))).name if isinstance(model, dict) else "",
        method=str(view.config.get("label") or view.train.get("credit") or view.folder),
        learning_rate=rate,
        seed=seed,
        settings={},
        tuned=[],
        status="done" if ended else "failed",
        error="" if ended else "no evaluation after training",
        curve=[_point(record) for record in view.evals_of(benchmark)],
        compute=None,
        path=str(view.run.path),
    )


def _point(record: dict[str, Any]) -> Point:
    names = ("problem_id", "n", "num_solved", "mean_score")
    try:
        problems = [Problem(**{name: problem[name] for name in names}) for problem in record.get("per_problem") or []]
    except KeyError as error:
        raise RunError(f"A problem of an evaluation has no {error}.", "Evaluate the run again.") from error
    average, passed = (_value(record.get(name)) for name in ("avg_at_k", "pass_at_k"))
    # Run directories do not count the completion tokens sampled so far.
    return Point(record["step"], 0, average, passed, int(record.get("k") or 0), problems)


def _value(estimate: Any) -> float | None:
    value = estimate.get("value") if isinstance(estimate, dict) else None
    return value if isinstance(value, int | float) and math.isfinite(value) else None
