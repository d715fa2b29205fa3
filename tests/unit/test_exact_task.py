"""Answers compared as text, by letter, by pattern; and rows that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scgrpo.errors import ConfigError, DataError, ShapeError
from scgrpo.tasks import Task, get_task


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def scores(task: Task, row: dict[str, Any], *completions: str) -> list[float]:
    return [verdict.score for verdict in task.verify(completions, [row] * len(completions))]


CAPITALS = [{"question": f"Capital of country {n}?", "capital": f"Town {n}"} for n in range(20)]


COLUMNS = {"prompt": "question", "answer": "capital"}


def test_rows_of_a_file(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [*CAPITALS, CAPITALS[3]])
    task = get_task(
        "exact", dataset_name=data, columns={"prompt": "question", "answer": "capital"}, system_prompt="Hi."
    )
    train, held_out = task.rows("train"), task.rows("eval")
    assert (len(train), len(held_out)) == (18, 2)
    assert not {row["problem_id"] for row in train} & {row["problem_id"] for row in held_out}
    assert train[0]["prompt"][0] == {"role": "system", "content": "Hi."}
    assert train[0]["prompt"][1]["content"].startswith("Capital of country")
    assert "Answer: ..." in train[0]["prompt"][1]["content"]
    assert json.loads(json.dumps(train)) == train
    assert task.rows("train", 2) == train[:2]


def test_splits_of_a_folder(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "answer": n} for n in range(6)]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", rows[4:])
    task = get_task("exact", dataset_name=str(tmp_path), instruction="")
    assert [row["answers"] for row in task.rows("eval")] == [["4"], ["5"]]
    assert [row["prompt"][0]["content"] for row in task.rows("train")] == ["0?", "1?", "2?", "3?"]


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("Answer: New York", 1.0),
        ("<think>Answer: Rome</think>answer : **new  york.**", 1.0),
        ('Answer: Rome. No.\nAnswer: "New York"', 1.0),
        ("New York", 1.0),
        ("Answer: NYC", 1.0),
        ("**Answer:**\n\nNew York", 1.0),
        ("Answer：New York", 1.0),
        ("It is New York", 0.0),
        ("Answer: New York\nAnswer: Rome", 0.0),
        ("Answer: York", 0.0),
        ("", 0.0),
        ("Answer:", 0.0),
    ],
)
def test_text(said: str, score: float) -> None:
    assert scores(get_task("exact"), {"answers": ["New York", "NYC"]}, said) == [score]


CHOICES = ["Rome", "Paris", "Oslo", "A better place"]


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("Answer: B", 1.0),
        ("Answer: (B) Paris", 1.0),
        ("Answer: **B**.", 1.0),
        ("Answer: paris", 1.0),
        ("I think it is B", 1.0),
        ("Answer: A better choice is B", 0.0),
        ("Answer: A, not B", 0.0),
        ("Answer: A or B", 0.0),
        ("Answer: BC", 0.0),
        ("Answer: E", 0.0),
        ("Paris is nice, but Rome", 0.0),
        ("", 0.0),
    ],
)
def test_choices(said: str, score: float) -> None:
    assert scores(get_task("exact", match="choice"), {"answers": ["B"], "choices": CHOICES}, said) == [score]


def test_right_choices_are_given_by_letter_text_or_number(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{n}?", "answer": answer, "choices": CHOICES} for n, answer in enumerate(["b", "Paris", 1, "1"])
    ]
    task = get_task("exact", dataset_name=write(tmp_path / "rows.jsonl", rows), match="choice", eval_fraction=0.0)
    assert [row["answers"] for row in task.rows("train")] == [["B"]] * 4
    assert "\n\nA. Rome\nB. Paris\nC. Oslo\nD. A better place\n\n" in task.rows("train")[0]["prompt"][0]["content"]
    odd = write(tmp_path / "odd.jsonl", [{"prompt": "?", "answer": "E", "choices": CHOICES}])
    with pytest.raises(DataError, match=r"odd.jsonl, line 1: the answer 'E' is none of the 4 choices"):
        get_task("exact", dataset_name=odd, match="choice").rows("train")


def test_patterns_find_and_judge_answers() -> None:
    with_pattern = get_task("exact", pattern=r"<a>(.*?)</a>")
    try:
        assert scores(with_pattern, {"answers": ["7"]}, "<a>3</a> <a> 7</a>", "7", "<a>7</a><a>8</a>") == [
            1.0,
            0.0,
            0.0,
        ]
    finally:
        with_pattern.close()
    regex = get_task("exact", match="regex")
    try:
        row = {"answers": [r"\d{4}-0?7-14"]}
        assert scores(regex, row, "Answer: 1789-07-14", "Answer: 1789-7-14.", "Answer: 1789", "") == [
            1.0,
            1.0,
            0.0,
            0.0,
        ]
    finally:
        regex.close()


def test_a_pattern_that_takes_for_ever_is_a_timeout_and_no_score() -> None:
    task = get_task("exact", match="regex", timeout_s=1.0, num_workers=1)
    try:
        late, fine = task.verify(["Answer: " + "a" * 40 + "!", "Answer: aa"], [{"answers": ["(a+)+"]}] * 2)
    finally:
        task.close()
    assert late.status == "timeout"
    assert (fine.status, fine.score) == ("graded", 1.0)


def test_what_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="match is 'fuzzy'"):
        get_task("exact", match="fuzzy")
    with pytest.raises(ConfigError, match=r"pattern '\(' is no regular expression"):
        get_task("exact", pattern="(")
    with pytest.raises(ConfigError, match="has no data"):
        get_task("exact").rows("train")
    with pytest.raises(ConfigError, match="There is no split 'test'"):
        get_task("exact").rows("test")  # type: ignore[arg-type]
    with pytest.raises(ShapeError):
        get_task("exact").verify(["a"], [])
    with pytest.raises(ConfigError, match=r"columns names choices. Known: prompt, answer"):
        get_task("exact", columns={"choices": "options"})
    with pytest.raises(ConfigError, match=r"num_workers=0"):
        get_task("exact", num_workers=0)


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({"answer": "  "}, "text", "the answer is empty"),
        ({"answer": "..."}, "text", "the answer is empty"),
        ({"answer": []}, "text", "the answer is empty"),
        ({"answer": float("nan")}, "text", "the answer nan is neither a text nor a number"),
        ({"answer": {"a": 1}}, "text", r"the answer {'a': 1} is neither a text nor a number"),
        ({"answer": "("}, "regex", "is no regular expression"),
        ({"answer": "a", "prompt": " "}, "text", "the prompt is empty"),
        ({"answer": "a", "prompt": 7}, "text", "A prompt is neither a string nor a list of chat messages"),
        (
            {"answer": "a", "prompt": [{"role": "user", "content": [{"type": "text", "text": "?"}]}]},
            "text",
            "than text",
        ),
        ({"answer": "3", "choices": list(map(str, range(30)))}, "choice", "30 choices, more than letters"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: dict[str, Any], kind: str, message: str) -> None:
    data = write(tmp_path / "rows.jsonl", [{"prompt": "?", **row}])
    with pytest.raises((DataError, ConfigError), match=rf"rows.jsonl, line 1: .*{message}"):
        get_task("exact", dataset_name=data, match=kind).rows("train")


def test_data_that_is_for_evaluation_alone(tmp_path: Path) -> None:
    task = get_task("exact", dataset_name=write(tmp_path / "rows.jsonl", CAPITALS), eval_fraction=1, columns=COLUMNS)
    assert (len(task.rows("train")), len(task.rows("eval"))) == (0, 20)
