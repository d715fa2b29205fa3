"""Rows of tasks as verl's data sets: what comes back is what went in, for every task; what cannot is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from scgrpo.cli.main import main
from scgrpo.errors import DataError, RunError
from scgrpo.integrations.verl.data import read_problem, verl_row, write_parquet
from scgrpo.tasks import get_task
from scgrpo.tasks.base import Canned, Row, Split, Task, Verdict

# What needs no download and no other program to show a row.
TASKS: dict[str, dict[str, Any]] = {
    "reach": {},
    "countdown": {},
    "countdown-undo": {},
    "style": {},
    "maze": {},
    "frozen_lake": {},
    "guess_number": {"min_numbers": 20},
    "math": {},
    "dapo_math": {},
    "exact": {"match": "choice"},
    "webshop": {"catalogue": "mini"},
    "livecodebench": {},
    "mbpp": {},
}


class Rows(Task):
    """A task of given rows."""

    name = "rows"

    def __init__(self, *rows: Row) -> None:
        self.given = list(rows)

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        return self.given[:limit]

    def verify(self, completions: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        return [Verdict(1.0) for _ in completions]

    def canned(self) -> Canned:
        return Canned(self.given[0], (), ())


def user(text: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("name", TASKS)
def test_every_row_comes_back(name: str, tmp_path: Path) -> None:
    task = get_task(name, **TASKS[name])
    try:
        row = task.canned().row
        write_parquet(tmp_path / "a.parquet", [verl_row(name, TASKS[name], task, "train", 3, row)])
    finally:
        task.close()
    (found,) = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert read_problem(found["extra_info"]) == (name, TASKS[name], row)
    assert found["prompt"] == row["prompt"]
    assert (found["data_source"], found["extra_info"]["index"]) == (task.name, 3)
    environment = name in ("frozen_lake", "guess_number", "webshop", "maze")
    assert (found["agent_name"] == "scgrpo_environment") == environment


def test_all_rows_are_written_in_order(tmp_path: Path) -> None:
    rows = [{"problem_id": str(n), "prompt": user(f"{n}?"), "answer": n} for n in range(2345)]
    task = Rows(*rows)
    written = (verl_row("rows", {}, task, "eval", i, row) for i, row in enumerate(rows))
    assert write_parquet(tmp_path / "deep" / "a.parquet", written) == 2345
    file = parquet.ParquetFile(tmp_path / "deep" / "a.parquet")
    assert file.num_row_groups == 3, "written some at a time"
    found = file.read().to_pylist()
    assert [row["extra_info"]["index"] for row in found] == list(range(2345))
    assert [row["reward_model"]["ground_truth"] for row in found[:2]] == ["0", "1"]
    assert {row["extra_info"]["split"] for row in found} == {"eval"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "a text"}, "string as its prompt"),
        ({"prompt": user([{"type": "text", "text": "a"}])}, "more than a role and a text"),
        ({"prompt": [{**user("a")[0], "name": "x"}]}, "more than a role and a text"),
        ({"prompt": user("a"), "cells": (1, 2)}, "reads back as something else"),
        ({"prompt": user("a"), "when": object()}, "not JSON serializable"),
        ({"prompt": user("a"), "score": float("nan")}, "reads back as something else"),
    ],
)
def test_rows_that_verl_could_not_give_back(row: Row, says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        verl_row("rows", {}, Rows(), "train", 7, {"problem_id": "p9", **row})
    assert "Row 7 ('p9')" in str(error.value)


def test_half_a_character_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    rows = [verl_row("rows", {}, Rows(), "train", 0, {"problem_id": "p", "prompt": user("\ud800")})]
    with pytest.raises(DataError, match="cannot hold"):
        write_parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(DataError, match="no rows"):
        write_parquet(tmp_path / "a.parquet", [])
    with pytest.raises(RunError, match=r"does not end in \.parquet"):
        write_parquet(tmp_path / "a.json", rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "extra",
    [None, {}, {"index": 3}, {"task": "reach", "task_options": "{}", "row": "{"}, {"task": "reach", "row": {}}],
)
def test_other_data_sets_are_told_apart(extra: Any) -> None:
    with pytest.raises(DataError, match="scgrpo verl-data"):
        read_problem(extra)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "train.parquet"
    options = json.dumps({"min_numbers": 20, "max_numbers": 30})
    command = [
        "verl-data",
        "--task",
        "guess_number",
        "--task_options",
        options,
        "--split",
        "train",
        "--out",
        str(out),
    ]
    assert main([*command, "--limit", "5"]) == 0
    assert "5 rows of guess_number" in capsys.readouterr().out
    assert parquet.read_table(out).num_rows == 5
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert parquet.read_table(out).num_rows == 5
    assert main([*command, "--overwrite"]) == 0
    rows = get_task("guess_number", min_numbers=20, max_numbers=30).rows("train")
    assert [read_problem(row["extra_info"]).row for row in parquet.read_table(out).to_pylist()] == rows
    assert main(["verl-data", "--task", "gues_number", "--split", "eval", "--out", str(out)]) == 2
    assert "Did you mean 'guess_number'" in capsys.readouterr().err


def test_the_reward_and_the_data_need_neither_host() -> None:
    code = (
        "import sys; import scgrpo.integrations.verl.data, scgrpo.integrations.verl.reward; "
        "print([m for m in ('trl', 'verl', 'transformers', 'datasets', 'torch') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
