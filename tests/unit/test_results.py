"""Lines of a sweep's results: compact, and read back as they were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from scgrpo.errors import RunError
from scgrpo.runs.results import Compute, Point, Problem, RunResult, append_result, read_results

PROBLEMS = [Problem("a", 8, 2, 0.25), Problem("b", 0, 0, None)]
RESULT = RunResult(
    stage="final",
    testbed="reach",
    base="1",
    method="grpo",
    learning_rate=3e-4,
    seed=0,
    settings={"method": "grpo"},
    tuned=[3e-4, 6e-4],
    status="done",
    error="",
    curve=[Point(0, 0, 0.1, 0.5, 8), Point(5, 900, 0.25, 1.0, 8, PROBLEMS)],
    compute=Compute(5, 900, 900, 1000, 0, 1.5, 1.25),
    diagnostics={"entropy": 0.5},
    path="runs/x",
)
PARTIAL_SCORES = replace(RESULT, seed=1, curve=[Point(5, 900, 0.4, 1.0, 8, [Problem("a", 2, 1, 0.4)])])
FAILED = replace(RESULT, seed=2, status="failed", error="RunError: no", curve=[], compute=None)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for result in (RESULT, PARTIAL_SCORES, FAILED):
        append_result(path, result)
    assert read_results(path) == [RESULT, PARTIAL_SCORES, FAILED]


def test_scores_that_are_shares_take_no_room(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for result in (RESULT, PARTIAL_SCORES):
        append_result(path, result)
    first, second = (json.loads(line)["curve"][-1]["problems"] for line in path.read_text().splitlines())
    assert first == {"problem_id": ["a", "b"], "n": [8, 0], "num_solved": [2, 0]}
    assert second["mean_score"] == [0.4]


def test_the_last_line_of_a_key_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    again = replace(RESULT, error="", diagnostics={"entropy": 0.25})
    for result in (RESULT, FAILED, again):
        append_result(path, result)
    assert read_results(path) == [again, FAILED]


def test_columns_of_different_lengths_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_result(path, RESULT)
    path.write_text(path.read_text().replace('"n": [8, 0]', '"n": [8]'))
    with pytest.raises(RunError, match="not a result"):
        read_results(path)
