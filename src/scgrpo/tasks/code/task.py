"""A task whose answers are programs: problems from a source, graded by their tests in the sandbox."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from scgrpo.errors import ConfigError, DataError, ScgrpoError, ShapeError
from scgrpo.sandbox import Sandbox, open_sandbox
from scgrpo.tasks.base import Canned, Message, Row, Split, Task, Verdict
from scgrpo.tasks.code.extract import last_block
from scgrpo.tasks.code.grader import Grader, Reward
from scgrpo.tasks.code.suite import Half, Suite
from scgrpo.tasks.reward import completion_text

logger = logging.getLogger(__name__)

_MAX_WORKERS = 8
_SUITES_KEPT = 8


@dataclass(frozen=True)
class Problem:
    """A problem of a source.

    Attributes:
        id: its name, unique within the source.
        prompt: chat messages.
        suite: loads its tests. They can be large; a source need not keep them in memory.
        complete: makes the program that is tested of the code in the answer.
        solution: a right answer, where the data has one.
    """

    id: str
    prompt: list[Message]
    suite: Callable[[], Suite]
    complete: Callable[[str], str] = str
    solution: str = ""


class Source(Protocol):
    """Where problems come from."""

    def problems(self, split: Split) -> Sequence[Problem]:
        """Those of a split, always the same in the same order. The two splits may share problems: see `CodeTask`."""

    def example(self) -> tuple[Problem, tuple[str, ...], tuple[str, ...]]:
        """A problem made up here, with right and wrong answers, in the form of this source's."""


