"""`results.jsonl`: what became of every run of a sweep, one line each. Sweeps append it, comparisons read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scgrpo.errors import RunError
from scgrpo.runs import files
from scgrpo.runs.schema import SCHEMA_VERSION

FILE_NAME = "results.jsonl"
Stage = Literal["tune", "final"]
# What names a run of a sweep: no two lines that count share it.
RunKey = tuple[str, str, str, str, float, int]


@dataclass(frozen=True)
class Compute:
    """What a run cost. Tokens are counted over all processes.

    Attributes:
        updates: optimizer steps.
        tokens_sampled: completion tokens sampled in training, dropped groups and rejected rounds included.
        tokens_trained: completion tokens that entered a loss.
        student_forward_tokens: tokens (prompt and completion) through the policy's forward passes: the loss, and
            passes for old log-probs or the student's side of the evidence. Sampling is not in it.
        teacher_forward_tokens: tokens through the conditioned pass.
        seconds: wall time of training, evaluation left out.
        cpu_seconds: processor time of training, evaluation left out; 0 where it was not measured.
    """

    updates: int
    tokens_sampled: int
    tokens_trained: int
    student_forward_tokens: int
    teacher_forward_tokens: int
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Problem:
    """Completions of one held-out problem: id, graded ones, solved ones, mean score of the graded (None: none)."""

    problem_id: str
    n: int
    num_solved: int
    mean_score: float | None


@dataclass(frozen=True)
class Point:
    """One evaluation: after `step` updates and `tokens_sampled` tokens. `problems` may be left out ([])."""

    step: int
    tokens_sampled: int
    avg_at_k: float | None
    pass_at_k: float | None
    k: int
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class RunResult:
    """One run of a sweep.

    Attributes:
        stage: `tune`: a run that helps to choose the learning rate, on problems that are not the final ones;
            `final`: a run that counts.
        testbed: what is trained on, by the sweep's name for it.
        base: which starting model of that testbed.
        method: by the sweep's name for it.
        learning_rate, seed: of this run.
        settings: those of the method, as the sweep's YAML gives them.
        tuned: learning rates that were tried for this method on this testbed to arrive at `learning_rate`, in
            ascending order; [] where it was simply given. Methods compare fairly where they were tuned alike.
        status: `done`, or `failed` with `error`.
        curve: evaluations in order of steps, the one before training first; per-problem results at the last at least.
        compute: what it cost.
        diagnostics: means over training of a few logged metrics, by their names (entropy, credit/weight_mean, ...).
        path: its run directory, relative to the sweep's; "" where it was not kept.
    """

    stage: Stage
    testbed: str
    base: str
    method: str
    learning_rate: float
    seed: int
    settings: dict[str, Any]
    tuned: list[float]
    status: Literal["done", "failed"]
    error: str
    curve: list[Point]
    compute: Compute | None
    diagnostics: dict[str, float] = field(default_factory=dict)
    path: str = ""

    @property
    def key(self) -> RunKey:
        return (self.stage, self.testbed, self.base, self.method, self.learning_rate, self.seed)

    def to_record(self) -> dict[str, Any]:
        """JSON values, as a line of the file has them."""
        curve = [{**vars(point), "problems": _columns(point.problems)} for point in self.curve]
        return dataclasses.asdict(self) | {"curve": curve}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> RunResult:
        """From a line of the file.

        Raises:
            RunError: fields are missing, or of another form.
        """
        values = {name: record[name] for name in _names(cls) if name in record}
        try:
            points = [Point(**{**point, "problems": _problems(point["problems"])}) for point in values["curve"]]
            compute = None if values["compute"] is None else Compute(**values["compute"])
            return cls(**{**values, "curve": points, "compute": compute})
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"A line of {FILE_NAME} is not a result: {error}.", "It was damaged; delete it."
            ) from error


def append_result(path: Path, result: RunResult) -> None:
    """Append one run to a sweep's `results.jsonl`; a line that a crash cut short is dropped first."""
    files.mend_last_line(path)
    files.append_line(path, _line(result))


def write_results(path: Path, results: Iterable[RunResult]) -> None:
    """Replace a sweep's `results.jsonl`."""
    files.write_lines(path, [_line(result).encode() for result in results])


def read_results(path: Path) -> list[RunResult]:
    """Runs of a sweep, in the order they ended. Of several lines with one key the last counts.

    Raises:
        RunError: no such file; a damaged line (a last one that a crash cut short is left out).
    """
    if not path.exists():
        raise RunError(f"There is no {path}.", "Give the folder, or the results.jsonl, of a sweep.")
    by_key = {
        result.key: result for result in (RunResult.from_record(line) for line in files.read_json_lines(path).records)
    }
    return list(by_key.values())


def _line(result: RunResult) -> str:
    record = {"schema_version": SCHEMA_VERSION, "step": result.curve[-1].step if result.curve else 0}
    return files.to_json(record | result.to_record())


def _columns(problems: Sequence[Problem]) -> dict[str, list[Any]]:
    """Problems by field: a third of the bytes, as sweeps have hundreds of lines of hundreds of problems. Scores are
    left out where they are just the share of solved ones."""
    columns = {name: [getattr(problem, name) for problem in problems] for name in _names(Problem)}
    if all(problem.mean_score == _share(problem.n, problem.num_solved) for problem in problems):
        del columns["mean_score"]
    return columns


def _problems(columns: Mapping[str, Sequence[Any]]) -> list[Problem]:
    ids, n, num_solved = columns["problem_id"], columns["n"], columns["num_solved"]
    scores = columns.get("mean_score") or list(map(_share, n, num_solved))
    return [Problem(*values) for values in zip(ids, n, num_solved, scores, strict=True)]


def _share(n: int, num_solved: int) -> float | None:
    return num_solved / n if n else None


def _names(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]
