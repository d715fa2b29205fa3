"""Code tasks on the real benchmarks, as far as they can be had: reference solutions pass, other answers do not.

Skips without the shared data. `python -m pytest tests/parity/test_code_conformance.py` is the whole check.
"""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scgrpo.tasks import Status, Verdict, get_task
from scgrpo.tasks.code import CodeTask
from scgrpo.tasks.code.decode import decode_tests


@pytest.fixture(scope="module")
def data(shared_dir: Path) -> Path:
    return shared_dir / "data" / "code"


Make = Callable[..., CodeTask]


@pytest.fixture
def make() -> Iterator[Make]:
    tasks: list[CodeTask] = []

    def made(name: str, **options: Any) -> CodeTask:
        task = get_task(name, **options)
        assert isinstance(task, CodeTask)
        tasks.append(task)
        return task

    yield made
    for task in tasks:
        task.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def passed(verdicts: list[Verdict]) -> int:
    for index, verdict in enumerate(verdicts):
        if verdict.score != 1.0:
            print(index, verdict)  # shown if the test fails
    assert all(verdict.status is Status.GRADED for verdict in verdicts)
    return sum(verdict.score == 1.0 for verdict in verdicts)


def test_humaneval(data: Path, make: Make) -> None:
    task = make("humaneval", dataset_name=str(data / "humaneval.jsonl"))
    rows, raw = task.rows("eval"), lines(data / "humaneval.jsonl")
    assert len(rows) == 164
    assert passed(task.verify([task.solution(row) for row in rows], rows)) == 164
    bodies = [f"```python\n{item['canonical_solution']}\n```" for item in raw]
    assert passed(task.verify(bodies, rows)) == 164  # an answer may be the body alone
    empty = [f"```python\ndef {item['entry_point']}(*a, **k):\n    return None\n```" for item in raw]
    assert passed(task.verify(empty, rows)) == 0


def test_mbpp(data: Path, make: Make) -> None:
    """974 of 974. Graders that run a problem's setup before the answer fail 367 and 927, whose setup makes a tree of
    `Node`s, which the answer defines."""
    task = make("mbpp", dataset_name=str(data / "mbpp.jsonl"), eval_ids=[1, 974])
    rows = task.rows("eval")
    assert len(rows) == 974
    solutions = [task.solution(row) for row in rows]
    assert passed(task.verify(solutions, rows)) == 974
    nodes = [row for row in rows if row["problem_id"] in ("mbpp/367", "mbpp/927")]
    without = [task.solution(row).replace("class Node", "class Other") for row in nodes]
    assert passed(task.verify(without, nodes)) == 0
    # The next problem's solution, which hardly ever defines the function that is tested.
    assert passed(task.verify(solutions[1:] + solutions[:1], rows)) <= 5


def test_mbpp_splits(data: Path, make: Make) -> None:
    task = make("mbpp", dataset_name=str(data / "mbpp.jsonl"))
    assert (len(task.rows("train")), len(task.rows("eval"))) == (374, 500)


@pytest.fixture
def samples(data: Path, tmp_path: Path) -> tuple[list[dict[str, Any]], Path]:
    """Items with known passing and failing answers, and a file of LiveCodeBench's own form made of them."""
    items = lines(data / "lcb_sample3.jsonl")
    rows = []
    for item in items:
        tests = json.loads(decode_tests(item["encoded_private_tests"], item["id"])["input_output"])
        kind = "functional" if tests["fn_name"] else "stdin"
        cases = [
            {"input": given, "output": wanted, "testtype": kind}
            for given, wanted in zip(tests["inputs"], tests["outputs"], strict=True)
        ]
        private = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases[1:])))).decode()
        rows.append(
            {
                "question_id": item["task"],
                "question_title": item["task"],
                "question_content": item["prompt"],
                "contest_date": "2025-02-01T00:00:00",
                "starter_code": "",
                "public_test_cases": json.dumps(cases[:1]),
                "private_test_cases": private,
                "metadata": json.dumps({"func_name": tests["fn_name"]}),
            }
        )
    path = tmp_path / "test6.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return items, path


def test_real_compressed_tests_are_what_is_beside_them_in_the_clear(data: Path) -> None:
    for item in lines(data / "lcb_sample3.jsonl"):
        clear = item["input_output"]
        hidden = json.loads(decode_tests(item["encoded_private_tests"], item["id"])["input_output"])
        assert hidden["fn_name"] == clear["fn_name"]
        assert hidden["inputs"]
        assert len(hidden["inputs"]) == len(hidden["outputs"])


@pytest.mark.parametrize("tests", ["all", "A", "B"])
def test_livecodebench_samples(samples: tuple[list[dict[str, Any]], Path], make: Make, tests: Any) -> None:
    items, path = samples
    task = make("livecodebench", dataset_name=str(path), tests="A", eval_tests=tests)
    rows = task.rows("eval")
    assert [row["problem_id"] for row in rows] == [item["task"] for item in items]
    right, wrong = ([item[f"{kind}_completion"] for item in items] for kind in ("passing", "failing"))
    assert passed(task.verify(right, rows)) == 3
    assert passed(task.verify(wrong, rows)) == 0


def test_livecodebench_samples_as_own_rows(data: Path, make: Make) -> None:
    """The same items in the form of APPS, through the task for one's own rows."""
    items = lines(data / "lcb_sample3.jsonl")
    task = make("code", dataset_name=str(data / "lcb_sample3.jsonl"), eval_fraction=0, instruction="")
    rows = task.rows("train")
    assert passed(task.verify([item["passing_completion"] for item in items], rows)) == 3
    assert passed(task.verify([item["failing_completion"] for item in items], rows)) == 0
