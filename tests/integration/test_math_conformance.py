"""The math graders against responses, labels and suites that nobody here made. Skips without the shared data.

Each number of docs/benchmarks/math.md is one test: `pytest tests/integration/test_math_conformance.py -s -k NAME`
prints it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from scgrpo.tasks import Status, Verdict, get_task
from scgrpo.tasks.math import MathTask
from scgrpo.tasks.math.answers import clean_gold, final_answer
from scgrpo.tasks.pool import VerifierPool

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "math"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared/ data folder is not beside this checkout")


@pytest.fixture(scope="module")
def task() -> Iterator[MathTask]:
    task = MathTask(timeout_s=120.0)  # the limits are of wall-clock time: a busy machine is no failure
    yield task
    task.close()


def load(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").split("\n") if line]


def agreeing(verdicts: Sequence[Verdict], labels: Sequence[bool]) -> int:
    return sum(
        v.status is Status.GRADED and bool(v.score) is label for v, label in zip(verdicts, labels, strict=True)
    )


def told(what: str, number: int, total: int) -> int:
    print(f"\n{what}: {number} of {total}")
    return number


def as_answer_line(solution: str) -> str:
    """What DAPO's prompt asks for, made of the last box."""
    last_box = final_answer(solution[solution.rindex("\\boxed") :]).short or ""
    return f"{solution[:200]}\nAnswer: {' '.join(last_box.split())}"


@needs_data
def test_responses_get_their_labels(task: MathTask) -> None:
    """Model responses with the labels of another grader (Qwen2.5-Math's), and the answers it extracted."""
    rows = load("grader_real_responses.jsonl")
    golds, labels = [{"answer": row["gold"]} for row in rows], [row["label"] for row in rows]
    assert len(rows) == 400
    assert 0 < labels.count(False) < 100
    agreed = agreeing(task.verify([row["response"] for row in rows], golds), labels)
    agreed += agreeing(task.verify([f"\\boxed{{{row['extracted']}}}" for row in rows], golds), labels)
    assert told("real responses, math_verify agrees with their labels", agreed, 800) >= 799


@needs_data
def test_responses_get_their_labels_from_dapo() -> None:
    """The same, with each answer in the form that this grader reads: it is wrong about everything else."""
    rows = load("grader_real_responses.jsonl")
    golds, labels = [{"answer": row["gold"]} for row in rows], [row["label"] for row in rows]
    task = get_task("math", grader="dapo")
    in_form = [as_answer_line(row["response"]) for row in rows]
    agreed = agreeing(task.verify(in_form, golds), labels)
    agreed += agreeing(task.verify([f"Answer: {row['extracted']}" for row in rows], golds), labels)
    assert told("real responses, dapo agrees with their labels", agreed, 800) >= 799
    assert sum(v.score for v in task.verify([row["response"] for row in rows], golds)) == 0


@needs_data
def test_math500_solutions_solve_their_own_problem_and_no_other(task: MathTask) -> None:
    rows = load("math500.jsonl")
    own, next_ones = [{"answer": row["answer"]} for row in rows], [{"answer": row["answer"]} for row in rows[1:]]
    solved = agreeing(task.verify([row["solution"] for row in rows], own), [True] * 500)
    assert told("MATH-500 solutions, math_verify", solved, 500) == 500
    shifted = task.verify([row["solution"] for row in rows[:-1]], next_ones)
    assert all(v.status is Status.GRADED for v in shifted)
    accepted = [(a["answer"], b["answer"]) for a, b, v in zip(rows, rows[1:], shifted, strict=False) if v.score]
    told("neighbours' solutions accepted, all truly equal", len(accepted), 499)
    assert accepted == [("5", "x=5"), ("7", "7"), ("3", "3")]


