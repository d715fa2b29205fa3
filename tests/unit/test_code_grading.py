"""Grading programs in the sandbox, and what its outcomes mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from scgrpo.sandbox import CallResult, Judged, Limits, Outcome, Program, Result, Sandbox, open_sandbox
from scgrpo.tasks import Status, Verdict, get_task
from scgrpo.tasks.code import AssertCase, CallCase, CodeTask, StdinCase, Suite
from scgrpo.tasks.code.extract import LCB_PRELUDE
from scgrpo.tasks.code.grader import Grader

FIXTURES = Path(__file__).parents[1] / "fixtures" / "code"
NAMES = ["code", "livecodebench", "codeforces", "humaneval", "humanevalplus", "mbpp", "mbppplus"]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with open_sandbox(num_workers=2) as sandbox:
        yield sandbox


Grade = Callable[..., Verdict]


@pytest.fixture
def grade(sandbox: Sandbox) -> Grade:
    def graded(code: str, suite: Suite, **options: Any) -> Verdict:
        return Grader(sandbox, **options).grade(code, suite)

    return graded


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def stdin(*pairs: tuple[str, str], **options: Any) -> Suite:
    return Suite(tuple(StdinCase(*pair) for pair in pairs), **options)


def calls(*pairs: tuple[list[Any], Any], **options: Any) -> Suite:
    return Suite(tuple(CallCase(tuple(a), b) for a, b in pairs), **{"entry_point": "f", **options})


def asserts(*sources: str, **options: Any) -> Suite:
    return Suite(tuple(map(AssertCase, sources)), **options)


SUM = stdin(("1 2\n", "3\n"), ("4 5\n", "9\n"))


@pytest.mark.parametrize("name", NAMES)
def test_canned_answers(name: str) -> None:
    task = get_task(name, num_workers=1)
    canned = task.canned()
    answers = [*canned.right, *canned.wrong]
    try:
        verdicts = task.verify(answers, [canned.row] * len(answers))
    finally:
        task.close()
    assert [v.status for v in verdicts] == [Status.GRADED] * len(answers)
    assert [v.score for v in verdicts] == [1.0] * len(canned.right) + [0.0] * len(canned.wrong)


@pytest.mark.parametrize(
    "code",
    [
        "a, b = map(int, input().split())\nprint(a + b)",
        "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
        "import sys\nfor line in sys.stdin:\n    print(eval(line.replace(' ', '+')))",
        "import sys\nsys.stdout.write(str(sum(map(int, sys.stdin.buffer.readline().split()))))",
        "def main():\n    print(sum(map(int, input().split())))\n\nif __name__ == '__main__':\n    main()",
        "from __future__ import annotations\nx: int = sum(map(int, input().split()))\nprint(x)\nexit()",
        "def depth(n):\n    return 0 if n == 0 else 1 + depth(n - 1)\nassert depth(20000) == 20000\n"
        "print(sum(map(int, input().split())))",
        "lines = open(0).read().split()\nprint(Counter(a=int(lines[0]), b=int(lines[1])).total())",
    ],
)
def test_right_programs(grade: Grade, code: str) -> None:
    assert grade(code, stdin(("1 2\n", "3\n"), ("4 5\n", "9\n"), preamble=LCB_PRELUDE)) == Verdict(1.0)


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("print(3)", "test 1: wrong output"),
        ("print(int(input()))", "test 0: exit: ValueError"),
        ("print(3", "test 0: exit: SyntaxError"),
        ("a, b = map(int, input().split())\nprint(a + b)\nraise SystemExit(1)", "test 0: exit"),
        ("import os\nos.abort()", "test 0: killed"),
        ("while True:\n    print('x' * 100000)", "test 0: output"),
        ("import numpy", "test 0: exit: ModuleNotFoundError"),
        ("open('/tmp/x', 'w')", "test 0: exit"),
        ("x = ' ' * 10**12", "test 0: exit: MemoryError"),
        ("", "no program"),
        ("print('1e' + '9' * 30)", "test 0: wrong output"),
        ("\0", "test 0: exit"),
    ],
)
def test_wrong_programs(grade: Grade, code: str, detail: str) -> None:
    verdict = grade(code, SUM)
    assert verdict.score == 0.0
    assert detail in verdict.detail


@pytest.mark.parametrize("code", ["while True:\n    pass", "import time\ntime.sleep(60)"])
def test_programs_that_do_not_end_are_wrong(grade: Grade, code: str) -> None:
    verdict = grade(code, stdin(("", ""), time_limit_s=0.5))
    assert (verdict.score, verdict.status) == (0.0, Status.GRADED)
    assert "timeout" in verdict.detail


def test_functions_are_called_as_methods_of_solution_or_by_name(grade: Grade) -> None:
    suite = calls(([[3, 1, 2]], [1, 2, 3]), ([[]], []), preamble=LCB_PRELUDE)
    assert grade("class Solution:\n    def f(self, a: List[int]):\n        return sorted(a)", suite).score == 1.0
    assert grade("def f(a):\n    return tuple(sorted(a))", suite).score == 1.0
    assert grade("def f(a):\n    return a", suite).detail == "test 0: wrong value"
    assert grade("def g(a):\n    return a", suite).score == 0.0
    assert "ZeroDivisionError" in grade("def f(a):\n    return sorted(a) if a else 1 / 0", suite).detail


def test_values_are_compared_exactly(grade: Grade) -> None:
    assert grade("def f(x):\n    return x + 0.2", calls(([0.1], 0.3))).score == 0.0
    assert grade("def f(x):\n    return x * 1.0", calls(([2], 2))).score == 1.0
    assert grade("def f(x):\n    return {x}", calls(([2], [2]))).score == 0.0


def test_integers_of_any_length(grade: Grade) -> None:
    program = stdin(("5000\n", "1" + "0" * 5000), preamble=LCB_PRELUDE)
    assert grade("print(10 ** int(input()))", program).score == 1.0
    returned = grade("def f(n):\n    return 10 ** n", calls(([5000], 1), preamble=LCB_PRELUDE))
    assert (returned.score, returned.status) == (0.0, Status.GRADED)


def test_functions_with_many_tests_do_not_depend_on_each_other(grade: Grade) -> None:
    many = calls(*(([n], n + 1) for n in range(50)))
    assert grade("def f(n):\n    return n + 1", many).score == 1.0
    keeps = "seen = []\ndef f(n):\n    seen.append(n)\n    return n + len(seen)"  # right only in a fresh process
    assert grade(keeps, many).score == 1.0
    assert grade("def f(n):\n    return n + 1 if n < 37 else 0", many).detail == "test 37: wrong value"
    share = grade("def f(n):\n    return n + 1 if n % 2 else 1 / 0", many, reward="fraction")
    assert share.score == 0.5
    assert share.detail.startswith("test 0: exit: ZeroDivisionError")


def test_assertions_with_setup(grade: Grade) -> None:
    suite = asserts("assert f(root) == 3", "assert f(math.inf) == math.inf", setup="import math\nroot = 2")
    assert grade("def f(x):\n    return x + 1", suite).score == 1.0
    verdict = grade("def f(x):\n    return 3", suite)
    assert (verdict.score, verdict.status) == (0.0, Status.GRADED)
    assert "assert f(math.inf) == math.inf" in verdict.detail
    assert grade("def f(x):\n    return 3", suite, reward="fraction").score == 0.5


def test_the_share_of_tests_that_pass(grade: Grade) -> None:
    assert grade("print(3)", SUM, reward="fraction") == Verdict(0.5, detail="test 1: wrong output")
    assert grade("print(sum(map(int, input().split())))", SUM, reward="fraction") == Verdict(1.0)


def test_time_for_all_tests_together(grade: Grade) -> None:
    many = stdin(*[("1\n", "1\n")] * 20)
    slow = "import time\ntime.sleep(0.2)\nprint(input())"
    verdict = grade(slow, many, total_time_s=0.9)
    assert verdict.score == 0.0
    assert "timeout" in verdict.detail or "time for all tests" in verdict.detail
    assert grade(slow, stdin(("1\n", "1\n")), total_time_s=30.0).score == 1.0
    share = grade(slow, many, total_time_s=0.9, reward="fraction").score
    assert 0 < share < 0.5
    late = grade(
        "import time\ndef f(n):\n    time.sleep(0.2)\n    return n", calls(*[([1], 1)] * 20), total_time_s=0.9
    )
    assert late.score == 0.0


DIVISOR = """\
import sys
n, wanted, got = (int(open(name).read()) for name in sys.argv[1:])
print(100 if 1 < got < n and n % got == 0 else 0)
"""


def test_a_checker_decides_where_several_outputs_are_right(grade: Grade) -> None:
    suite = stdin(("6\n", "2\n"), ("35\n", "5\n"), checker=DIVISOR)
    largest = "n = int(input())\nprint(max(d for d in range(2, n) if n % d == 0))"
    assert grade(largest, suite) == Verdict(1.0)
    assert grade("print(2)", suite).detail == "test 1: the checker rejects the output"
    crash = grade("print('two')", suite)
    assert (crash.score, crash.status) == (0.0, Status.GRADED)
    assert "cannot read the output" in crash.detail


@pytest.mark.parametrize("checker", ["raise ValueError('broken')", "print(0 / 0)", "x = (", "while True: pass"])
def test_a_checker_that_fails_on_the_reference_is_an_error(
    grade: Grade, checker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scgrpo.tasks.code.grader._CHECKER_LIMITS", Limits(wall_s=5.0, cpu_s=0.5))
    verdict = grade("print(2)", stdin(("6\n", "2\n"), checker=checker))
    assert verdict.status is Status.ERROR
    assert math.isnan(verdict.score)
    assert "checker" in verdict.detail


@pytest.mark.parametrize(
    "code",
    [
        "open('output.txt', 'w').write(open('input.txt').read())",
        "import sys\nsys.stdin = open('input.txt', 'r')\nsys.stdout = open('output.txt', 'w')\nprint(*sys.stdin)",
        "from pathlib import Path\nPath('output.txt').write_text(Path('input.txt').read_text())",
        "out = open('output.txt', 'w')\nfor line in open('input.txt'):\n    out.write(line)",
        "print('debugging')\nwith open('input.txt') as f, open('output.txt', 'w') as g:\n    print(f.read(), file=g)",
    ],
)
def test_programs_that_read_and_write_files(grade: Grade, code: str) -> None:
    suite = stdin(("a b\nc\n", "a b\nc\n"), files=True, comparison="tokens")
    assert grade(code, suite) == Verdict(1.0)


def test_a_stack_that_is_only_reserved_is_no_memory(grade: Grade) -> None:
    """By custom, programs for Codeforces that recurse deeply ask for a stack as large as its usual memory limit."""
    task = get_task("codeforces", dataset_name=str(FIXTURES / "codeforces.jsonl"), num_workers=1)
    assert isinstance(task, CodeTask)
    program = (
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**28)\n"
        "def depth(n): return n and 1 + depth(n - 1)\n"
        "def main():\n    assert depth(100_000) == 100_000\n    print('no' if int(input()) % 2 else 'yes')\n"
        "thread = threading.Thread(target=main)\nthread.start()\nthread.join()"
    )
    assert grade(program, task._load_suite("9001/A", "all")) == Verdict(1.0)


def test_what_is_printed_is_not_the_output_file(grade: Grade) -> None:
    suite = stdin(("a\n", "a\n"), files=True)
    assert grade("print(open('input.txt').read())", suite).detail == "test 0: wrong output"
    assert grade("open('other.txt', 'w')", suite).score == 0.0
    assert grade("print(input())", suite).score == 0.0


class Broken:
    """A sandbox that fails, after some runs that end well."""

    level = "none"

    def __init__(self, after: int = 0) -> None:
        self.left = after

    def _outcome(self) -> Outcome:
        self.left -= 1
        return Outcome.OK if self.left >= 0 else Outcome.ERROR

    def run(self, program: Program, limits: Limits) -> Result:
        return Result(self._outcome(), stdout="1\n", exit_code=0, detail="no worker")

    def call(self, source: str, function: str, arguments: Sequence[Any], *_: Any, **__: Any) -> list[CallResult]:
        return [CallResult(self._outcome(), 1, "no worker") for _ in arguments]

    def judge(self, *_: Any, **__: Any) -> Judged:
        ended = self._outcome() is Outcome.OK
        return Judged(True, Outcome.OK) if ended else Judged(None, Outcome.ERROR, "no worker")


@pytest.mark.parametrize("suite", [stdin(("", "1"), ("x", "1")), calls(([0], 1), ([1], 1)), asserts("pass", "1")])
@pytest.mark.parametrize("reward", ["all", "fraction"])
@pytest.mark.parametrize("after", [0, 1])
def test_a_sandbox_that_fails_gives_no_grade(suite: Suite, reward: Any, after: int) -> None:
    whole = isinstance(suite.cases[0], AssertCase) and reward == "all"  # all in one run
    verdict = Grader(Broken(0 if whole else after), reward=reward).grade("x", suite)  # type: ignore[arg-type]
    assert verdict.status is Status.ERROR
    assert verdict.detail == "no worker"
