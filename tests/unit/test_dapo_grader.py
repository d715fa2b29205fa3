"""The strict grader of DAPO against what the original says of the same inputs.

`fixtures/math/dapo_grader.jsonl` holds completions made for this purpose with the answers that
`eval/math_dapo.py` of BytedTsinghua-SIA/DAPO (commit 33fe317) gives: `normalised` is its `pred`, `score` its `acc`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgrpo.tasks import Status, get_task
from scgrpo.tasks.math.dapo import dapo_score, given_answer, normalised

CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "fixtures" / "math" / "dapo_grader.jsonl")
    .read_text("utf-8")
    .splitlines()
]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_the_original_agrees(case: dict) -> None:
    assert normalised(given_answer(case["completion"])) == case["normalised"]
    assert dapo_score(case["completion"], case["gold"]) == case["score"]


def test_the_table_has_both_outcomes() -> None:
    assert 30 < sum(case["score"] for case in CASES) < len(CASES) - 30


@given(st.text(max_size=400), st.text(min_size=1, max_size=40))
def test_any_text_is_graded(completion: str, gold: str) -> None:
    assert dapo_score(completion, gold) in (0.0, 1.0)
    answer = " ".join(gold.split())
    if answer and "\\" not in answer:
        assert dapo_score(f"Answer: {answer}", answer) == 1.0


def test_what_stands_before_the_end_is_not_read() -> None:
    assert dapo_score("Answer: 7\n" + "x" * 280, "7") == 1.0
    assert dapo_score("Answer: 7\n" + "x" * 300, "7") == 0.0
    assert dapo_score("y" * 5_000_000 + "\nAnswer: 7", "7") == 1.0


def test_the_task_grades_as_text_alone_and_starts_no_process() -> None:
    task = get_task("math", grader="dapo")
    completions = ["Answer: 34", "Answer: 2 \\cdot 17", "\\boxed{34}", "Answer: 34", "Answer: 9^{9^{9^9}}"]
    verdicts = task.verify(completions, [{"answer": "34"}] * 3 + [{"answer": " "}, {"answer": "34"}])
    assert [v.score for v in verdicts[:3]] == [1.0, 0.0, 0.0]
    assert (verdicts[3].status, verdicts[3].detail) == (Status.ERROR, "the row has no reference answer")
    assert verdicts[4].score == 0.0
    assert task._pool is None
    canned = task.canned()
    verdicts = task.verify([*canned.right, *canned.wrong], [canned.row] * 4)
    assert [v.score for v in verdicts] == [1.0, 1.0, 0.0, 0.0]


def test_prompts_ask_for_the_line_that_is_read(tmp_path: Path) -> None:
    own = "Solve it step by step.\n\nWhat is 2 + 2?\n\nRemember to put your answer on a line."
    rows = [
        {"problem": "What is 1 + 1?", "answer": "2"},
        {"problem": "What is 2 + 1? Put it in \\boxed{}.", "answer": "3"},
        {"problem": f"{own} Answer: ...", "answer": "4"},
        {"problem": [{"role": "user", "content": [{"type": "text", "text": "What is 3 + 2?"}]}], "answer": "5"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    task = get_task("math", dataset_name=str(path), eval_fraction=0, grader="dapo")
    first, boxed, already, parts = (row["prompt"][0]["content"] for row in task.rows("train"))
    assert first.startswith("Solve the following math problem step by step. The last line of your response")
    assert first.endswith('\n\nWhat is 1 + 1?\n\nRemember to put your answer on its own line after "Answer:".')
    assert "What is 2 + 1? Put it in \\boxed{}.\n\nRemember" in boxed
    assert already == f"{own} Answer: ..."
    texts = [part["text"] for part in parts]
    assert texts[1] == "What is 3 + 2?"
    assert "".join(texts) == first.replace("1 + 1", "3 + 2")