class CodeTask(Task):
    """Problems whose answers are Python programs.

    Rows have `problem_id`, `prompt` and `tests`, which says by which of the problem's tests an answer is graded. The
    tests themselves stay with the task. The answer is the code between the last two fences (LiveCodeBench's rule).

    Args:
        source: where the problems come from.
        name: of the task and its reward function.
        tests: of each training problem: "all", or one of two random halves, "A" or "B".
        eval_tests: the same for evaluation problems. Default: the other half, or "all" if `tests` is "all".
        tests_seed: which tests are in which half.
        reward: "all": 1 if all tests pass, else 0; "fraction": the share that passes.
        time_limit_s: CPU seconds for one test; default: the problem's own limit, or its benchmark's.
        memory_mb: address space of a program; default: the problem's own limit, or its benchmark's.
        total_time_s: for all tests of one answer together; tests after that are failed.
        num_workers: programs run at once; default: the machine's cores, at most 8.
        sandbox: further options of `scgrpo.sandbox.open_sandbox` (`backend`, `allow_insecure`, `url`).

    Raises:
        ConfigError: a setting out of range.
    """

    template = "code"
    success_threshold = 1.0
    needs = "a sandbox"

    def __init__(
        self,
        source: Source,
        name: str,
        *,
        tests: Half = "all",
        eval_tests: Half | None = None,
        tests_seed: int = 0,
        reward: Reward = "all",
        time_limit_s: float | None = None,
        memory_mb: int | None = None,
        total_time_s: float = 120.0,
        num_workers: int | None = None,
        sandbox: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        other: dict[Half, Half] = {"A": "B", "B": "A", "all": "all"}
        self._halves: dict[Split, Half] = {"train": tests, "eval": eval_tests or other.get(tests, "all")}
        if not set(self._halves.values()) <= set(other) or reward not in ("all", "fraction"):
            raise ConfigError(
                f"tests={tests!r}, eval_tests={eval_tests!r}, reward={reward!r} cannot work.",
                "Tests are all, A or B; the reward is all or fraction.",
            )
        limits: dict[str, Any] = {"time_limit_s": time_limit_s, "memory_mb": memory_mb}
        self._limits = {key: value for key, value in limits.items() if value is not None}
        self._workers = min(os.cpu_count() or 1, _MAX_WORKERS) if num_workers is None else num_workers
        if min(total_time_s, self._workers, *self._limits.values()) <= 0:
            raise ConfigError(
                f"total_time_s={total_time_s}, num_workers={num_workers}, limits {self._limits} cannot work.",
                "All must be above 0.",
            )
        self._source, self._seed = source, tests_seed
        self._reward, self._total_time_s, self._options = reward, total_time_s, dict(sandbox or {})
        self._sandbox: Sandbox | None = None
        self._lock = threading.Lock()
        self._suite = functools.lru_cache(_SUITES_KEPT)(self._load_suite)

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        """Rows of a split, the first `limit` of them.

        Raises:
            ConfigError: no such split, or there would be no training rows that are not evaluation problems too.
            DataError, MissingExtraError: the data cannot be read.
        """
        if split not in ("train", "eval"):
            raise ConfigError(f"There is no split {split!r}.", "Choose train or eval.")
        problems = self._source.problems(split) if split == "eval" else self._train
        return [_row(problem, self._halves[split]) for problem in problems[:limit]]

    def verify(self, completions: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """Verdicts with score 1.0 or 0.0, or anything between with reward="fraction".

        Raises:
            ShapeError: different numbers of completions and rows.
            SandboxError: no sandbox can be opened here.
        """
        if len(completions) != len(rows):
            raise ShapeError(f"{len(completions)} completions for {len(rows)} rows.", "Give one row per completion.")
        jobs = [
            (str(row.get("problem_id")), str(row.get("tests", "all")), _program(completion))
            for completion, row in zip(completions, rows, strict=True)
        ]
        # Sorted by problem: its tests are loaded once. Equal answers are graded once.
        distinct = sorted(set(jobs))
        grader = Grader(self._opened(), reward=self._reward, total_time_s=self._total_time_s)
        with ThreadPoolExecutor(self._workers, thread_name_prefix="scgrpo-code") as threads:
            try:
                verdicts = list(threads.map(functools.partial(self._grade, grader), distinct))
            except BaseException:  # Ctrl-C, say: do not wait for what is still running
                self.close()
                raise
        graded = dict(zip(distinct, verdicts, strict=True))
        return [graded[job] for job in jobs]

    def solution(self, row: Mapping[str, Any], rng: Any = None) -> str:
        """The data's own answer to a row of this task; "" if it has none."""
        return self._problem(row["problem_id"]).solution

    def canned(self) -> Canned:
        problem, right, wrong = self._source.example()
        return Canned(_row(problem, "all"), right, wrong)

    def close(self) -> None:
        with self._lock:
            sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            sandbox.close()

    def _opened(self) -> Sandbox:
        with self._lock:
            if self._sandbox is None:
                self._sandbox = open_sandbox(num_workers=self._workers, **self._options)
            return self._sandbox

    def _grade(self, grader: Grader, job: tuple[str, Half, str]) -> Verdict:
        problem_id, tests, code = job
        try:
            with self._lock:  # one thread loads, the others find it
                problem, suite = self._problem(problem_id), self._suite(problem_id, tests)
        except KeyError:
            return Verdict.error(f"there is no problem {problem_id!r} in the data of this task")
        except (ScgrpoError, OSError) as error:
            return Verdict.error(f"the tests of {problem_id!r} cannot be read: {error}")
        return grader.grade(problem.complete(code) if code.strip() else "", suite)

    def _load_suite(self, problem_id: str, tests: Half) -> Suite:
        suite = self._problem(problem_id).suite().half(tests, problem_id, self._seed)
        return dataclasses.replace(suite, **self._limits)

    def _problem(self, problem_id: str) -> Problem:
        example = self._source.example()[0]
        return example if problem_id == example.id else self._problems[problem_id]

    @functools.cached_property
    def _problems(self) -> dict[str, Problem]:
        found: dict[str, Problem] = {}
        for split in ("train", "eval"):
            with contextlib.suppress(ConfigError, DataError):  # no such split; its rows were never handed out
                found |= {problem.id: problem for problem in self._source.problems(split)}
        return found

    @functools.cached_property
    def _train(self) -> Sequence[Problem]:
        """Training problems; those that are evaluated on too only where the tests are others."""
        problems = self._source.problems("train")
        if set(self._halves.values()) == {"A", "B"}:
            return problems
        held_out = {problem.id for problem in self._source.problems("eval")}
        kept = [problem for problem in problems if problem.id not in held_out]
        if problems and not kept:
            raise ConfigError(
                f"All {len(problems)} training problems of task {self.name!r} are evaluation problems too.",
                'Set tests="A" to train on one half of the tests of each and evaluate with the other, or choose '
                "other problems to train on.",
            )
        if len(kept) < len(problems):
            dropped = len(problems) - len(kept)
            logger.warning("%s: %d training problems are evaluation problems; dropped.", self.name, dropped)
        return kept


def code_task(name: str, source: Callable[..., Source]) -> Callable[..., CodeTask]:
    """The factory of a task by name: its options are those of `source` and of `CodeTask`."""
    own = inspect.signature(source).parameters
    common = list(inspect.signature(CodeTask).parameters.values())[2:]

    def make(**options: Any) -> CodeTask:
        kept = {key: options.pop(key) for key in list(options) if key in own}
        return CodeTask(source(**kept), name, **options)

    make.__name__ = name
    make.__doc__ = source.__doc__
    make.__signature__ = inspect.Signature([*own.values(), *common])  # type: ignore[attr-defined]
    return make


def _row(problem: Problem, tests: str) -> Row:
    return {"problem_id": problem.id, "prompt": [dict(message) for message in problem.prompt], "tests": tests}


def _program(completion: Any) -> str:
    code = last_block(completion_text(completion))
    return code.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be handed on
