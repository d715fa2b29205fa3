"""MathTask: what is graded, how it is graded, and which rows there are."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgrpo.errors import ConfigError, DataError, ShapeError
from scgrpo.tasks import Status, get_task
from scgrpo.tasks.math import INSTRUCTION, MathTask
from scgrpo.tasks.math.answers import clean_gold, final_answer, quick_score, text_score

GSM8K = Path(__file__).parents[1] / "fixtures" / "gsm8k" / "train.jsonl"


@pytest.fixture(scope="module")
def task() -> Iterator[MathTask]:
    task = MathTask(timeout_s=8.0)
    yield task
    task.close()


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("completion", "short"),
    [
        (r"First \boxed{1}, then finally \boxed{\frac{3}{4}}.", r"\frac{3}{4}"),
        (r"\boxed {12}", "12"),
        (r"$\framebox{12}$", "12"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{7} and cut off at \boxed{8", "7"),
        (r"It is $\boxed{5}$. Again: $\boxed{5}$", "5"),
        (r"<think>\boxed{1}</think> So \boxed{2}", "2"),
        (r"<think>\boxed{1}</think> So it is two.", None),
        (r"\boxed{7}. Put your final answer within \boxed{}.", "7"),
        (r"\boxed{ 1\,000}", "1000"),
        (r"\boxed{\approx 5.2}", "5.2"),
        (r"\boxed{\to}", ""),
        (r"\boxed{\tau}", r"\tau"),
        (r"\boxed{30°;}", r"30^\circ"),
        (r"\boxed{3\,}", r"3\,"),
        ("Answer：42", "42"),
        ("Answer: 34", "34"),
        ("**answer:** no\nAnswer: $34$.", "$34$."),
        ("**Answer:** 34", "34"),
        ("**Answer**: 34", "34"),
        ("**Answer:**\n\n34\n", "34"),
        ("Answer:\n", None),
        ("6 * 7 = 42\n#### 42", "42"),
        ("it is 42", None),
        ("", None),
    ],
)
def test_the_marked_answer(completion: str, short: str | None) -> None:
    assert final_answer(completion).short == short


def test_only_the_end_of_an_unmarked_completion_is_read() -> None:
    assert final_answer("7" * 10 + "x" * 500).text == "x" * 500


def test_joined_boxes_are_one_answer() -> None:
    assert final_answer(r"$\boxed{540}$ or $\boxed{541}$") == (r"$\boxed{540}$ and $\boxed{541}$", None)
    assert final_answer(r"\boxed{1}, \boxed{2}, and \boxed{3}").text == r"$\boxed{1}$ and $\boxed{2}$ and $\boxed{3}$"
    assert final_answer(r"\boxed{1} \quad \text{and} \quad \boxed{2}").text == r"$\boxed{1}$ and $\boxed{2}$"
    assert final_answer(r"\boxed{1}, so \boxed{2}").short == "2"
    assert final_answer(r"\boxed{1} \text{ in part (a) and } \boxed{2}").short == "2"


def test_a_long_answer_is_wrong_unless_it_is_the_reference() -> None:
    long = "+".join(map(str, range(400)))
    assert text_score(final_answer(rf"\boxed{{{long}}}"), "79800") == 0.0
    assert text_score(final_answer(rf"\boxed{{{long}}}"), long) == 1.0
    assert text_score(final_answer(" and ".join([rf"\boxed{{{long}}}"] * 4)), "79800") == 0.0
    assert text_score(final_answer(r"\boxed{1+2}"), "3") is None


def test_hostile_nesting_costs_the_parent_little() -> None:
    start = time.perf_counter()
    for text in (r"\boxed{" * 20_000 + "1" + "}" * 20_000, "{" * 200_000, r"\boxed{" * 40_000, "answer:" * 40_000):
        final_answer(text)
    for filler in (" ", ",", "= ", r"\to ", "1 000 ", r"\boxed{ } ", "a b ", "°"):
        final_answer(r"\boxed{7" + filler * 25_000 + "7}")
        final_answer("Answer: 7" + filler * 25_000 + "7")
    assert time.perf_counter() - start < 3


ATOMS = [
    "\\boxed{",
    "\\fbox {",
    "{",
    "}",
    "\\{",
    "$",
    "Answer:",
    "**",
    "####",
    "\n",
    " ",
    "and",
    ",",
    "7",
    "</think>",
    "x",
    "\\frac",
]


@given(st.lists(st.sampled_from(ATOMS) | st.text(max_size=3), max_size=60), st.text(min_size=1, max_size=20))
def test_any_text_has_an_answer_or_none(parts: list[str], gold: str) -> None:
    completion = "".join(parts)
    found = final_answer(completion)
    assert len(found.text) <= len(completion) + 100
    assert text_score(found, gold) in (None, 0.0, 1.0)
    boxed = final_answer(f"{completion}</think> so \\boxed{{7}}")
    assert text_score(boxed, "7") == 1.0
    assert text_score(boxed, "8") == 0.0


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("72", "72", 1.0),
        ("072", "72", 1.0),
        ("1,234", "1234", 1.0),
        ("10{,}000", "10000", 1.0),
        (r"1{,}234{,}567", "1,234,567", 1.0),
        (r"\$18", "18", 1.0),
        ("$34$.", "34", 1.0),
        ("−5", "-5", 1.0),
        ("-0", "0", 1.0),
        ("+3", "3", 1.0),
        ("A", "A", 1.0),
        (r"x^2+1", r"x^2+1", 1.0),
        ("73", "72", 0.0),
        ("-72", "72", 0.0),
        (r"1\,234", "1234", 1.0),
        ("1 234 567", "1234567", 1.0),
        ("1\u202f234", "1234", 1.0),
        ("1 234", "0", 0.0),  # no product
        ("12 34", "1234", None),
        ("€ 5", "5", 1.0),
        ("= 5", "5", 1.0),
        ("101_2", "101_{2}", 1.0),
        ("101_2", "101_3", 0.0),
        ("5", "101_2", None),
        ("12,34", "1234", None),
        ("0,111", "111", None),
        ("9" * 10_000, "8" * 10_000, 0.0),
        ("", "72", 0.0),
        ("72.0", "72", None),
        ("72", r"\frac{144}{2}", None),
        ("B", "A", None),
    ],
)
def test_what_needs_no_algebra(answer: str, gold: str, score: float | None) -> None:
    assert quick_score(answer, gold) == score


@pytest.mark.parametrize(
    ("column", "gold"),
    [
        ("He has 3+4=<<3+4=7>>7.\n#### 7", "7"),
        ("#### 1,234", "1234"),
        (r"Thus $\boxed{\frac{1}{2}}$, and no \boxed{", r"\frac{1}{2}"),
        (" 025 ", "25"),
        (18, "18"),
        (18.0, "18"),
        (2.5, "2.5"),
        (r"\left(1, 2\right)", r"\left(1, 2\right)"),
        (r"so $\boxed{1}$ or $\boxed{-2}$.", "1, -2"),
        (r"$\boxed{1}$ papers, hence $\boxed{2}$ bins.", "2"),
        (r"Thus \fbox{7} and no more.", "7"),
        (r"Thus $\boxed 5$.", "5"),
        (r"Thus $x = \boxed12$.", "12"),
        (["$2 n-2$"], "2 n-2"),
        (["1,000"], "1000"),
        ("$\\frac{1}{2}$.", r"\frac{1}{2}"),
        (r"$a$ or $b$", r"$a$ or $b$"),
        (r"\$18", r"\$18"),
        (r"1\,000", "1000"),
        ("10 000", "10000"),
        ("4.5e33", "4.5e33"),
        ("0", "0"),
        (0, "0"),
    ],
)
def test_reference_answers_are_found_in_their_columns(column: object, gold: str) -> None:
    assert clean_gold(column) == gold


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ("", "no answer"),
        (None, "no answer"),
        ("Some text. #### ", "no answer"),
        (r"so \boxed{ }", "no answer"),
        ([], "0 answers"),
        (["1", "2"], "2 answers"),
        ("so it is " * 100, "899 characters"),
        (
            "Note that six minutes are needed, because exactly one switch is flipped each minute, so it is 6.",
            "a text",
        ),
        (float("nan"), "no answer"),
        (float("inf"), "no answer"),
        ("$", "no answer"),
        (".", "no answer"),
        ({"value": 5}, "a dict"),
        ([[5, 6]], "a list"),
    ],
)
def test_what_is_no_single_reference_answer(column: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        clean_gold(column)


@pytest.mark.parametrize(
    ("completion", "gold", "score"),
    [
        (r"\boxed{0.75}", r"\frac{3}{4}", 1.0),
        (r"\boxed{\frac43}", r"\frac{4}{3}", 1.0),
        (r"\boxed{11\sqrt2}", r"11\sqrt{2}", 1.0),
        (r"\boxed{72.0}", "72", 1.0),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", 1.0),
        (r"\boxed{\frac{1}{4}}", r"\frac{3}{4}", 0.0),
        (r"\boxed{1}", "8n^2+4n+1", 0.0),
        (r"$\boxed{540}$ or $\boxed{541}$", "541", 0.0),
        (r"$\boxed{-2}$ and $\boxed{1}$", "1, -2", 1.0),
        (r"\boxed{-2, 1}", "1, -2", 1.0),
        (r"\boxed{-2}", "1, -2", 0.0),
        ("The answer is 3/4.", r"\frac{3}{4}", 1.0),
        ("Answer: 34 apples", "34", 1.0),
        ("Answer: x^2+2x+1", "(x+1)^2", 1.0),
        (r"Answer: \sqrt{8}", r"2\sqrt{2}", 1.0),
        ("Answer: (1, 2)", r"\left(1,2\right)", 1.0),
        ("Answer: 34 (since 34 = 2*17)", "34", 1.0),
        (r"Answer: the value is $\frac{9}{12}$.", r"\frac{3}{4}", 1.0),
        (r"Answer: $\frac{9}{12}$ of it", r"\frac{3}{4}", 1.0),
        (r"**Answer**: \(\frac{9}{12}\)", r"\frac{3}{4}", 1.0),
        ("Answer: about 5 or 6", "6", 0.0),
        ("I do not know.", r"\frac{3}{4}", 0.0),
        ("", "7", 0.0),
        (r"\boxed{}", "7", 0.0),
        # What cannot be read is not searched for a number, on neither side.
        (r"\boxed{2}", r"\begin{cases} x & x>0 \\ 2 & x \le 0\end{cases}", 0.0),
        (r"\boxed{\frac{2}{3}}", r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}", 0.0),
        (r"\boxed{\frac{1}{3} E_{1}+\frac{2}{3} E_{2}}", r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}", 1.0),
        (r"\boxed{\begin{cases} \pi \\ 10 \end{cases}}", "10", 0.0),
        (r"\boxed{\ne 5}", "5", 0.0),
        (r"\boxed{\approx 5.2 \text{ m}}", "5.2", 1.0),
        (r"\boxed{30°}", "30", 1.0),
        # Powers of ten, as Minerva's references and JSON numbers have them.
        (r"\boxed{4.5 \times 10^{33} \text{ erg}}", "4.5e33", 1.0),
        (r"\boxed{45 \cdot 10^{-6}}", "4.5e-5", 1.0),
        (r"\boxed{0.00001}", "1e-05", 1.0),
        (r"\boxed{4.5E+33}", "4.5e33", 1.0),
        (r"\boxed{4.5 \times 10^{32}}", "4.5e33", 0.0),
        (r"\boxed{2e-3}", "2e - 3", 1.0),
        (r"\boxed{1.7 \times 10^{-19}}", "1.6e-19", 0.0),
        (r"\boxed{0.0000001}", "4e-8", 0.0),
        (r"\boxed{0.333333}", r"\frac{1}{3}", 1.0),
        (r"\boxed{0.33333}", r"\frac{1}{3}", 0.0),
    ],
)
def test_grading(task: MathTask, completion: str, gold: str, score: float) -> None:
    [verdict] = task.verify([completion], [{"answer": gold}])
    assert (verdict.status, verdict.score) == (Status.GRADED, score)


def test_what_takes_too_long_is_no_verdict_and_the_rest_is_graded(task: MathTask) -> None:
    tower, right = r"\boxed{9^{9^{9^9}}}", r"\boxed{\frac{9}{12}}"
    start = time.perf_counter()
    verdicts = task.verify([right, tower, tower, right], [{"answer": r"\frac{3}{4}"}] * 4)
    assert [v.status for v in verdicts] == [Status.GRADED, Status.TIMEOUT, Status.TIMEOUT, Status.GRADED]
    assert (verdicts[0].score, verdicts[3].score) == (1.0, 1.0)
    assert time.perf_counter() - start < 60  # unbounded, it would not end


@pytest.mark.parametrize("row", [{}, {"answer": None}, {"answer": " "}])
def test_a_row_without_reference_is_an_error_verdict(task: MathTask, row: dict) -> None:
    [verdict] = task.verify([r"\boxed{1}"], [row])
    assert (verdict.status, verdict.detail) == (Status.ERROR, "the row has no reference answer")


def test_canned_answers_and_lengths(task: MathTask) -> None:
    canned = task.canned()
    verdicts = task.verify([*canned.right, *canned.wrong], [canned.row] * 4)
    assert [v.score for v in verdicts] == [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(ShapeError, match="1 completions for 2 rows"):
        task.verify(["a"], [{}, {}])


def test_gsm8k_rows() -> None:
    task = get_task("gsm8k", dataset_name=str(GSM8K))
    assert task.name == "gsm8k"
    assert task.template == "math"
    train, held_out = task.rows("train"), task.rows("eval")
    assert (len(train), len(held_out)) == (36, 4)
    assert not {r["problem_id"] for r in train} & {r["problem_id"] for r in held_out}
    first = train[0]
    assert first["problem_id"] == "73429d562982"
    assert first["answer"] == "72"
    question = json.loads(GSM8K.read_text().splitlines()[0])["question"]
    assert first["prompt"] == [{"role": "user", "content": f"{question}\n\n{INSTRUCTION}"}]
    assert task.rows("train", 5) == train[:5]


def test_the_held_out_part_depends_on_the_seed_and_not_on_the_order(tmp_path: Path) -> None:
    lines = GSM8K.read_text().splitlines()
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(reversed(lines)))

    def ids(path: Path, **options: object) -> set[str]:
        return {r["problem_id"] for r in get_task("gsm8k", dataset_name=str(path), **options).rows("eval")}

    assert ids(GSM8K) == ids(turned)
    assert ids(GSM8K) != ids(GSM8K, split_seed=1)
    assert len(ids(GSM8K, eval_fraction=0.5)) == 20
    assert ids(GSM8K, eval_fraction=0.0) == set()


def test_repeated_problems_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": f"What is 1 + {n % 3}?", "solution": str(1 + n % 3 + (n == 5))} for n in range(6)]
    task = get_task("math", dataset_name=write_jsonl(tmp_path / "rows.jsonl", rows), eval_fraction=0.3)
    with caplog.at_level(logging.WARNING):
        assert sorted(r["answer"] for r in task.rows("train") + task.rows("eval")) == ["1", "2", "3"]
    assert "3 of 6 rows" in caplog.text
    assert "(1 with another answer)" in caplog.text


def test_no_training_row_has_an_evaluation_problem(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"problem": f"What is {n} + 1?", "answer": n + 1} for n in range(4)]
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    test = write_jsonl(tmp_path / "other.jsonl", [{"question": "What is  2 + 1?", "answer": "#### 3"}])
    task = get_task("math", dataset_name=train, eval_dataset_name=test)
    with caplog.at_level(logging.WARNING):
        assert [r["answer"] for r in task.rows("train")] == ["1", "2", "4"]
    assert [r["answer"] for r in task.rows("eval")] == ["3"]
    assert "1 training rows are evaluation problems" in caplog.text


def test_a_folder_with_a_test_split_is_evaluated_on_it(tmp_path: Path) -> None:
    (tmp_path / "main").mkdir()
    write_jsonl(tmp_path / "main" / "train.jsonl", [{"question": "1 + 1?", "answer": "#### 2"}])
    write_jsonl(tmp_path / "main" / "test.jsonl", [{"question": "1 + 2?", "answer": "#### 3"}])
    task = get_task("gsm8k", dataset_name=str(tmp_path))
    assert [r["answer"] for r in task.rows("train")] == ["2"]
    assert [r["answer"] for r in task.rows("eval")] == ["3"]


def test_a_benchmark_alone_can_be_evaluated(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "bench.jsonl", [{"Problem": "1 + 1?", "Answer": 2}])
    task = get_task("math", eval_dataset_name=path)
    assert [r["answer"] for r in task.rows("eval")] == ["2"]
    with pytest.raises(ConfigError, match="has no data"):
        task.rows("train")


DAPO_PROMPT = "Solve it. The last line must be Answer: $Answer.\n\nWhat is 1 + 1?"


def test_dapo_rows_keep_their_own_instruction(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": f"{DAPO_PROMPT} ({n % 2})"}], "reward_model": {"ground_truth": "2"}}
        for n in range(4)
    ]
    task = get_task("dapo_math", dataset_name=write_jsonl(tmp_path / "dapo.jsonl", rows), eval_fraction=0.5)
    [row] = task.rows("train")
    assert row["answer"] == "2"
    assert row["prompt"][0]["content"] in {f"{DAPO_PROMPT} (0)", f"{DAPO_PROMPT} (1)"}


def test_prompts(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": "system", "content": "Own."}, {"role": "user", "content": "1 + 1?"}], "answer": 2},
        {"prompt": "2 + 2?", "answer": 4},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    task = get_task("math", dataset_name=path, eval_fraction=0, instruction="Be brief.", system_prompt="You count.")
    assert [r["prompt"] for r in task.rows("train")] == [
        [{"role": "system", "content": "Own."}, {"role": "user", "content": "1 + 1?\n\nBe brief."}],
        [{"role": "system", "content": "You count."}, {"role": "user", "content": "2 + 2?\n\nBe brief."}],
    ]
    plain = get_task("math", dataset_name=path, eval_fraction=0, instruction="")
    assert plain.rows("train")[1]["prompt"] == [{"role": "user", "content": "2 + 2?"}]
    assert plain.rows("train")[1]["problem_id"] == task.rows("train")[1]["problem_id"]


def test_bad_data_and_settings_are_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"question": "1 + 1?", "result": 2}, {"question": "2?"}])
    with pytest.raises(DataError, match=r"rows.jsonl, line 1: no column for the answer.*found question, result"):
        get_task("math", dataset_name=path).rows("train")
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: column 'result' \(the answer\) is missing"):
        get_task("math", dataset_name=path, columns={"answer": "result"}).rows("train")
    with pytest.raises(ConfigError, match="no split 'test'"):
        get_task("gsm8k", dataset_name=str(GSM8K)).rows("test")
    with pytest.raises(ConfigError, match=r"eval_fraction is 1\.5"):
        get_task("gsm8k", eval_fraction=1.5)
    with pytest.raises(ConfigError, match="eval_dataset_name is an empty list"):
        get_task("gsm8k", eval_dataset_name=[])
    with pytest.raises(ConfigError, match="on_bad_row is 'skip'"):
        get_task("gsm8k", on_bad_row="skip")
    with pytest.raises(ConfigError, match=r"no grader 'exact'. Choose math_verify or dapo"):
        get_task("gsm8k", grader="exact")
    with pytest.raises(ConfigError, match="has no data"):
        get_task("math").rows("train")