@needs_data
def test_math500_solutions_with_dapo() -> None:
    rows = load("math500.jsonl")
    task = get_task("math", grader="dapo")
    answers = [as_answer_line(row["solution"]) for row in rows]
    golds = [{"answer": row["answer"]} for row in rows]
    assert told("MATH-500 solutions, dapo", agreeing(task.verify(answers, golds), [True] * 500), 500) == 500
    shifted = task.verify(answers[:-1], golds[1:])
    accepted = [(a["answer"], b["answer"]) for a, b, v in zip(rows, rows[1:], shifted, strict=False) if v.score]
    assert accepted == [("5", "x=5"), ("7", "7"), ("3", "3")]


@needs_data
def test_math500_answers_are_found_in_solutions(task: MathTask) -> None:
    """As in Hendrycks' MATH, whose rows have a worked solution and no answer column."""
    rows = load("math500.jsonl")
    golds = [{"answer": clean_gold(row["solution"])} for row in rows]
    solved = agreeing(task.verify([f"\\boxed{{{row['answer']}}}" for row in rows], golds), [True] * 500)
    assert told("MATH-500 answers against those found in the solutions", solved, 500) == 500


@needs_data
def test_the_algebra_alone_reads_every_reference_answer() -> None:
    """Without the comparison of text, which would hide it: the reference equals itself (the trap of raw golds)."""
    items = [
        {"answer": f"\\boxed{{{row['answer']}}}", "gold": row["answer"], "timeout_s": 30}
        for row in load("math500.jsonl")
    ]
    with VerifierPool("scgrpo.tasks.math.grading:grade", timeout_s=120, memory_mb=1024) as pool:
        equal = agreeing(pool.grade(items), [True] * 500)
    assert told("MATH-500 references equal to themselves by algebra alone", equal, 500) == 500


@needs_data
def test_gsm8k_solutions_in_the_data_sets_own_form(task: MathTask) -> None:
    for name, size in (("gsm8k_test.jsonl", 1319), ("gsm8k_train.jsonl", 7473)):
        rows = load(name)
        golds = [{"answer": row["final"]} for row in rows]
        solved = agreeing(task.verify([row["answer"] for row in rows], golds), [True] * size)
        assert told(name, solved, size) == size
        answers = get_task("gsm8k", dataset_name=str(DATA / name), eval_fraction=1).rows("eval")
        assert sorted(row["answer"] for row in answers) == sorted(row["final"] for row in rows)


@needs_data
@pytest.mark.parametrize("name", ["aime24", "aime25"])
def test_aime_needs_no_algebra(name: str) -> None:
    task = get_task(name, dataset_name=str(DATA / f"{name}.jsonl"))
    rows = task.rows("eval")
    assert len(rows) == 30
    for form in (r"so \boxed{{{:03d}}}.", "Answer: {}", r"it is $\boxed{{{}}}$", "#### {}"):
        right = task.verify([form.format(int(row["answer"])) for row in rows], rows)
        assert told(f"{name} {form!r}", agreeing(right, [True] * 30), 30) == 30
        wrong = task.verify([form.format((int(row["answer"]) + 1) % 1000) for row in rows], rows)
        assert agreeing(wrong, [False] * 30) == 30
    assert task._pool is None


@needs_data
@pytest.mark.parametrize("grader", ["math_verify", "dapo"])
def test_dapo_rows(grader: str, caplog: pytest.LogCaptureFixture) -> None:
    """960 rows in the schema of DAPO-Math-17k, of 30 problems; their prompts stay as they are."""
    path = DATA / "dapo_format_aime24_960rows.parquet"
    with caplog.at_level("WARNING"):
        task = get_task("dapo_math_raw", dataset_name=str(path), eval_fraction=1, grader=grader)
        rows = task.rows("eval")
    assert "930 of 960 rows" in caplog.text
    assert told("problems", len(rows), 960) == 30
    assert all(row["prompt"][0]["content"].startswith("Solve the following math") for row in rows)
    assert sorted(row["answer"] for row in rows) == sorted(str(int(row["answer"])) for row in load("aime24.jsonl"))
    right = task.verify([f"So it is.\n\nAnswer: ${row['answer']}$" for row in rows], rows)
    wrong = task.verify([f"So it is.\n\nAnswer: {int(row['answer']) + 1}" for row in rows], rows)
    assert (agreeing(right, [True] * 30), agreeing(wrong, [False] * 30)) == (30, 30)
    assert task._pool is None


