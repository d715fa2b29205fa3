"""The user's own programming problems."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from scgrpo.errors import ConfigError, DataError
from scgrpo.tasks.base import Message, Split
from scgrpo.tasks.code import prompts
from scgrpo.tasks.code.suite import Case, Suite, assert_cases, call_cases, named, stdin_cases
from scgrpo.tasks.code.task import Problem
from scgrpo.tasks.data import (
    checked_columns,
    deduplicated,
    find_column,
    is_chat,
    read_rows,
    split_names,
    train_eval_split,
)

Kind = Literal["auto", "stdin", "functional", "asserts"]
_CANDIDATES = {
    "prompt": ("prompt", "problem", "question", "text", "question_content"),
    "tests": ("tests", "test_cases", "test_list", "input_output", "test"),
}
# Columns that a problem may have besides; any can be renamed with `columns`.
# fmt: off
_OPTIONAL = (
    "problem_id", "entry_point", "setup", "preamble", "starter_code", "checker", "input_mode", "time_limit",
    "memory_limit", "solution",
)
# fmt: on
_INSTRUCTIONS = {
    "stdin": prompts.STDIN_INSTRUCTION,
    "files": prompts.FILES_INSTRUCTION,
    "functional": prompts.FUNCTION_INSTRUCTION,
    "asserts": prompts.FUNCTION_INSTRUCTION,
}


class RowsSource:
    """Problems with tests of any kind, from the hub or a file.

    Each row has a prompt (text or chat messages) and tests, which may also be written as JSON text:

        [{"input": "1 2", "output": "3"}, ...]                  a program reads and writes
        [{"arguments": [1, 2], "expected": 3}, ...]             a function is called; its name is in `entry_point`
        {"inputs": [...], "outputs": [...], "fn_name": null}    either of these, as in APPS and TACO
        ["assert add(1, 2) == 3", ...]                          statements that fail if the program is wrong

    and perhaps: `setup` (source before the assertions), `preamble` (source before the program), `starter_code` (is
    shown), `checker` (a program that judges outputs, see `scgrpo.tasks.code.suite.Suite`), `input_mode` ("file": the
    program reads input.txt and writes output.txt), `time_limit` (s), `memory_limit` (MB), `solution`, `problem_id`.

    Args:
        dataset_name: hub id, folder or file (`scgrpo.tasks.data`).
        dataset_config: configuration on the hub.
        dataset_train_split: split that is trained on.
        dataset_test_split: split of the evaluation rows, if the data has it.
        eval_dataset_name: other data to take the evaluation rows from; `dataset_test_split` is then a split of it.
        columns: what a column is called in the data, dotted for a field in a column: {"tests": "io.cases"}.
        kind: of the tests; "auto": told from each row.
        eval_fraction: share of the training rows that is held out if there are no other evaluation rows.
        split_seed: which rows these are.
        instruction: appended to the prompt; None: one that fits the tests, "" for none.
        system_prompt: put in front.
    """

    def __init__(
        self,
        *,
        dataset_name: str | None = None,
        dataset_config: str | None = None,
        dataset_train_split: str = "train",
        dataset_test_split: str | None = "test",
        eval_dataset_name: str | None = None,
        columns: Mapping[str, str] | None = None,
        kind: Kind = "auto",
        eval_fraction: float = 0.1,
        split_seed: int = 0,
        instruction: str | None = None,
        system_prompt: str | None = None,
    ) -> None:
        if kind not in ("auto", "stdin", "functional", "asserts"):
            raise ConfigError(f"There are no tests of kind {kind!r}.", "Choose auto, stdin, functional or asserts.")
        self._name, self._eval_name, self._config = dataset_name, eval_dataset_name, dataset_config
        self._train_split, self._test_split = dataset_train_split, dataset_test_split
        self._columns, self._kind = checked_columns(columns, [*_CANDIDATES, *_OPTIONAL]), kind
        self._fraction, self._seed = eval_fraction, split_seed
        self._instruction, self._system = instruction, system_prompt

    def problems(self, split: Split) -> Sequence[Problem]:
        return self._splits[split]

    @functools.cached_property
    def _splits(self) -> dict[Split, list[Problem]]:
        if self._name is None and self._eval_name is None:
            raise ConfigError("Task 'code' has no data.", "Set dataset_name to a hub id or a local file.")
        train = [] if self._name is None else self._load(self._name, self._train_split)
        other = self._eval_name or self._name or ""
        names = split_names(other, self._config)
        if self._eval_name is not None or (names is not None and self._test_split in names):
            return {"train": train, "eval": self._load(other, self._test_split or "test")}
        rows = [_keyed(problem) for problem in train]
        kept, held_out = train_eval_split(rows, self._fraction, self._seed)
        return {"train": [row["problem"] for row in kept], "eval": [row["problem"] for row in held_out]}

    def _load(self, name: str, split: str) -> list[Problem]:
        raw, where = read_rows(name, self._config, split)
        rows = [_keyed(named(where(index), self._problem, row, where(index))) for index, row in enumerate(raw)]
        return [row["problem"] for row in deduplicated(rows, lambda row: row["problem_id"], name)]

    def _problem(self, row: Mapping[str, Any], where: str) -> Problem:
        prompt = _value(row, self._columns.get("prompt"), "prompt", where)
        tests = _parsed(_value(row, self._columns.get("tests"), "tests", where), where)
        more = {name: _optional(row, self._columns.get(name, name)) for name in _OPTIONAL}
        kind = _kind_of(tests, more, where) if self._kind == "auto" else self._kind
        suite = _suite(kind, tests, more, where)
        instruction = (
            _INSTRUCTIONS["files" if suite.files else kind] if self._instruction is None else self._instruction
        )
        if more["starter_code"]:
            instruction = f"Start from this code:\n{prompts.fenced(more['starter_code'])}\n\n{instruction}".rstrip()
        messages = self._messages(prompt, instruction)
        name = more["problem_id"]
        return Problem(
            id=hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:12] if name is None else str(name),
            prompt=messages,
            suite=lambda: suite,
            solution=prompts.fenced(more["solution"]) if more["solution"] else "",
        )

    def _messages(self, prompt: Any, instruction: str) -> list[Message]:
        messages = [dict(message) for message in prompt] if is_chat(prompt) else prompts.chat(prompt)
        if instruction:
            last = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=0)
            messages[last]["content"] = f"{messages[last]['content']}\n\n{instruction}"
        if self._system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self._system})
        return messages

    def example(self) -> tuple[Problem, tuple[str, ...], tuple[str, ...]]:
        row = {
            "problem_id": "example-gcd",
            "prompt": "Write a function gcd(a, b) that returns the greatest common divisor of two positive integers.",
            "tests": [{"arguments": [12, 18], "expected": 6}, {"arguments": [7, 5], "expected": 1}],
            "entry_point": "gcd",
        }
        right = ("def gcd(a, b):\n    return a if b == 0 else gcd(b, a % b)", "from math import gcd")
        wrong = ("def gcd(a, b):\n    return min(a, b)", "def gcd(a, b):\n    raise SystemExit(0)")
        return self._problem(row, "example"), tuple(map(prompts.fenced, right)), tuple(map(prompts.fenced, wrong))


def _keyed(problem: Problem) -> dict[str, Any]:
    return {"problem_id": problem.id, "problem": problem}


def _value(row: Mapping[str, Any], column: str | None, what: str, where: str) -> Any:
    names = _CANDIDATES[what] if column is None else (column,)
    value = _optional(row, find_column(row, names, what, where))
    if not (value.strip() if isinstance(value, str) else value):
        raise DataError(f"{where}: empty {what}.", "Correct the row, or leave it out.")
    return value


def _optional(row: Mapping[str, Any], column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for key in column.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _parsed(tests: Any, where: str) -> Any:
    """Tests that are JSON text, as values. Text that is no list or mapping is taken for assertions."""
    if not isinstance(tests, str) or not tests.lstrip().startswith(("[", "{")):
        return tests
    try:
        return json.loads(tests)
    except ValueError as error:
        raise DataError(
            f"{where}: the tests are not JSON ({error}).", "Write a list of tests, as JSON if it is text."
        ) from error


def _kind_of(tests: Any, more: Mapping[str, Any], where: str) -> Kind:
    if isinstance(tests, Mapping):
        return "functional" if tests.get("fn_name") or more["entry_point"] else "stdin"
    first = tests[0] if isinstance(tests, list | tuple) and tests else tests
    if isinstance(first, str):
        return "asserts"
    if isinstance(first, Mapping):
        return "functional" if "arguments" in first or more["entry_point"] else "stdin"
    raise DataError(
        f"{where}: {str(tests)[:80]!r} are no tests.",
        'Give a list of {"input", "output"} or {"arguments", "expected"} objects, or of assertions.',
    )


def _suite(kind: Kind, tests: Any, more: Mapping[str, Any], where: str) -> Suite:
    cases: tuple[Case, ...]
    entry_point = more["entry_point"] or (tests.get("fn_name") if isinstance(tests, Mapping) else None) or ""
    if kind == "functional":
        if not entry_point:
            raise DataError(f"{where}: which function is called?", "Name it in the column entry_point.")
        cases = call_cases(tests, where)
    else:
        cases = assert_cases(tests, where) if kind == "asserts" else stdin_cases(tests, where)
    for name in ("preamble", "setup", "checker"):
        if more[name] is not None and not isinstance(more[name], str):
            raise DataError(f"{where}: {name} is a {type(more[name]).__name__}.", "It is source: text.")
    for name in ("time_limit", "memory_limit"):
        if more[name] is not None and not (isinstance(more[name], int | float) and more[name] > 0):
            raise DataError(f"{where}: {name} is {more[name]!r}.", "Give a number above 0.")
    limits = {"time_limit_s": more["time_limit"], "memory_mb": more["memory_limit"]}
    return Suite(
        cases,
        entry_point=entry_point,
        preamble=more["preamble"] or "",
        setup=more["setup"] or "",
        checker=more["checker"] or "",
        files=more["input_mode"] == "file",
        **{name: value for name, value in limits.items() if value is not None},
    )
