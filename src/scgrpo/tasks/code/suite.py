"""The tests of one problem: programs that read and write, functions that are called, or assertions."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from scgrpo.errors import ConfigError, DataError, ScgrpoError
from scgrpo.tasks.data import halves

# Which of a problem's tests: all of them, or one of two halves that share none (unless there is only one test).
Half = Literal["all", "A", "B"]
_Made = TypeVar("_Made")
# Statements that run nothing of a program under test.
_INERT = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Pass)


@dataclass(frozen=True)
class StdinCase:
    """What a program is given to read, and what it should write."""

    input: str
    output: str


@dataclass(frozen=True)
class CallCase:
    """Arguments of a call and the value it should return: both JSON values."""

    arguments: tuple[Any, ...]
    expected: Any


@dataclass(frozen=True)
class AssertCase:
    """Python statements that fail if the program is wrong."""

    source: str


Case = StdinCase | CallCase | AssertCase


@dataclass(frozen=True)
class Suite:
    """The tests of one problem and how they are run.

    Attributes:
        cases: one or more, all of one kind.
        entry_point: of calls: the function, or method of a class `Solution`, that is called.
        preamble: source in front of the program.
        setup: of assertions: source between the program and each of them.
        checker: source of a program that judges an output where several are right, called as
            `checker.py input.txt correct_output.txt solution_output.txt`; it prints 1 (or 100) for a right one.
        comparison: of outputs without a checker: "lines" or "tokens" (`scgrpo.tasks.code.compare`).
        files: the program reads `input.txt` and writes `output.txt` instead of its standard streams.
        time_limit_s: for one test; for all of them where they are assertions.
        memory_mb: address space.
    """

    cases: tuple[Case, ...]
    entry_point: str = ""
    preamble: str = ""
    setup: str = ""
    checker: str = ""
    comparison: Literal["lines", "tokens"] = "lines"
    files: bool = False
    time_limit_s: float = 6.0
    memory_mb: int = 2048

    def half(self, which: Half, problem_id: str, seed: int) -> Suite:
        """The suite with one half of its distinct tests (`scgrpo.tasks.data.halves`); with a single test, both halves
        have it.

        Raises:
            ConfigError: there is no such half.
        """
        if which not in ("all", "A", "B"):
            raise ConfigError(f"There are no tests {which!r}.", "Choose all, A or B.")
        cases = distinct(self.cases)
        if which == "all" or len(cases) == 1:
            return self
        first, second = halves(problem_id, cases, seed)
        return dataclasses.replace(self, cases=tuple(first if which == "A" else second))


def distinct(cases: Sequence[Case]) -> list[Case]:
    """The cases without repetitions, in order."""
    first: dict[str, Case] = {}
    for case in cases:
        first.setdefault(repr(case), case)
    return list(first.values())


def stdin_cases(tests: Any, where: str) -> tuple[StdinCase, ...]:
    """Cases from `[{"input": ..., "output": ...}, ...]` or `{"inputs": [...], "outputs": [...]}`.

    Lists of lines become text, as in APPS.

    Raises:
        DataError: no tests, or one that is not of this form.
    """
    return tuple(
        StdinCase(_text(given, where, index), _text(wanted, where, index))
        for index, (given, wanted) in enumerate(_pairs(tests, where))
    )


def call_cases(tests: Any, where: str) -> tuple[CallCase, ...]:
    """Cases from the same forms, or from `[{"arguments": [...], "expected": ...}, ...]`.

    Inputs and outputs that are text are JSON, with one argument per line of the input.

    Raises:
        DataError: no tests, one that is not of this form, or text that is not JSON.
    """
    cases = []
    for index, (given, wanted) in enumerate(_pairs(tests, where)):
        try:
            arguments = [json.loads(line) for line in given.split("\n")] if isinstance(given, str) else given
            expected = json.loads(wanted) if isinstance(wanted, str) and isinstance(given, str) else wanted
        except ValueError as error:
            raise DataError(
                f"{where}, test {index}: not JSON ({error}).",
                "Write each argument as JSON on a line of its own, and the expected value as JSON.",
            ) from error
        if not isinstance(arguments, list | tuple):
            raise DataError(
                f"{where}, test {index}: the arguments are a {type(arguments).__name__}.", "Give a list of them."
            )
        cases.append(CallCase(tuple(arguments), expected))
    return tuple(cases)


def assert_cases(tests: Any, where: str) -> tuple[AssertCase, ...]:
    """Cases from a list of statements, or from one text.

    Raises:
        DataError: no tests, one that is not Python, an empty one, or none that does more than define something:
            every program would pass.
    """
    sources = [tests] if isinstance(tests, str) else tests
    if not isinstance(sources, list | tuple) or not sources:
        raise _no_tests(where)
    trees = [parsed(source, f"{where}, test {index}") for index, source in enumerate(sources)]
    for index, tree in enumerate(trees):
        if not tree.body:
            raise DataError(f"{where}, test {index}: it is empty.", "Every program would pass it; leave it out.")
    if all(map(_is_inert, trees)):
        raise DataError(f"{where}: the tests run nothing.", "A function that tests must also be called: check(add).")
    return tuple(AssertCase(source) for source in sources)


def parsed(source: Any, where: str) -> ast.Module:
    """The statements of a source.

    Raises:
        DataError: it is not Python.
    """
    try:
        tree = ast.parse(source)
        compile(tree, "test", "exec")  # finds what the grammar allows, such as a return outside of a function
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise DataError(f"{where}: not Python ({error}).", "Give statements to execute.") from error
    return tree


def _is_inert(tree: ast.Module) -> bool:
    return all(
        isinstance(node, _INERT) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in tree.body
    )


def named(where: str, make: Callable[..., _Made], *args: Any) -> _Made:
    """What `make` makes of a row.

    Raises:
        DataError: a value in it is of another kind than it should be.
    """
    try:
        return make(*args)
    except ScgrpoError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{where}: a column does not hold what it should ({type(error).__name__}: {error}).",
            "Correct the row, or leave it out.",
        ) from error


def _pairs(tests: Any, where: str) -> list[tuple[Any, Any]]:
    if isinstance(tests, Mapping) and {"inputs", "outputs"} <= tests.keys():
        inputs, outputs = tests["inputs"], tests["outputs"]
        if len(inputs) != len(outputs):
            raise DataError(f"{where}: {len(inputs)} inputs and {len(outputs)} outputs.", "Give one for each.")
        pairs = list(zip(inputs, outputs, strict=True))
    elif isinstance(tests, list | tuple):
        pairs = [_pair(test, where, index) for index, test in enumerate(tests)]
    else:
        raise DataError(
            f"{where}: the tests are a {type(tests).__name__}.",
            'Give a list like [{"input": "1 2", "output": "3"}], or {"inputs": [...], "outputs": [...]}.',
        )
    if not pairs:
        raise _no_tests(where)
    return pairs


def _pair(test: Any, where: str, index: int) -> tuple[Any, Any]:
    for given, wanted in (("input", "output"), ("arguments", "expected")):
        if isinstance(test, Mapping) and given in test and wanted in test:
            return test[given], test[wanted]
    raise DataError(
        f"{where}, test {index}: {str(test)[:80]!r} is no test.",
        'A test is {"input": ..., "output": ...} or {"arguments": [...], "expected": ...}.',
    )


def _text(value: Any, where: str, index: int) -> str:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise DataError(
            f"{where}, test {index}: input or output is a {type(value).__name__}.", "Programs read and write text."
        )
    return value


def _no_tests(where: str) -> DataError:
    return DataError(f"{where}: there are no tests.", "Nothing can be graded without; leave the item out.")
