"""Grading one program by the tests of its problem, in the sandbox.

    right    every test passes                                   1.0
    wrong    no program, a wrong output, an exception, a crash,
             out of time or memory, too much output              0.0 (or the share of tests that pass)
    error    the sandbox or the problem's own checker failed     no score: nothing follows about the program

What is expected never enters the process that runs the program; outputs and values are compared here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from scgrpo.sandbox import Limits, Outcome, Program, Result, Sandbox
from scgrpo.tasks.base import Verdict
from scgrpo.tasks.code.compare import COMPARISONS
from scgrpo.tasks.code.extract import with_preamble
from scgrpo.tasks.code.suite import AssertCase, CallCase, StdinCase, Suite

Reward = Literal["all", "fraction"]

# A time limit is CPU time, so that a busy machine makes nobody wrong; the wall clock only stops what sleeps.
_WALL_PER_CPU = 10.0
_OUTPUT_BYTES = 4_000_000
_CHECKER_LIMITS = Limits(wall_s=100.0, cpu_s=10.0, memory_mb=1024)
_CHECKER_FILES = ("input.txt", "correct_output.txt", "solution_output.txt")

# For programs that write a file: nothing can be written in the sandbox, so the file is standard output, and what is
# printed goes nowhere.
FILES_PREAMBLE = """\
def _files():
    import builtins, io, os, sys
    real = io.open
    class Nowhere(io.TextIOBase):
        def write(self, text): return len(text)
    def opened(name, mode="r", *more, **options):
        named = name if isinstance(name, int) else os.fspath(name)
        if named == "output.txt" and set(mode) & set("wax"):
            return real(1, mode.replace("x", "w").replace("+", ""), *more, **options, closefd=False)
        return real(name, mode, *more, **options)
    builtins.open = io.open = opened
    sys.stdout = Nowhere()
_files()
"""


class UngradedError(Exception):
    """The sandbox or a problem's checker failed; nothing follows about the program."""


@dataclass(frozen=True)
class _Tested:
    """What one test says, and the seconds it took."""

    passed: bool
    detail: str = ""
    seconds: float = 0.0


