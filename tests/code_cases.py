"""Code tasks over the rows in fixtures/code, and what tests ask of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scgrpo.tasks import get_task
from scgrpo.tasks.code import CodeTask, Suite

FIXTURES = Path(__file__).parent / "fixtures" / "code"


def make(name: str, **options: Any) -> CodeTask:
    task = get_task(name, **options)
    assert isinstance(task, CodeTask)
    return task


def ids(task: CodeTask, split: Any = "eval") -> list[str]:
    return [row["problem_id"] for row in task.rows(split)]


def suite(task: CodeTask, problem_id: str, tests: Any = "all") -> Suite:
    return task._load_suite(problem_id, tests)