@needs_data
def test_training_rows_in_another_spelling_of_the_evaluation(caplog: pytest.LogCaptureFixture) -> None:
    """The same 30 problems from two sources: most differ in white space alone, seven in words."""
    path = DATA / "dapo_format_aime24_960rows.parquet"
    task = get_task("dapo_math_raw", dataset_name=str(path), eval_dataset_name=str(DATA / "aime24.jsonl"))
    with caplog.at_level("WARNING"):
        assert told("not recognised", len(task.rows("train")), 30) <= 7
    assert "23 training rows are evaluation problems" in caplog.text


# Cases of math-verify's own suite that are decided otherwise here, and why.
OTHERWISE = {
    31: "needs its option strict=False: variables of any name are equal",
    38: "a comma separates elements; it is no decimal point",
    63: "its answer is not found where a formula starts with a line break; it is read here, and equal",
    64: "its answer is not found where a formula starts with a line break; it is read here, and equal",
    93: "the answer is neither boxed nor in the last 500 characters",
    165: "needs its option to round to two digits",
    171: "needs its option to round to two digits",
    204: "a box counts before the words that follow it",
    214: "boxes that nothing joins are alternatives; the last one counts",
    218: "needs its option to accept a relation for a set",
    222: "boxes that nothing joins are alternatives; the last one counts",
    239: "boxes of two parts of a question are not joined",
    249: "boxes of two equations are not joined",
    252: "boxes that are joined by other words are not joined",
    263: "1 - 1/e is not 1 + 1/e",
    266: "a time of day is read as a division by zero: no verdict",
}


@pytest.fixture(scope="module")
def suite(task: MathTask) -> list[tuple[int, Verdict]]:
    """For each case the expected score and the verdict, as a row and a completion get it."""
    cases = [row["args"] for row in load("math_verify_suite_cases.jsonl")]
    golds = [{"answer": clean_gold(_unwrapped(case[0]))} for case in cases]
    verdicts = task.verify([case[1] for case in cases], golds)
    return [(next(a for a in case[2:] if type(a) is int), v) for case, v in zip(cases, verdicts, strict=True)]


def _unwrapped(gold: str) -> str:
    """A reference of more than an answer's length is a worked solution: its last formula."""
    return gold if len(gold) < 500 or "boxed" in gold else re.findall(r"\$([^$]+)\$", gold)[-1]


@needs_data
@pytest.mark.parametrize("number", range(268))
def test_suite_of_math_verify(number: int, suite: list[tuple[int, Verdict]], request: pytest.FixtureRequest) -> None:
    if number in OTHERWISE:
        request.node.add_marker(pytest.mark.xfail(reason=OTHERWISE[number], strict=True))
    expected, verdict = suite[number]
    assert (verdict.status, verdict.score) == (Status.GRADED, expected)