class Grader:
    """Grades programs.

    Args:
        sandbox: an open sandbox.
        reward: "all": 1 if every test passes, and the first that does not ends the grading; "fraction": the share of
            tests that pass.
        total_time_s: for all tests of one program together. A program that needs more fails those that are left.
    """

    def __init__(self, sandbox: Sandbox, *, reward: Reward = "all", total_time_s: float = 120.0) -> None:
        self._sandbox, self._reward, self._total_time_s = sandbox, reward, total_time_s

    def grade(self, code: str, suite: Suite) -> Verdict:
        """The verdict on a program. Never raises for what the program does."""
        if not code.strip():
            return Verdict(0.0, detail="no program in the answer")
        try:
            tested = self._test(code, suite)
        except UngradedError as error:
            return Verdict.error(str(error))
        failed = next((f"test {index}: {t.detail}" for index, t in enumerate(tested) if not t.passed), "")
        if self._reward == "fraction":
            return Verdict(sum(t.passed for t in tested) / len(suite.cases), detail=failed)
        return Verdict(float(not failed), detail=failed)

    def _test(self, code: str, suite: Suite) -> list[_Tested]:
        if isinstance(suite.cases[0], CallCase):
            return self._in_turn(suite, partial(self._call, with_preamble(suite.preamble, code), suite))
        if isinstance(suite.cases[0], AssertCase):
            return self._asserts(with_preamble(suite.preamble, code), suite)
        files = FILES_PREAMBLE if suite.files else ""
        source = with_preamble("\n".join(part for part in (files, suite.preamble) if part), code)
        return self._in_turn(suite, partial(self._stdin, source, suite))

    def _limits(self, suite: Suite, left_s: float, output_bytes: int = _OUTPUT_BYTES) -> Limits:
        return Limits(
            wall_s=min(_WALL_PER_CPU * suite.time_limit_s, left_s),
            cpu_s=suite.time_limit_s,
            memory_mb=suite.memory_mb,
            output_bytes=output_bytes,
        )

    def _in_turn(self, suite: Suite, test: Callable[[Any, float], _Tested]) -> list[_Tested]:
        """`test` on one case after the other, with the seconds that are left."""
        left_s, tested = self._total_time_s, list[_Tested]()
        for case in suite.cases:
            tested.append(test(case, left_s) if left_s > 0 else _LATE)
            left_s -= tested[-1].seconds
            if self._reward == "all" and not tested[-1].passed:
                break
        return tested

    def _stdin(self, source: str, suite: Suite, case: StdinCase, left_s: float) -> _Tested:
        given = _unix_lines(case.input) if suite.checker or suite.files else case.input
        program = Program(
            source, stdin="" if suite.files else given, files={"input.txt": given} if suite.files else {}
        )
        room = max(_OUTPUT_BYTES, 2 * len(case.output.encode()) + 1024)
        result = self._sandbox.run(program, self._limits(suite, left_s, room))
        if result.outcome is Outcome.ERROR:
            raise UngradedError(result.detail)
        if result.outcome is not Outcome.OK:
            return _Tested(False, _reason(result), result.wall_s)
        if suite.checker:
            passed, detail = self._checked(suite.checker, given, case.output, result.stdout)
        else:
            passed, detail = COMPARISONS[suite.comparison](result.stdout, case.output), "wrong output"
        return _Tested(passed, "" if passed else detail, result.wall_s)

    def _checked(self, checker: str, given: str, expected: str, output: str) -> tuple[bool, str]:
        if "\ufffd" in output:  # written out it would be three times as large, in a file that the sandbox must hold
            return False, "the output is not UTF-8 text"
        says, problem = self._ask(checker, given, expected, output)
        if says is None:
            # Its fault or the output's? A checker that works accepts the reference output.
            if self._ask(checker, given, expected, expected)[0] is not True:
                raise UngradedError(f"the problem's checker does not accept the reference output: {problem}")
            return False, f"the checker cannot read the output: {problem}"
        return says, "the checker rejects the output"

    def _ask(self, checker: str, given: str, expected: str, output: str) -> tuple[bool | None, str]:
        """What the checker says; None and the reason if it says nothing."""
        texts = (given, _without_empty_lines(expected), _without_empty_lines(output))
        files = dict(zip(_CHECKER_FILES, texts, strict=True))
        result = self._sandbox.run(Program(checker, files=files, arguments=_CHECKER_FILES), _CHECKER_LIMITS)
        if result.outcome is Outcome.ERROR:
            raise UngradedError(result.detail)
        if result.outcome is not Outcome.OK:
            return None, _reason(result)
        return "".join(result.stdout.split()) in ("1", "100"), ""

    def _call(self, source: str, suite: Suite, case: CallCase, left_s: float) -> _Tested:
        """In a process of its own: no test suffers from what an earlier one left behind, and no program has a second
        try at a call that went wrong."""
        limits = self._limits(suite, left_s)
        (result,) = self._sandbox.call(source, suite.entry_point, [list(case.arguments)], limits)
        if result.outcome is Outcome.ERROR:
            raise UngradedError(result.detail)
        ended = result.outcome is Outcome.OK
        passed = ended and result.value == case.expected
        detail = "" if passed else "wrong value" if ended else f"{result.outcome}: {result.detail}"
        return _Tested(passed, detail, result.wall_s)

    def _asserts(self, source: str, suite: Suite) -> list[_Tested]:
        sources = [case.source for case in suite.cases if isinstance(case, AssertCase)]
        groups = ["\n".join(sources)] if self._reward == "all" else sources
        limits = self._limits(suite, self._total_time_s / len(groups))
        tested = []
        for group in groups:
            tests = with_preamble(suite.setup, group)
            judged = self._sandbox.judge(source, tests, limits, entry_points={suite.entry_point} - {""})
            if judged.passed is None:
                raise UngradedError(judged.detail)
            detail = "" if judged.passed else f"{judged.outcome}: {judged.detail}"
            tested.append(_Tested(judged.passed, detail))
        return tested


_LATE = _Tested(False, "the time for all tests is over")


def _reason(result: Result) -> str:
    last = result.stderr.strip().rpartition("\n")[2]
    return f"{result.outcome}: {last or result.detail}"[:200]


def _unix_lines(text: str) -> str:
    return text.replace("\r\n", "\n")


def _without_empty_lines(text: str) -> str:
    lines = [line for line in _unix_lines(text).split("\n") if line]
    return "\n".join(lines) + "\n" if lines else ""
