"""Whole tasks: rows, answers as models write them, verdicts."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from scgrpo.errors import ShapeError
from scgrpo.tasks import Status, get_task
from scgrpo.tasks.code import CallCase, CodeTask
from scgrpo.tasks.reward import reward_function

FIXTURES = Path(__file__).parents[1] / "fixtures" / "code"


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def rows_of(task: Any, split: Any) -> list[Mapping[str, Any]]:
    return list(task.rows(split))


def test_every_kind_of_own_rows_end_to_end() -> None:
    task = get_task("code", dataset_name=str(FIXTURES / "own.jsonl"), eval_fraction=0, num_workers=2)
    assert isinstance(task, CodeTask)
    rows = rows_of(task, "train")
    answers = [task.solution(row) for row in rows]
    try:
        assert [v.score for v in task.verify(answers, rows)] == [1.0] * 5
        assert [v.score for v in task.verify(answers[1:] + answers[:1], rows)] == [0.0] * 5
    finally:
        task.close()


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_reference_solutions_of_the_fixtures(name: str) -> None:
    task = get_task(name, dataset_name=str(FIXTURES / f"{name}.jsonl"), num_workers=2)
    assert isinstance(task, CodeTask)
    rows = rows_of(task, "eval")
    try:
        assert [v.score for v in task.verify([task.solution(row) for row in rows], rows)] == [1.0] * len(rows)
        assert [v.score for v in task.verify([fenced("x = 1")] * len(rows), rows)] == [0.0] * len(rows)
    finally:
        task.close()


def test_helpers_of_a_prompt_are_the_tests_own() -> None:
    """An answer that makes encode and decode do nothing would pass if the tests used its encode."""
    task = get_task("humaneval", dataset_name=str(FIXTURES / "humaneval.jsonl"), num_workers=1)
    row = next(row for row in task.rows("eval") if row["problem_id"] == "Own/1")
    cheat = fenced("def encode(text):\n    return text\n\ndef decode(text):\n    return text")
    try:
        assert task.verify([cheat], [row])[0].score == 0.0
    finally:
        task.close()


def test_halves_grade_by_their_own_tests() -> None:
    task = get_task("livecodebench", dataset_name=str(FIXTURES / "livecodebench"), tests="A", num_workers=1)
    assert isinstance(task, CodeTask)
    train, evaluation = (next(r for r in task.rows(s) if r["problem_id"] == "9001") for s in ("train", "eval"))  # type: ignore[arg-type]
    known = [case.arguments[0] for case in task._load_suite("9001", "A").cases if isinstance(case, CallCase)]
    answer = fenced(
        "class Solution:\n    def countUp(self, n):\n"
        f"        return [list(range(1, n + 1)), n * (n + 1) // 2] if n in {known} else 0"
    )
    try:
        assert [v.score for v in task.verify([answer, answer], [train, evaluation])] == [1.0, 0.0]
    finally:
        task.close()


def test_verdicts_are_in_order_and_rewards_follow() -> None:
    task = get_task("codeforces", dataset_name=str(FIXTURES / "codeforces.jsonl"), num_workers=2)
    rows = {row["problem_id"]: row for row in task.rows("eval")}
    right = {
        "9001/A": "print('yes' if int(input()) % 2 == 0 else 'No')",
        "9001/B": "print(0, input())",
        "9001/C": "n = open('input.txt').read().strip()\nopen('output.txt', 'w').write(f'{n}\\n{n}')",
    }
    wrong = fenced("print(input(), 0, 0)")
    answers, asked = [wrong], [rows["9001/B"]]
    for name, code in right.items():
        answers += [fenced(code), wrong, fenced(code)]
        asked += [rows[name]] * 3
    columns = {key: [row[key] for row in asked] for key in ("problem_id", "tests")}
    chats = [[{"role": "assistant", "content": answer}] for answer in answers]
    try:
        rewards = reward_function(task)(prompts=[row["prompt"] for row in asked], completions=chats, **columns)
    finally:
        task.close()
    assert rewards == [0.0, *[1.0, 0.0, 1.0] * 3]


def test_odd_completions_and_rows_never_raise() -> None:
    task = get_task("mbpp", dataset_name=str(FIXTURES / "mbpp.jsonl"), num_workers=2)
    row = task.rows("train")[0]
    program = "def reverse(a):\n    return a[::-1]"
    answers = [
        fenced(f"# {'x' * 5_000_000}\n{program}"),
        "x" * 5_000_000 + fenced(program),
        fenced(program + "\n# \ud800"),
        "```" * 100_000,
        "",
        "\0",
        fenced("(" * 100_000),
        fenced("x = " + "-" * 100_000 + "1"),
    ]
    try:
        verdicts = task.verify(answers, [row] * len(answers))
        assert [v.status for v in verdicts] == [Status.GRADED] * len(answers)
        assert [v.score for v in verdicts] == [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
        unknown = task.verify([fenced(program)], [{"problem_id": "mbpp/9999", "tests": "all"}])[0]
        assert unknown.status is Status.ERROR
        assert "mbpp/9999" in unknown.detail
        with pytest.raises(ShapeError, match="1 completions for 2 rows"):
            task.verify([""], [row, row])
    finally:
        task.close()


def test_tests_that_went_away_are_an_error_of_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "lcb.jsonl"
    path.write_text((FIXTURES / "livecodebench" / "test6.jsonl").read_text())
    task = get_task("livecodebench", dataset_name=str(path), num_workers=1)
    rows = task.rows("eval")
    path.write_text(json.dumps({}) + "\n" + path.read_text())
    try:
        verdicts = task.verify([fenced("print(1)")] * len(rows), rows)
    finally:
        task.close()
    assert {v.status for v in verdicts} == {Status.ERROR}
    assert "own006_b" in verdicts[0].detail


def test_closing_twice_and_grading_again() -> None:
    task = get_task("code", num_workers=1)
    canned = task.canned()
    for _ in range(2):
        assert task.verify([canned.right[0]], [canned.row])[0].score == 1.0
        task.close()
        task.close()


def test_ctrl_c_does_not_wait_for_what_is_running() -> None:
    task = get_task("code", num_workers=2)
    row = task.canned().row
    waits = [fenced(f"import time\ntime.sleep({seconds})") for seconds in (60, 61, 62)]
    timer = threading.Timer(3.0, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    start = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        task.verify(waits, [row] * 3)
    assert time.monotonic() - start < 30  # they would sleep for a minute
    assert task.verify([task.canned().right[0]], [row])[0].score == 1.0  # with a new sandbox
    task.close()
