"""The math verifier against responses and labels that nobody here made. Skips without the shared data."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scgrpo.tasks import Status, Verdict
from scgrpo.tasks.math import MathTask
from scgrpo.tasks.pool import VerifierPool

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "math"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared/ data folder is not beside this checkout")


@pytest.fixture(scope="module")
def task() -> Iterator[MathTask]:
    task = MathTask()
    yield task
    task.close()


def load(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def agreeing(verdicts: list[Verdict], labels: list[bool]) -> int:
    return sum(
        v.status is Status.GRADED and bool(v.score) is label for v, label in zip(verdicts, labels, strict=True)
    )


@needs_data
def test_real_responses_get_their_labels(task: MathTask) -> None:
    """Model responses with the labels of another grader (Qwen2.5-Math's), and the answers it extracted."""
    rows = load("grader_real_responses.jsonl")
    golds, labels = [{"answer": row["gold"]} for row in rows], [row["label"] for row in rows]
    assert len(rows) == 400
    assert 0 < labels.count(False) < 100
    agreed = agreeing(task.verify([row["response"] for row in rows], golds), labels)
    agreed += agreeing(task.verify([f"\\boxed{{{row['extracted']}}}" for row in rows], golds), labels)
    assert agreed >= 799  # of 800


@needs_data
def test_reference_solutions_solve_their_own_problem_and_no_other(task: MathTask) -> None:
    rows = load("math500.jsonl")
    own, next_ones = [{"answer": row["answer"]} for row in rows], [{"answer": row["answer"]} for row in rows[1:]]
    assert agreeing(task.verify([row["solution"] for row in rows], own), [True] * 500) == 500
    shifted = task.verify([row["solution"] for row in rows[:-1]], next_ones)
    assert sum(v.score == 1.0 for v in shifted) <= 3  # three neighbours do have equal answers
    assert all(v.status is Status.GRADED for v in shifted)


@needs_data
def test_the_algebra_alone_reads_every_reference_answer() -> None:
    """Without the comparison of text, which would hide it: the reference equals itself (the trap of raw golds)."""
    items = [
        {"answer": f"\\boxed{{{row['answer']}}}", "gold": row["answer"], "timeout_s": 2}
        for row in load("math500.jsonl")
    ]
    with VerifierPool("scgrpo.tasks.math.grading:grade") as pool:
        assert agreeing(pool.grade(items), [True] * 500) == 500


@needs_data
def test_gsm8k_solutions_in_the_data_sets_own_form(task: MathTask) -> None:
    rows = load("gsm8k_test.jsonl")
    golds = [{"answer": row["final"]} for row in rows]
    assert agreeing(task.verify([row["answer"] for row in rows], golds), [True] * 1319) == 1319


HOSTILE = {
    "tower of powers": r"\boxed{9^{9^{9^9}}}",
    "factorial": r"\boxed{(10^8)!}",
    "large power": r"\boxed{7^{10^9}}",
    "long sum": r"\boxed{\sum_{k=1}^{10000000} \frac{1}{k}}",
    "integral": r"\boxed{\int_0^1 \frac{\sin(x^x)}{x + e^{x^3}} dx}",
    "polynomial": r"\boxed{(x+1)^{1000}}",
    "300 parentheses": r"\boxed{" + "(" * 300 + "1" + ")" * 300 + "}",
    "3000 elements": r"\boxed{\{" + ",".join(map(str, range(3000))) + r"\}}",
    "2000 boxes": r"\boxed{1}" * 2000,
    "2000 joined boxes": " and ".join(rf"$\boxed{{{n}}}$" for n in range(2000)),
    "2000 nested boxes": r"\boxed{" * 2000 + "1" + "}" * 2000,
    "100000 digits": r"\boxed{" + "9" * 100_000 + "}",
    "100000 braces": "{" * 100_000,
}


def test_hostile_answers_take_bounded_time_and_the_pool_works_on() -> None:
    with_time_limit = MathTask(timeout_s=4.0)  # one second for each step
    row = {"answer": r"\frac{3}{4}"}
    try:
        for name, answer in HOSTILE.items():
            start = time.perf_counter()
            [verdict] = with_time_limit.verify([answer], [row])
            assert time.perf_counter() - start < 8, name
            assert verdict.status in (Status.TIMEOUT, Status.ERROR) or verdict.score == 0.0, name
        right, wrong = with_time_limit.verify([r"\boxed{0.75}", r"\boxed{0.7}"], [row] * 2)
        assert (right.score, wrong.score) == (1.0, 0.0)
    finally:
        with_time_limit.close()