HOSTILE = {
    "tower of powers": r"\boxed{9^{9^{9^9}}}",
    "tower without a box": "Answer: 9^{9^{9^{9^9}}}",
    "factorial": r"\boxed{(10^8)!}",
    "factorial of a factorial": r"\boxed{((10!)!)!}",
    "large power": r"\boxed{7^{10^9}}",
    "long sum": r"\boxed{\sum_{k=1}^{10000000} \frac{1}{k}}",
    "integral": r"\boxed{\int_0^1 \frac{\sin(x^x)}{x + e^{x^3}} dx}",
    "polynomial": r"\boxed{(x+1)^{1000}}",
    "300 parentheses": r"\boxed{" + "(" * 300 + "1" + ")" * 300 + "}",
    "300 fractions": r"\boxed{" + r"\frac{1}{1+" * 75 + "1" + "}" * 75 + "}",
    "3000 elements": r"\boxed{\{" + ",".join(map(str, range(3000))) + r"\}}",
    "2000 boxes": r"\boxed{1}" * 2000,
    "2000 joined boxes": " and ".join(rf"$\boxed{{{n}}}$" for n in range(2000)),
    "2000 nested boxes": r"\boxed{" * 2000 + "1" + "}" * 2000,
    "100000 digits": r"\boxed{" + "9" * 100_000 + "}",
    "100000 braces": "{" * 100_000,
    "5 MB of digits": r"\boxed{" + "9" * 5_000_000 + "}",
    "5 MB of boxes": r"\boxed{1} and " * 350_000,
    "5 MB of braces": "{" * 2_500_000 + "}" * 2_500_000,
    "5 MB of answers": "Answer: " * 625_000,
    "5 MB of thoughts": "<think>" * 350_000 + "</think>" * 300_000,
    "5 MB of one line": "Answer:" + " " * 5_000_000 + "x",
    "control characters": "\\boxed{\x00\x01\ud800}",
}


@pytest.mark.parametrize("grader", ["math_verify", "dapo"])
def test_hostile_answers_take_bounded_time_and_the_pool_works_on(grader: str) -> None:
    """One batch with good answers among them. Unbounded, the first alone would not end."""
    task = MathTask(timeout_s=4.0, grader=grader)  # one second for each step
    right, wrong = {"math_verify": (r"\boxed{0.75}", r"\boxed{0.7}")}.get(
        grader, (r"Answer: \frac34", "Answer: 0.75")
    )
    start = time.perf_counter()
    try:
        verdicts = task.verify([right, *HOSTILE.values(), right, wrong], [{"answer": r"\frac{3}{4}"}] * 26)
        again = task.verify([right, wrong], [{"answer": r"\frac{3}{4}"}] * 2)
    finally:
        task.close()
    print(f"\n{len(HOSTILE)} hostile answers, {grader}: {time.perf_counter() - start:.1f} s")
    assert time.perf_counter() - start < 10 * len(HOSTILE)
    for name, verdict in zip(HOSTILE, verdicts[1:], strict=False):
        print(f"  {name}: {verdict.status} {verdict.score} {verdict.detail}")
        assert verdict.status in (Status.TIMEOUT, Status.ERROR) or verdict.score == 0.0, name
    assert [v.score for v in (verdicts[0], *verdicts[-2:], *again)] == [1.0, 1.0, 0.0, 1.0, 0.0]


SCRIPT = r"""
import sys, threading
from scgrpo.tasks.math import MathTask
task = MathTask(timeout_s=60)
row = {"answer": r"\frac{3}{4}"}
task.verify([r"\boxed{0.75}"], [row])
print(*(worker.process.pid for worker in task._pool._workers), flush=True)
task.verify([rf"\boxed{{9^{{9^{{9^{n}}}}}}}" for n in range(10, 40)], [row] * 30)
"""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_interrupt_in_the_middle_leaves_no_worker() -> None:
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert script.stdout is not None
    pids = [int(pid) for pid in script.stdout.readline().split()]
    assert len(pids) == 2
    assert all(map(_alive, pids))
    time.sleep(1)
    script.send_signal(signal.SIGINT)
    _, errors = script.communicate(timeout=50)  # an item alone may take 60 s
    assert "KeyboardInterrupt" in errors
    end = time.monotonic() + 30
    while any(map(_alive, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(_alive, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_have_a_memory_limit() -> None:
    task = MathTask()
    try:
        assert task.verify([r"\boxed{0.75}"], [{"answer": r"\frac{3}{4}"}])[0].score == 1.0
        assert task._pool is not None
        for worker in task._pool._workers:
            assert worker.process is not None
            limits = Path(f"/proc/{worker.process.pid}/limits").read_text()
            assert re.search(rf"Max address space +{1024 * 2**20} ", limits)
    finally:
        task.close()
