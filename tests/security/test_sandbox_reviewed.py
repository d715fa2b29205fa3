"""What an adversarial review of the sandbox found, each as it was shown: it must not work again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scgrpo.sandbox import Limits, Outcome, Program
from scgrpo.sandbox.zygote import Zygote
from scgrpo.tasks.code.grader import Grader
from scgrpo.tasks.code.numpy_standin import without_numpy
from scgrpo.tasks.code.suite import CallCase, Suite

AMPLE = Limits(wall_s=60.0)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Zygote]:
    with Zygote(num_workers=1) as opened:
        yield opened


# What must be a wrong answer, and neither a right one nor no verdict.
WRONG = {
    "raises SyntaxError": ("def f(*a): raise SyntaxError('x')", "assert f(2) == 4"),
    "evaluates nonsense": ("def f(*a): return eval(')')", "assert f(2) == 4"),
    "returns what the tests evaluate": ("def f(*a): return '('", "assert eval(f(2)) == 4"),
    "a builtin type as its own": ("Node = object\ndef depth(r): return 0", "n = Node()\nassert depth(n) == 1"),
    "a builtin exception as its encoder": ("enc = Exception\ndef dec(x): return x", "assert dec(enc('a')) == 'a'"),
    "a builtin type by callback": ("def f(g): return g(ValueError)", "assert f(lambda k: k(1)) == 4"),
    "a number that changes": (
        "class X:\n    def __init__(s, c): s.c, s.n = c, 0\n    def __float__(s):\n        s.n += 1\n"
        "        return -s.c[0] / s.c[1] if s.n == 2 else 0.0\ndef root(c): return X(c)",
        "x = root([3, 1])\nimport math\nassert abs(math.pow(x, 0) * 3 + math.pow(x, 1)) < 1e-4",
    ),
    "items that change": (
        "class R:\n    n = 0\n    def __iter__(s):\n        R.n += 1\n"
        "        return iter([2, 4] if R.n == 1 else [9])\n"
        "def f(): return R()",
        "r = f()\nassert all(v % 2 == 0 for v in r) and sum(r) == 9",
    ),
    "an iterator that goes on after its end": (
        "class R:\n    n = 0\n    def __iter__(s): return s\n    def __next__(s):\n        R.n += 1\n"
        "        if R.n == 2: raise StopIteration\n        return 8 if R.n == 1 else 9\ndef f(): return R()",
        "r = f()\nassert all(v % 2 == 0 for v in r) and 9 in r",
    ),
    "ends the loop of the tests": (
        "def f(*a): raise StopIteration",
        "assert all(map(lambda c: f(c[0]) == c[1], [(2, 4), (3, 9)]))",
    ),
    "ends the pairs of the tests": (
        "def f(*a): raise StopIteration",
        "for got, want in zip(map(f, [2, 3]), [4, 9]):\n    assert got == want",
    ),
    "reads what the tests print": (
        "import os\ndef f(x):\n    try: return int(os.pread(2, 1000, 0).split()[-1])\n    except Exception: return 0",
        "import sys\nfor x in (1, 7):\n    print('want', x * x, file=sys.stderr, flush=True)\n"
        "    assert f(x) == x * x",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_no_right_answer_and_no_escape_from_a_wrong_one(sandbox: Zygote, name: str) -> None:
    judged = sandbox.judge(*WRONG[name], AMPLE)
    assert judged.passed is False, judged


def test_objects_may_change_when_they_are_told_to(sandbox: Zygote) -> None:
    """The other side of items that stay the same."""
    stack = (
        "class Stack:\n    def __init__(s): s.x = []\n    def push(s, v): s.x.append(v)\n"
        "    def __iter__(s): return iter(s.x)\n"
    )
    tests = (
        "s = Stack()\ns.push(1)\nassert list(s) == [1] and list(s) == [1]\ns.push(2)\nassert list(s) == [1, 2]\n"
        "assert next(iter(s)) == 1 and sum(s) == 3"
    )
    assert sandbox.judge(stack, tests, AMPLE).passed


def test_nothing_stays_from_one_run_to_the_next(sandbox: Zygote) -> None:
    """An answer remembered by what a run leaves behind on descriptors it shares with others."""
    written = "import os\ndef f(*a):\n    os.write(2, b'@remember')\n    return 1"
    read = "import os\ndef f(*a): return b'remember' in os.pread(2, 100000, 0)"
    sandbox.judge(written, "assert f() == 2", AMPLE)
    assert sandbox.judge(read, "assert f()", AMPLE).passed is False
    poisoned = (
        "import os\nfor n in (0, 1, 2):\n    try: os.lseek(n, 1 << 40, 0)\n    except OSError: pass\n"
        "def f(): return 1"
    )
    sandbox.judge(poisoned, "assert f() == 1", AMPLE)
    honest = "import sys\ndef f():\n    print('x' * 200_000, file=sys.stderr, flush=True)\n    return 1"
    for _ in range(12):
        assert sandbox.judge(honest, "assert f() == 1", AMPLE).passed
    counts = "import fcntl\ndef f():\n    v = fcntl.fcntl(0, 11) or 40\n    fcntl.fcntl(0, 10, v + 1)\n    return v"
    assert [sandbox.judge(counts, "assert f() > 0", AMPLE).passed for _ in range(2)] == [False, False]


@pytest.mark.parametrize(
    "command", ["F_SETOWN", "F_SETSIG", "F_SETLEASE", "F_NOTIFY", "F_SETLK", "F_GETLK", "F_OFD_SETLK", "F_SETPIPE_SZ"]
)
def test_descriptors_reach_no_other_process(sandbox: Zygote, command: str) -> None:
    source = (
        "import fcntl, os\nnumbers = {'F_SETPIPE_SZ': 1031, 'F_OFD_SETLK': 37}\n"
        f"number = numbers.get({command!r}) or getattr(fcntl, {command!r})\nr, w = os.pipe()\n"
        "try:\n    fcntl.fcntl(r, number, 1)\n    print('did')\nexcept PermissionError:\n    print('held')\n"
        "fcntl.fcntl(r, fcntl.F_SETFL, fcntl.fcntl(r, fcntl.F_GETFL) | os.O_NONBLOCK)\n"
    )
    result = sandbox.run(Program(source), AMPLE)
    assert (result.outcome, result.stdout) == (Outcome.OK, "held\n"), result


def test_a_program_has_one_try_at_each_call(sandbox: Zygote) -> None:
    """It can see how many calls its process is to make: one answer for a process of one, another for several."""
    guesses = (
        "import sys\ndef is_prime(x):\n    frame = sys._getframe()\n    while 'order' not in frame.f_locals:\n"
        "        frame = frame.f_back\n    return len(frame.f_locals['order']['arguments']) > 1\n"
    )
    cases = tuple(CallCase((x,), x in (2, 3, 5, 7, 11, 13)) for x in range(1, 15))
    suite = Suite(cases=cases, entry_point="is_prime")
    assert Grader(sandbox).grade(guesses, suite).score == 0
    assert Grader(sandbox, reward="fraction").grade(guesses, suite).score == 8 / 14, "as False for all"


def test_details_can_be_written_down(sandbox: Zygote) -> None:
    judged = sandbox.judge("def f(): raise ValueError(chr(0xd800))", "assert f() == 1", AMPLE)
    judged.detail.encode()
    (result,) = sandbox.call("def f(): raise ValueError(chr(0xd800))", "f", [[]], AMPLE)
    result.detail.encode()


def test_infinity_is_close_to_itself_only() -> None:
    names: dict[str, object] = {}
    exec(without_numpy("import numpy as np\n"), names)
    close = names["np"].allclose  # type: ignore[attr-defined]
    assert close(float("inf"), float("inf"))
    assert not close(5, float("inf"))
    assert not close(float("-inf"), float("inf"))
