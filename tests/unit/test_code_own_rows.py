"""The user's own problems: their forms, and rows that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from code_cases import FIXTURES, ids, make, suite

from scgrpo.errors import ConfigError, DataError
from scgrpo.tasks.code import AssertCase, CallCase, StdinCase


def test_own_rows_of_every_kind() -> None:
    task = make("code", dataset_name=str(FIXTURES / "own.jsonl"), eval_fraction=0)
    rows = task.rows("train")
    assert task.rows("eval") == []
    suites = [suite(task, row["problem_id"]) for row in rows]
    assert [type(s.cases[0]) for s in suites] == [StdinCase, CallCase, AssertCase, StdinCase, StdinCase]
    assert suites[1].entry_point == "clip"
    assert suites[3].checker
    assert (suites[4].files, suites[4].time_limit_s, suites[4].memory_mb) == (True, 3, 300)
    ends = [row["prompt"][-1]["content"].split("\n\n")[-1] for row in rows]
    assert "standard input" in ends[0]
    assert "standard input" in ends[3]
    assert "input.txt" in ends[4]


def test_own_rows_held_out_for_evaluation() -> None:
    task = make("code", dataset_name=str(FIXTURES / "own.jsonl"), eval_fraction=0.4)
    assert len(ids(task)) == 2
    assert set(ids(task)) | set(ids(task, "train")) == {
        *ids(make("code", dataset_name=str(FIXTURES / "own.jsonl"), eval_fraction=0), "train")
    }
    assert not set(ids(task)) & set(ids(task, "train"))
    both = make(
        "code", dataset_name=str(FIXTURES / "own.jsonl"), eval_dataset_name=str(FIXTURES / "own.jsonl"), tests="A"
    )
    assert ids(both) == ids(both, "train")


def test_own_columns_and_prompts(tmp_path: Path) -> None:
    rows = [{"task": "Add.", "io": {"cases": [{"input": "1", "output": "1"}]}, "name": 7, "start": "n = 0"}] * 2
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    columns = {"prompt": "task", "tests": "io.cases", "problem_id": "name", "starter_code": "start"}
    task = make(
        "code", dataset_name=str(tmp_path / "rows.json"), columns=columns, instruction="", system_prompt="Be brief."
    )
    row = task.rows("train")[0]
    assert row["problem_id"] == "7"
    assert row["prompt"][0] == {"role": "system", "content": "Be brief."}
    assert row["prompt"][1]["content"] == "Add.\n\nStart from this code:\n```python\nn = 0\n```"
    assert len(task.rows("train")) == 1  # the repeated row is dropped
    with pytest.raises(ConfigError, match=r"columns names chekcer"):
        make("code", columns={"chekcer": "x"})
    with pytest.raises(ConfigError, match="no data"):
        make("code").rows("train")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tests": "[1, 2"}, "line 1: the tests are not JSON"),
        ({"tests": [1]}, "line 1: .* are no tests"),
        ({"tests": "[" * 100_000}, "line 1: a column does not hold what it should .RecursionError"),
        ({"tests": ""}, "line 1: empty tests"),
        ({"prompt": " ", "tests": ["assert f(1) == 1"]}, "line 1: empty prompt"),
        ({"tests": ["assert f(1) == 1", "# to do"]}, "line 1, test 1: it is empty"),
        ({"tests": "def check(f):\n    assert f(1) == 1"}, "line 1: the tests run nothing"),
        ({"tests": {"inputs": 1, "outputs": 2}}, "line 1: a column does not hold what it should"),
        ({"tests": ["assert f(1) == 1"], "setup": 5}, "line 1: setup is a int"),
        ({"tests": []}, "line 1"),
        ({"tests": [{"input": "1"}]}, "line 1, test 0"),
        ({"tests": [{"arguments": [1], "expected": 1}]}, "line 1: which function is called"),
        ({"tests": ["assert 1 =="]}, "line 1, test 0: not Python"),
        ({}, "line 1: no column for the tests"),
        ({"tests": [{"input": "1", "output": "1"}], "time_limit": "two"}, "line 1: time_limit is 'two'"),
        ({"tests": [{"input": "1", "output": "1"}], "prompt": 5}, "neither a string nor a list"),
    ],
)
def test_own_rows_that_cannot_be_used_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    (tmp_path / "bad.jsonl").write_text(json.dumps({"prompt": "Add.", **row}))
    with pytest.raises(DataError, match=message):
        make("code", dataset_name=str(tmp_path / "bad.jsonl")).rows("train")
