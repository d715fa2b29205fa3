"""HumanEval (Chen et al. 2021, arXiv 2107.03374) and HumanEval+ (Liu et al. 2023, arXiv 2305.01210)."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from scgrpo.errors import ConfigError
from scgrpo.tasks.base import Split
from scgrpo.tasks.code import prompts
from scgrpo.tasks.code.extract import defines
from scgrpo.tasks.code.numpy_standin import without_numpy
from scgrpo.tasks.code.suite import Suite, assert_cases, named
from scgrpo.tasks.code.task import Problem
from scgrpo.tasks.data import deduplicated, read_rows, select_columns

_COLUMNS = {name: name for name in ("task_id", "prompt", "entry_point", "test")}
_INSTRUCTION = (
    "Complete this Python function. Answer with the whole function, in one ```python code block at the end of your "
    "answer."
)


class HumanEvalSource:
    """Functions to complete, tested by assertions. There are no training problems.

    Args:
        dataset_name: hub id or local file (`scgrpo.tasks.data`); columns: task_id, prompt, entry_point, test.
        dataset_split: its split.
        instruction: what comes before the function.
    """

    def __init__(
        self,
        *,
        dataset_name: str = "openai/openai_humaneval",
        dataset_split: str = "test",
        instruction: str = _INSTRUCTION,
    ) -> None:
        self._name, self._split, self._instruction = dataset_name, dataset_split, instruction

    def problems(self, split: Split) -> Sequence[Problem]:
        if split == "train":
            raise ConfigError(
                "HumanEval has no training problems.", "Train on another task (mbpp, code) and evaluate on this one."
            )
        return self._problems

    @functools.cached_property
    def _problems(self) -> list[Problem]:
        raw, where = read_rows(self._name, None, self._split)
        rows = [{**row, **select_columns(row, _COLUMNS, where(index))} for index, row in enumerate(raw)]
        unique = deduplicated(rows, lambda row: row["task_id"], self._name)
        problems = []
        for row in unique:
            item = f"{self._name}, {row['task_id']}"
            problems.append(named(item, _problem, row, self._instruction, item))
        return problems

    def example(self) -> tuple[Problem, tuple[str, ...], tuple[str, ...]]:
        row = {
            "task_id": "example/double",
            "prompt": 'def double(n: int) -> int:\n    """Twice a number.\n    >>> double(2)\n    4\n    """\n',
            "entry_point": "double",
            "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-3) == -6\n",
        }
        wrong = ("def double(n):\n    return 4", "import os\nos._exit(0)")
        right = ("def double(n):\n    return 2 * n", "    return n + n")
        problem = _problem(row, self._instruction, "example")
        return problem, (*map(prompts.fenced, right),), (*map(prompts.fenced, wrong), "4")


class HumanEvalPlusSource(HumanEvalSource):
    """HumanEval+: the problems of HumanEval with many more tests. There are no training problems.

    Args:
        dataset_name, dataset_split, instruction: as of `humaneval`.
    """

    def __init__(
        self,
        *,
        dataset_name: str = "evalplus/humanevalplus",
        dataset_split: str = "test",
        instruction: str = _INSTRUCTION,
    ) -> None:
        super().__init__(dataset_name=dataset_name, dataset_split=dataset_split, instruction=instruction)


def _problem(row: Mapping[str, Any], instruction: str, where: str) -> Problem:
    given, name = row["prompt"], row["entry_point"]
    # Helpers that the prompt defines belong to the tests too: an answer with others of its own does not change them.
    preamble = _before(given, name)
    tests = without_numpy(f"{preamble}\n{row['test']}\ncheck({name})")
    suite = Suite(assert_cases([tests], where), entry_point=name, preamble=preamble, time_limit_s=10.0)
    solution = row.get("canonical_solution") or ""
    return Problem(
        id=str(row["task_id"]),
        prompt=prompts.chat(f"{instruction}\n\n{prompts.fenced(given.rstrip())}"),
        suite=lambda: suite,
        complete=functools.partial(_complete, given, name),
        solution=prompts.fenced(given + solution) if solution else "",
    )


def _before(given: str, name: str) -> str:
    """What the prompt says before the function: imports and helpers."""
    found = list(re.finditer(rf"^def {re.escape(name)}\b", given, re.MULTILINE))
    return given[: found[-1].start()] if found else ""


def _complete(given: str, name: str, code: str) -> str:
    """An answer that has only the function's body goes on where the prompt ends."""
    return code if defines(code, name) else f"{given}{code}"
