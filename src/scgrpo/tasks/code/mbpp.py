"""MBPP (Austin et al. 2021, arXiv 2108.07732) and MBPP+ (Liu et al. 2023, arXiv 2305.01210)."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from scgrpo.errors import ConfigError, DataError
from scgrpo.tasks.base import Split
from scgrpo.tasks.code import prompts
from scgrpo.tasks.code.numpy_standin import without_numpy
from scgrpo.tasks.code.suite import Suite, assert_cases, named, parsed
from scgrpo.tasks.code.task import Problem
from scgrpo.tasks.data import deduplicated, find_column, read_rows, split_names

_IDS: dict[Split, tuple[int, int]] = {"train": (601, 974), "eval": (11, 510)}


class MBPPSource:
    """Short functions, described in a sentence and tested by assertions.

    The splits are the paper's, by `task_id`, whatever files or splits the rows come from: 601-974 to train on, 11-510
    to evaluate with (511-600 are for validation, 1-10 for prompts).

    Args:
        dataset_name: hub id or local file or folder (`scgrpo.tasks.data`), with the columns task_id, text or prompt,
            and test_list; perhaps test_setup_code or test_imports, and code.
        dataset_config: "full" or "sanitized" on the hub.
        train_ids, eval_ids: first and last `task_id` of each split.
        shown_tests: how many of a problem's assertions the prompt shows; None: all, as in the paper. Those that are
            shown can be satisfied without solving the problem.
        exclude: task_ids to leave out. (The tests of 367 and 927 need a class `Node` that the prompt does not name.)
    """

    def __init__(
        self,
        *,
        dataset_name: str = "google-research-datasets/mbpp",
        dataset_config: str | None = "full",
        train_ids: Sequence[int] | None = _IDS["train"],
        eval_ids: Sequence[int] = _IDS["eval"],
        shown_tests: int | None = None,
        exclude: Sequence[int] = (),
    ) -> None:
        self._name, self._config = dataset_name, dataset_config
        self._ids: dict[Split, Sequence[int] | None] = {"train": train_ids, "eval": eval_ids}
        for split, ids in self._ids.items():
            if ids is not None and (len(ids) != 2 or ids[0] > ids[1]):
                raise ConfigError(f"{split}_ids={ids!r} is no range.", "Give the first and the last task_id.")
        self._shown, self._exclude = shown_tests, frozenset(exclude)

    def problems(self, split: Split) -> Sequence[Problem]:
        ids = self._ids[split]
        if ids is None:
            raise ConfigError(
                "MBPP+ has no training problems.",
                "Train on mbpp, or set train_ids (and eval_ids that leave them out).",
            )
        first, last = ids
        chosen = [p for number, p in self._numbered if first <= number <= last and number not in self._exclude]
        if not chosen:
            raise DataError(
                f"{self._name} has no problems with a task_id from {first} to {last}.",
                f"Give other {split}_ids, or data that has them.",
            )
        return chosen

    @functools.cached_property
    def _numbered(self) -> list[tuple[int, Problem]]:
        rows: list[dict[str, Any]] = []
        for name in split_names(self._name, self._config) or ["train"]:
            raw, where = read_rows(self._name, self._config, name)
            rows += [named(where(index), _checked, row, where(index)) for index, row in enumerate(raw)]
        unique = deduplicated(rows, lambda row: row["task_id"], self._name)
        return [
            (row["task_id"], named(f"{self._name}, {row['task_id']}", _problem, row, self._shown)) for row in unique
        ]

    def example(self) -> tuple[Problem, tuple[str, ...], tuple[str, ...]]:
        row = {
            "task_id": 0,
            "text": "Write a function to find the largest of three numbers.",
            "test_list": ["assert largest(1, 2, 3) == 3", "assert largest(5, -1, 0) == 5"],
        }
        right = "def largest(a, b, c):\n    return max(a, b, c)"
        wrong = (
            "def largest(a, b, c):\n    return c",
            "import sys\nsys.exit(0)",
            "class Same:\n    __eq__ = lambda self, other: True\n\ndef largest(a, b, c):\n    return Same()",
        )
        return (
            _problem(_checked(row, "example"), self._shown),
            (prompts.fenced(right),),
            tuple(map(prompts.fenced, wrong)),
        )


class MBPPPlusSource(MBPPSource):
    """MBPP+: 378 problems of MBPP with many more tests. All are evaluation problems, also those with a `task_id` that
    `mbpp` trains on: after training there, evaluate with `eval_ids=[11, 510]`.

    Args:
        dataset_name: hub id or local file, with the columns task_id, prompt, test_list and test.
        train_ids, eval_ids, shown_tests, exclude: as of `mbpp`; the prompt shows tests of `test_list`.
    """

    def __init__(
        self,
        *,
        dataset_name: str = "evalplus/mbppplus",
        train_ids: Sequence[int] | None = None,
        eval_ids: Sequence[int] = (1, 974),
        shown_tests: int | None = None,
        exclude: Sequence[int] = (),
    ) -> None:
        super().__init__(
            dataset_name=dataset_name,
            dataset_config=None,
            train_ids=train_ids,
            eval_ids=eval_ids,
            shown_tests=shown_tests,
            exclude=exclude,
        )


def _checked(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row with the columns of all versions under one name."""
    text = row[find_column(row, ("text", "prompt"), "prompt", where)]
    shown = row[find_column(row, ("test_list",), "tests", where)]
    shown = [shown] if isinstance(shown, str) else shown
    number = row[find_column(row, ("task_id",), "task_id", where)]
    setup = "\n".join([row.get("test_setup_code") or "", *(row.get("test_imports") or ())])
    parsed(setup, f"{where}, set-up")
    cases = assert_cases([row["test"]] if row.get("test") else shown, where)
    return {
        "task_id": _number(number, where),
        "text": text,
        "shown": list(shown),
        "setup": setup,
        "cases": cases,
        "code": row.get("code") or "",
    }


def _number(value: Any, where: str) -> int:
    found = re.search(r"\d+$", str(value))
    if found is None:
        raise DataError(f"{where}: task_id {value!r} has no number.", "The splits go by it; give ids like 601.")
    return int(found[0])


def _problem(row: Mapping[str, Any], num_shown: int | None) -> Problem:
    shown = row["shown"][:num_shown]
    text = f"{row['text'].strip()}\n\n"
    if shown:
        text += "Your code should pass these tests:\n\n" + prompts.fenced("\n".join(shown)) + "\n\n"
    cases = [dataclasses.replace(case, source=without_numpy(case.source)) for case in row["cases"]]
    suite = Suite(tuple(cases), entry_point=_called(row["shown"]), setup=row["setup"], time_limit_s=10.0)
    return Problem(
        id=f"mbpp/{row['task_id']}",
        prompt=prompts.chat(text + prompts.FUNCTION_INSTRUCTION),
        suite=lambda: suite,
        solution=prompts.fenced(row["code"].replace("\r\n", "\n")) if row["code"] else "",
    )


def _called(tests: Sequence[str]) -> str:
    """The function that the first test calls: the first name that is not a builtin's, unless there is none."""
    calls = [node for node in ast.walk(ast.parse(tests[0] if tests else "")) if isinstance(node, ast.Call)]
    names = [call.func.id for call in calls if isinstance(call.func, ast.Name)]
    return next((name for name in names if not hasattr(builtins, name)), names[0] if names else "")
