"""Which rows a math task has: known sets, columns, rows that cannot be used, several evaluation sets."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from scgrpo.errors import ConfigError, DataError
from scgrpo.tasks import get_task
from scgrpo.tasks.math import SETS
from scgrpo.tasks.math import rows as math_rows
from scgrpo.tasks.math.rows import problem_id


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# One made-up row as each set has it on the hub, and its answer.
ON_THE_HUB: dict[str, tuple[dict[str, Any], str]] = {
    "gsm8k": ({"question": "How many?", "answer": "1000 + 1 = <<1000+1=1001>>1,001\n#### 1,001"}, "1001"),
    "hendrycks_math": (
        {"problem": "1/2?", "level": "Level 1", "solution": "$\\boxed{\\frac{1}{2}}$", "type": "Algebra"},
        "\\frac{1}{2}",
    ),
    "dapo_math": (
        {"prompt": "1 + 1?", "solution": "2", "data_source": "math_dapo", "reward_model": {"ground_truth": "2"}},
        "2",
    ),
    "dapo_math_raw": (
        {"prompt": [{"role": "user", "content": "1 + 1? Answer: $Answer"}], "reward_model": {"ground_truth": "2"}},
        "2",
    ),
    "aime24": ({"id": 60, "problem": "1 + 24?", "solution": "$\\boxed{25}$", "answer": "025", "url": "u"}, "25"),
    "aime25": ({"problem": "1 + 24?", "answer": "25", "id": "0"}, "25"),
    "math500": ({"problem": "1/2?", "solution": "s", "answer": "\\frac12", "level": 1}, "\\frac12"),
    "amc23": ({"id": 0, "question": "1 + 26?", "answer": 27.0, "url": "u"}, "27"),
    "minerva": ({"question": "How far, in cm?", "answer": "1.6"}, "1.6"),
    "olympiadbench": (
        {"question": "2n - 2?", "solution": ["long"], "final_answer": ["$2 n-2$"], "is_multiple_answer": False},
        "2 n-2",
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_known_sets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, answer = ON_THE_HUB[name]
    asked: list[tuple] = []

    def read_rows(*source: str) -> tuple[list[dict], Any]:
        asked.append(source)
        return [raw, raw], lambda index: f"row {index}"

    monkeypatch.setattr(math_rows, "read_rows", read_rows)
    monkeypatch.setattr(math_rows, "split_names", lambda *source: ["train", "test"])
    known = SETS[name]
    task = get_task(name)
    split = "eval" if known.benchmark else "train"
    rows = task.rows(split) or task.rows("eval")
    assert [(row["answer"], row["dataset"]) for row in rows] == [(answer, name)]
    assert (known.hub_id, known.config, known.split) in asked
    asked.clear()
    [row] = get_task("math", eval_dataset_name=name).rows("eval")
    assert asked == [(known.hub_id, known.config, known.test_split or known.split)]
    assert row["dataset"] == name
    asked.clear()
    [row] = get_task("math", eval_dataset_name=known.hub_id, dataset_test_split="other").rows("eval")
    assert asked == [(known.hub_id, known.config, "other")]
    if known.benchmark:
        with pytest.raises(ConfigError, match=f"Task '{name}' is for evaluation"):
            task.rows("train")


def test_a_benchmark_reads_a_local_copy_in_whatever_columns(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "aime.jsonl", [{"Problem": f"{n} + 1?", "Answer": n + 1} for n in range(30)])
    task = get_task("aime24", dataset_name=path)
    assert [row["answer"] for row in task.rows("eval")] == [str(n + 1) for n in range(30)]
    with pytest.raises(ConfigError, match="is for evaluation"):
        task.rows("train")
    (tmp_path / "folder").mkdir()
    write_jsonl(tmp_path / "folder" / "test.jsonl", [{"question": "1 + 1?", "answer": 2.0}])
    assert len(get_task("amc23", dataset_name=str(tmp_path / "folder")).rows("eval")) == 1


def test_several_evaluation_sets_are_one_with_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = write_jsonl(tmp_path / "t.jsonl", [{"problem": f"{n} + 1?", "answer": n + 1} for n in range(6)])
    one = write_jsonl(
        tmp_path / "one.jsonl", [{"problem": "1 + 1?", "answer": 2}, {"problem": "8 + 1?", "answer": 9}]
    )
    two = write_jsonl(
        tmp_path / "two.jsonl", [{"question": "8 + 1?", "answer": 9}, {"question": "5 + 1?", "answer": 6}]
    )
    task = get_task("math", dataset_name=train, eval_dataset_name=[one, two])
    assert [(r["answer"], r["dataset"]) for r in task.rows("eval")] == [("2", one), ("9", one), ("6", two)]
    with caplog.at_level(logging.WARNING):
        assert [r["answer"] for r in task.rows("train")] == ["1", "3", "4", "5"]
    assert task.rows("eval", 2) == task.rows("eval")[:2]


def test_a_problem_is_known_in_the_wording_of_dapo_too(tmp_path: Path) -> None:
    wrapped = (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        "$Answer (without quotes) where $Answer is the answer to the problem.\n\nWhat is\n$1 + 1$?\n\n"
        'Remember to put your answer on its own line after "Answer:".'
    )
    assert problem_id([{"role": "user", "content": wrapped}]) == problem_id(wrapped) == problem_id("What is $1 + 1$?")
    assert problem_id("What is $1 + 2$?") != problem_id(wrapped)
    train = write_jsonl(
        tmp_path / "train.jsonl", [{"prompt": wrapped, "answer": 2}, {"prompt": "2 + 2?", "answer": 4}]
    )
    test = write_jsonl(tmp_path / "test.jsonl", [{"problem": "What is $1+1$?", "answer": 2}])
    assert [r["answer"] for r in get_task("math", dataset_name=train, eval_dataset_name=test).rows("train")] == ["4"]


BAD = [
    ({"problem": " ", "answer": "1"}, "The prompt is empty"),
    ({"problem": [{"role": "system", "content": "Be brief."}], "answer": "1"}, "The prompt is empty"),
    ({"problem": [{"role": "user", "content": [{"type": "image"}]}], "answer": "1"}, "The prompt is empty"),
    ({"problem": 7, "answer": "1"}, "neither a string nor a list of chat messages"),
    ({"problem": [], "answer": "1"}, "neither a string nor a list of chat messages"),
    ({"problem": "1 + 1?", "answer": " "}, "the answer ' ' cannot be graded against: no answer"),
    ({"problem": "1 + 1?", "answer": None}, r"column 'answer' \(the answer\) is missing or empty"),
    ({"problem": "1 + 1?", "answer": ["1", "2"]}, "cannot be graded against: 2 answers, not one"),
    (
        {"problem": "1 + 1?", "answer": "Clearly it is two. " * 40},
        "cannot be graded against: a text of 758 characters",
    ),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_row_that_cannot_be_used_is_named_or_dropped(
    row: dict, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [{"problem": f"{n} + 2?", "answer": n + 2} for n in range(3)]
    path = write_jsonl(tmp_path / "rows.jsonl", [*good, row, row])
    with pytest.raises(DataError, match=f"rows.jsonl, line 4: .*{reason}"):
        get_task("math", dataset_name=path, eval_fraction=0).rows("train")
    task = get_task("math", dataset_name=path, eval_fraction=0, on_bad_row="drop")
    with caplog.at_level(logging.WARNING):
        assert [r["answer"] for r in task.rows("train")] == ["2", "3", "4"]
    assert "2 of 5 rows" in caplog.text
    assert "rows.jsonl, line 4: " in caplog.text


def test_the_first_row_may_be_the_one_without_an_answer(tmp_path: Path) -> None:
    rows = [{"problem": "0?", "answer": None, "solution": "long"}, {"problem": "1?", "answer": 1, "solution": "long"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    task = get_task("math", dataset_name=path, eval_fraction=0, on_bad_row="drop")
    assert [r["answer"] for r in task.rows("train")] == ["1"]


def test_if_no_row_can_be_used_that_is_an_error(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"problem": "", "answer": 1}] * 3)
    with pytest.raises(DataError, match=r"none of its 3 rows can be used; the first: .*line 1: The prompt is empty"):
        get_task("math", dataset_name=path, on_bad_row="drop").rows("train")


def test_keep_chooses_rows_by_column(tmp_path: Path) -> None:
    rows = [{"problem": f"{n} + 1?", "answer": n + 1, "level": f"Level {n % 3}", "hard": n > 3} for n in range(6)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)

    def answers(**options: Any) -> list[str]:
        return [r["answer"] for r in get_task("math", dataset_name=path, eval_fraction=0, **options).rows("train")]

    assert answers(keep={"level": "Level 1"}) == ["2", "5"]
    assert answers(keep={"level": ["Level 1", "Level 2"], "hard": True}) == ["5", "6"]
    with pytest.raises(DataError, match=r"no row has the column 'levels' of keep; found problem, answer, level"):
        answers(keep={"levels": "Level 1"})
    with pytest.raises(DataError, match=r"no row is like keep=\{'level': 1\}"):
        answers(keep={"level": 1})


def test_olympiadbench_keeps_single_answers_and_says_how(tmp_path: Path) -> None:
    rows = [
        {"question": "1 + 1?", "final_answer": ["$2$"], "is_multiple_answer": False},
        {"question": "x^2 = 1?", "final_answer": ["$1,-1$"], "is_multiple_answer": True},
    ]
    task = get_task("olympiadbench", dataset_name=write_jsonl(tmp_path / "rows.jsonl", rows))
    assert [r["answer"] for r in task.rows("eval")] == ["2"]
    other = write_jsonl(tmp_path / "other.jsonl", [{"question": "1 + 1?", "answer": "2"}])
    with pytest.raises(DataError, match=r"no row has the column 'is_multiple_answer'.*keep: \{\}"):
        get_task("olympiadbench", dataset_name=other).rows("eval")
    assert len(get_task("olympiadbench", dataset_name=other, keep={}).rows("eval")) == 1
