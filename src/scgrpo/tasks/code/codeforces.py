"""Codeforces, as collected by open-r1: problems with limits, official tests and, where several outputs are right, a
checker."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scgrpo.errors import DataError
from scgrpo.tasks.base import Split
from scgrpo.tasks.code import prompts
from scgrpo.tasks.code.extract import LONG_INTEGERS
from scgrpo.tasks.code.suite import Suite, named, stdin_cases
from scgrpo.tasks.code.task import Problem
from scgrpo.tasks.data import deduplicated, in_window, load_rows, read_rows, split_names

logger = logging.getLogger(__name__)

_NEEDED = ("id", "description", "time_limit", "memory_limit", "official_tests", "input_mode")
# Codeforces counts memory in use, the sandbox address space. Programs that recurse deeply reserve such a stack.
_STACK_MB = 256
_SECTIONS = (("input_format", "Input"), ("output_format", "Output"))


class CodeforcesSource:
    """Codeforces problems that can be graded: not interactive, and with a complete set of tests.

    Args:
        dataset_name: hub id, folder or file (`scgrpo.tasks.data`) with open-r1's columns.
        dataset_config: "verifiable", or "default" for all.
        dataset_train_split, dataset_test_split: splits; the test split is from late 2024 on. A file has none: all
            its rows are evaluation problems.
        generated_tests: folder with open-r1's generated tests (`test_cases_0001.parquet`, ...), which are added to
            the official ones. Without it, problems whose official tests are incomplete are left out.
        start_date, end_date: of the contest, ISO, both included; for evaluation problems.
        min_rating, max_rating: difficulty; problems without one are left out if either is set.
        time_factor: on the time limit. Codeforces allows what C++ needs; Python is slower.
        exclude: ids to leave out.
    """

    def __init__(
        self,
        *,
        dataset_name: str = "open-r1/codeforces",
        dataset_config: str | None = "verifiable",
        dataset_train_split: str = "train",
        dataset_test_split: str = "test",
        generated_tests: str | None = None,
        start_date: str | None = None,
        end_date: str | None = None,
        min_rating: int | None = None,
        max_rating: int | None = None,
        time_factor: float = 1.0,
        exclude: Sequence[str] = (),
    ) -> None:
        self._name, self._config = dataset_name, dataset_config
        self._splits: dict[Split, str] = {"train": dataset_train_split, "eval": dataset_test_split}
        self._generated = None if generated_tests is None else Path(generated_tests)
        self._dates = (start_date, end_date)
        self._ratings = (min_rating, max_rating)
        self._time_factor, self._exclude = time_factor, frozenset(exclude)
        self._read = functools.cache(self._read_split)

    def problems(self, split: Split) -> Sequence[Problem]:
        return self._read(split)

    def _read_split(self, split: Split) -> list[Problem]:
        name = self._splits[split] if split_names(self._name, self._config) else "train"
        raw, where = read_rows(self._name, self._config, name)
        for index, row in enumerate(raw):
            missing = [column for column in _NEEDED if column not in row]
            if missing:
                raise DataError(f"{where(index)}: no column {', '.join(missing)}.", "This is not open-r1's format.")
        unique = deduplicated(raw, lambda row: row["id"], self._name)
        rows = [named(self._where(row), self._dated, row) for row in unique]
        if split == "eval":
            rows = in_window(rows, "contest_date", *self._dates)
        kept = [row for row in rows if named(self._where(row), self._wanted, row)]
        if len(kept) < len(rows):
            logger.info(
                "%s: %d of %d problems cannot be graded or are not wanted.", name, len(rows) - len(kept), len(rows)
            )
        if not kept:
            raise DataError(
                f"{self._name} ({name}): none of {len(rows)} problems can be graded.",
                "Problems need complete official tests, or generated_tests, the folder of open-r1's generated ones.",
            )
        return [named(self._where(row), self._problem, row) for row in kept]

    def _where(self, row: Mapping[str, Any]) -> str:
        return f"{self._name}, problem {row['id']!r}"

    def _dated(self, row: Mapping[str, Any]) -> dict[str, Any]:
        start = row.get("contest_start")  # seconds since 1970
        return {**row, "contest_date": start and datetime.fromtimestamp(start, UTC).date().isoformat()}

    def _wanted(self, row: Mapping[str, Any]) -> bool:
        lowest, highest = self._ratings
        rating = row.get("rating")
        rated = (lowest is None and highest is None) or (
            rating is not None and (lowest or rating) <= rating <= (highest or rating)
        )
        complete = row.get("official_tests_complete", True) and row["official_tests"]
        generated = self._generated is not None and _generated_file(self._generated, row["id"]).is_file()
        return bool(
            rated and (complete or generated) and not row.get("interaction_format") and row["id"] not in self._exclude
        )

    def _problem(self, row: Mapping[str, Any]) -> Problem:
        where = self._where(row)
        official = list(row["official_tests"] or ())
        time_s, memory_mb = float(row["time_limit"] or 2.0), math.ceil(row["memory_limit"] or 256)
        if min(time_s, memory_mb) <= 0:
            raise DataError(f"{where}: limits of {time_s} s, {memory_mb} MB.", "Both must be above 0.")
        suite = Suite(
            stdin_cases(official, where) if official else (),
            preamble=LONG_INTEGERS,
            checker=row.get("generated_checker") or "",
            comparison="tokens",
            files=row["input_mode"] == "file",
            time_limit_s=self._time_factor * time_s,
            memory_mb=memory_mb + _STACK_MB,
        )
        load = functools.partial(_with_generated, suite, self._generated, row["id"], where)
        return Problem(str(row["id"]), prompts.chat(_statement(row)), load)

    def example(self) -> tuple[Problem, tuple[str, ...], tuple[str, ...]]:
        row = {
            "id": "example/A",
            "title": "Two parts",
            "description": "Split a positive integer into two non-negative integers.",
            "input_format": "One integer n.",
            "output_format": "Two integers whose sum is n. If there are several answers, print any.",
            "examples": [{"input": "3", "output": "1 2"}],
            "official_tests": [{"input": "3\n", "output": "1 2\n"}, {"input": "10\n", "output": "5 5\n"}],
            "generated_checker": (
                "import sys\nn = int(open(sys.argv[1]).read())\nparts = open(sys.argv[3]).read().split()\n"
                "numbers = [int(part) for part in parts]\n"
                "print(int(len(numbers) == 2 and sum(numbers) == n and min(numbers) >= 0))\n"
            ),
            "input_mode": "stdio",
            "time_limit": 2.0,
            "memory_limit": 256.0,
        }
        right = ("print(0, input())", "n = int(input())\nprint(n)\nprint(0)")
        wrong = ("print(input())", "print('none')", "print(1, 2)")
        return self._problem(row), tuple(map(prompts.fenced, right)), (*map(prompts.fenced, wrong), "1 2")


def _statement(row: Mapping[str, Any]) -> str:
    parts = [
        f"# {row['title']}" if row.get("title") else "",
        f"Time limit: {row['time_limit']} s. Memory limit: {row['memory_limit']} MB.",
        row["description"],
        *(f"## {heading}\n{row[column]}" for column, heading in _SECTIONS if row.get(column)),
        *(
            f"## Example\n{_block('Input', example['input'])}\n{_block('Output', example['output'])}"
            for example in row.get("examples") or ()
        ),
        f"## Note\n{row['note']}" if row.get("note") else "",
        prompts.FILES_INSTRUCTION if row["input_mode"] == "file" else prompts.STDIN_INSTRUCTION,
    ]
    return "\n\n".join(part.strip() for part in parts if part)


def _block(heading: str, text: str) -> str:
    return f"{heading}:\n```\n{text.strip()}\n```"


def _generated_file(folder: Path, problem_id: str) -> Path:
    contest = problem_id.partition("/")[0]
    return folder / (f"test_cases_{int(contest):04d}.parquet" if contest.isdigit() else "")


def _with_generated(suite: Suite, folder: Path | None, problem_id: str, where: str) -> Suite:
    """The suite with the generated tests of its problem, which are read when they are needed: they are large."""
    tests: list[Any] = []
    if folder is not None and _generated_file(folder, problem_id).is_file():
        rows = load_rows(_generated_file(folder, problem_id))
        tests = [row for row in rows if row.get("problem_id") == problem_id]
    cases = suite.cases + (stdin_cases(tests, where) if tests else ())
    if not cases:
        raise DataError(f"{where}: there are no tests.", "Leave it out with exclude=[...].")
    return dataclasses.replace(suite, cases=cases)
