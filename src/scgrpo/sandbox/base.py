"""What a sandbox is: programs in, results out. Every back-end keeps to this, and users need nothing else."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Protocol

from scgrpo.errors import ConfigError


class Outcome(StrEnum):
    """How a run ended.

    OK: by itself, with exit code 0.
    EXIT: by itself, with another exit code: an uncaught exception (MemoryError too) or `sys.exit`.
    TIMEOUT: the wall clock or CPU time ran out.
    KILLED: by a signal: a crash of the interpreter, or the kernel short of memory.
    OUTPUT: it wrote more than it may.
    ERROR: the sandbox itself failed. Nothing follows about the program: no verdict may be drawn from it.
    """

    OK = "ok"
    EXIT = "exit"
    TIMEOUT = "timeout"
    KILLED = "killed"
    OUTPUT = "output"
    ERROR = "error"


@dataclass(frozen=True)
class Limits:
    """What one run may use.

    Attributes:
        wall_s: seconds until it is killed.
        cpu_s: CPU seconds of all its threads; None: only the wall clock counts. The kernel enforces whole seconds,
            rounded up; a run that ends by itself having used more is a TIMEOUT all the same.
        memory_mb: address space beyond the interpreter's own, MiB.
        output_bytes: of stdout, and as many of stderr.
    """

    wall_s: float = 10.0
    cpu_s: float | None = None
    memory_mb: int = 512
    output_bytes: int = 1_000_000

    def __post_init__(self) -> None:
        times = [self.wall_s, *([] if self.cpu_s is None else [self.cpu_s])]
        if not all(time > 0 and math.isfinite(time) for time in times) or min(self.memory_mb, self.output_bytes) < 1:
            raise ConfigError(f"{self} cannot work.", "Every limit must be finite and above 0.")


@dataclass(frozen=True)
class Program:
    """A Python program, run as `__main__`.

    Attributes:
        stdin: all that it can read from standard input.
        files: name -> text, in its working directory. It can read them and nothing can be written.
        arguments: `sys.argv[1:]`.
    """

    source: str
    stdin: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.files:
            if "/" in name or "\0" in name or PurePosixPath(name).name in ("", "..", "."):
                raise ConfigError(f"{name!r} is not a file name.", "Files of a program are plain names, no folders.")


@dataclass(frozen=True)
class Result:
    """What became of a program. `detail` says in one line why `outcome` is not OK.

    stdout and stderr are cut at `Limits.output_bytes`; bytes that are not UTF-8 are replaced. `exit_code` is negative
    for a signal and None for ERROR. Seconds are the child's own, without waiting for a worker.
    """

    outcome: Outcome
    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    detail: str = ""


@dataclass(frozen=True)
class CallResult:
    """One call of a function. `value` is what it returned, through JSON: tuples are lists, keys are strings."""

    outcome: Outcome
    value: Any = None
    detail: str = ""
    wall_s: float = 0.0


@dataclass(frozen=True)
class Judged:
    """What tests say of a candidate.

    `passed` is None exactly where `outcome` is ERROR: then nothing is known. Else it is True if all tests ran to
    their end. False comes with the reason: EXIT (a test failed or something raised), TIMEOUT, KILLED.
    """

    passed: bool | None
    outcome: Outcome
    detail: str = ""


class Sandbox(Protocol):
    """Runs Python code that nobody trusts. Methods may be called from several threads; they never raise for what the
    code does, and for a failure of the sandbox they return ERROR. They raise SandboxError on a closed sandbox, or in
    a forked copy of the process that opened it.
    """

    @property
    def level(self) -> str:
        """What holds the code, in a word or two; see docs/security.md."""

    def run(self, program: Program, limits: Limits = ...) -> Result:
        """Run one program to its end."""

    def run_many(self, programs: Sequence[tuple[Program, Limits]]) -> list[Result]:
        """Run all, on all workers; results in the order given."""

    def call(
        self,
        source: str,
        function: str,
        arguments: Sequence[Sequence[Any]],
        limits: Limits = ...,
        *,
        total_wall_s: float | None = None,
    ) -> list[CallResult]:
        """Call `Solution().function`, where the source has such a class, else `function`, once per argument list.

        One process makes all calls, in order, until one does not end OK: that one is the last of the list, which may
        so be shorter than `arguments`, and is empty only for no arguments. What keeps the source from running at all
        is the first result's. Values come back as JSON and are to be compared here, out of the code's reach.

        Args:
            arguments: one list of JSON values per call.
            limits: `wall_s` is for each call (the first one's includes running the source); the rest for all calls.
            total_wall_s: for all calls together; None: `wall_s` times the number of calls.
        """

    def judge(
        self, candidate: str, tests: str, limits: Limits = ..., *, entry_points: Collection[str] = ()
    ) -> Judged:
        """Run assert-style tests (HumanEval, MBPP) against a candidate, which cannot make them pass by tricks.

        The tests are trusted and run in a sandboxed process of their own. Names they use and do not define are looked
        up in the candidate's process, except Python's builtins and standard modules. Calls go there, and plain values
        (numbers, strings, containers, ...) come back as bytes that the tests' process decodes. Everything else comes
        back as a handle, which can be called, asked for attributes, items, iteration, length, truth, `str`, `int` and
        `float`, and equals nothing but itself. Changes that the candidate makes to lists, dicts and sets that it is
        given are made to the originals. Its exceptions are raised in the tests, as the builtin class they are or
        derive from.

        Args:
            candidate: source that defines what the tests use.
            tests: source that raises nothing if, and only if, the candidate is right. It may define helpers; what it
                defines is never asked of the candidate.
            limits: `wall_s` for everything together; the rest for each of the two processes.
            entry_points: names that the candidate provides even if Python has a builtin or a module of that name
                (MBPP has a `sum`). All others in the tests are Python's, whatever the candidate defines.
        """

    def close(self) -> None:
        """Kill the workers. Calling it twice is harmless."""

    def __enter__(self) -> Sandbox: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
