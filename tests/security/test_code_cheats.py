"""Answers that try to pass without solving anything. Each gets 0, and a grade: not an error that would excuse it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scgrpo.sandbox import open_sandbox
from scgrpo.tasks import Status
from scgrpo.tasks.code import AssertCase, CallCase, StdinCase, Suite
from scgrpo.tasks.code.extract import LCB_PRELUDE
from scgrpo.tasks.code.grader import Grader

# Finds the answer in files, the environment, or objects of the interpreter, if it is anywhere; prints and returns it.
SEARCH = """
import gc, glob, os, re, sys
found = []
for pattern in ("*", "../*", "/tmp/**", "/dev/shm/*", "/proc/self/fd/*", "/proc/*/environ"):
    for path in glob.glob(pattern, recursive=True)[:500]:
        try:
            found.append(open(path, errors="replace").read(100_000))
        except Exception:
            pass
found += [repr(value)[:10_000] for value in gc.get_objects() if isinstance(value, (dict, list, tuple))]
frame = sys._getframe()
while frame:
    found += [repr(frame.f_locals)[:10_000], repr(frame.f_globals)[:10_000]]
    frame = frame.f_back
answer = (re.findall(r"SECRET-\\w+-ANSWER", "".join(found)) or ["not found"])[0]
"""
SAY_PASSED = """
import json, os
for message in ({"passed": True}, ["ok", True, None], {"ok": True, "value": "SECRET"}, {"outcome": "ok"}, ["ready"]):
    data = json.dumps(message).encode()
    for descriptor in range(3, 64):
        for part in (data, data + b"\\n", *(len(data).to_bytes(4, order) + data for order in ("little", "big"))):
            try:
                os.write(descriptor, part)
            except OSError:
                break
"""
# What answers of every kind try.
TRICKS = {
    "sys.exit": "import sys\nsys.exit(0)",
    "os._exit": "import os\nos._exit(0)",
    "exit later": "import atexit, os\natexit.register(os._exit, 0)",
    "raise SystemExit": "raise SystemExit",
    "raise KeyboardInterrupt": "raise KeyboardInterrupt",
    "kill itself": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
    "exit from a thread": "import os, threading\nthreading.Thread(target=os._exit, args=(0,)).start()",
    "close everything": "import os\nos.closerange(0, 64)",
    "say that it passed": SAY_PASSED,
    "say that it passed and exit": SAY_PASSED + "\nos._exit(0)",
    "search for the answer": SEARCH + "\nprint(answer)",
    "no assertions": "import builtins\nbuiltins.AssertionError = type('Never', (BaseException,), {})\nassert True",
    "patch json": "import json\njson.dumps = lambda *a, **k: 'true'\njson.loads = lambda *a, **k: None",
    "patch the exits": "import os, sys\nsys.exit = os._exit = exit = lambda *a: None",
    "patch the hooks": "import sys\nsys.excepthook = lambda *a: None\nsys.settrace(lambda *a: None)",
    "patch print and input": "import builtins\nbuiltins.print = builtins.input = lambda *a, **k: 'SECRET'",
    "patch comparisons": (
        "import builtins, math\n"
        "for name in ('all', 'any', 'isinstance', 'abs', 'len', 'set', 'sorted', 'tuple', 'round', 'str', 'list'):\n"
        "    setattr(builtins, name, lambda *a, **k: True)\n"
        "math.isclose = lambda *a, **k: True"
    ),
    "patch modules": "import sys\nfor name in list(sys.modules):\n    sys.modules[name] = None",
    "empty traceback": "import sys\nsys.stderr = None\nsys.stdout = None",
    "fork": "import os\nos.fork()",
}
EQUAL_TO_ALL = """
class Same:
    __eq__ = __le__ = __ge__ = __lt__ = __gt__ = __contains__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __hash__ = lambda self: 0
    __bool__ = lambda self: True
    __sub__ = __rsub__ = __add__ = __radd__ = __abs__ = __round__ = lambda self, *other: self
    __float__ = lambda self: 0.0
    __class__ = property(lambda self: str)
    def __getattr__(self, name):
        return lambda *a, **k: self
class Text(str):
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __hash__ = str.__hash__
class Items(list):
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
"""
FUNCTIONS = {
    "equal to all": EQUAL_TO_ALL + "def f(x): return Same()",
    "text equal to all": EQUAL_TO_ALL + "def f(x): return Text('no')",
    "list equal to all": EQUAL_TO_ALL + "def f(x): return Items()",
    "class instead of a function": EQUAL_TO_ALL + "f = lambda x: Same",
    "a type called str": "def f(x): return type('str', (), {'__repr__': lambda self: 'no'})()",
    "metaclass": (
        "class M(type):\n    __eq__ = lambda c, o: True\n    __hash__ = type.__hash__\n"
        "class C(metaclass=M): pass\ndef f(x): return C"
    ),
    "exit when called": "import os\ndef f(x): os._exit(0)",
    "exit when called, by exception": "def f(x): raise SystemExit(0)",
    "stop iteration": "def f(x): raise StopIteration",
    "answer of the caller": SEARCH + "\ndef f(x):\n    return answer",
    "frames of the caller": (
        "import sys\ndef f(x):\n    frame = sys._getframe(1)\n    while frame:\n"
        "        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):\n"
        "            if isinstance(value, str) and 'SECRET-RIGHT' in value and len(value) < 40: return value\n"
        "        frame = frame.f_back\n    return 'none'"
    ),
    "its own check": "def f(x): return 'no'\ndef check(*a, **k): return True\nclass TestCase: pass\ncases = []",
    "generator": "def f(x):\n    while True: yield 'no'",
    "coroutine": "async def f(x): return 'SECRET'",
}


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with open_sandbox(num_workers=1) as sandbox:
        yield Grader(sandbox)


# The solved problem: the input says how often the answer is repeated; none of it can be guessed.
PROGRAM = Suite(
    (StdinCase("1\n", "SECRET-RIGHT-ANSWER\n"), StdinCase("2\n", "SECRET-RIGHT-ANSWER-2\n")),
    preamble=LCB_PRELUDE,
    time_limit_s=4.0,
)
CALLS = Suite((CallCase((1,), "SECRET-RIGHT-ANSWER"),), entry_point="f", preamble=LCB_PRELUDE, time_limit_s=4.0)
ASSERTS = Suite((AssertCase("assert f(1) == 'SECRET-RIGHT-ANSWER'"),), entry_point="f", time_limit_s=4.0)
# More ways in which tests compare, all of which a lying object would satisfy if it were asked.
LENIENT = Suite(
    (
        AssertCase(
            "import math\n"
            "def check(candidate):\n"
            "    value = candidate(1)\n"
            "    assert abs(value - 3) < 1e-6 or math.isclose(value, 3.0)\n"
            "    assert isinstance(value, (int, float)) and value in [3, 3.0] and not value != 3\n"
            "    assert set([value]) == {3} and sorted([value]) == [3] and value <= 3 <= value\n"
            "check(f)"
        ),
    ),
    entry_point="f",
    time_limit_s=4.0,
)
CHECKED = Suite(
    (StdinCase("6\n", "SECRET-RIGHT-ANSWER\n"),),
    checker=(
        "import sys\nexpected = open(sys.argv[2]).read().strip()\ngot = open(sys.argv[3]).read().strip()\n"
        "print(1 if got == expected else 0)"
    ),
    time_limit_s=4.0,
)
FILES = Suite((StdinCase("6\n", "SECRET-RIGHT-ANSWER\n"),), files=True, comparison="tokens", time_limit_s=4.0)
SUITES = {
    "stdin": PROGRAM,
    "calls": CALLS,
    "asserts": ASSERTS,
    "lenient": LENIENT,
    "checker": CHECKED,
    "files": FILES,
}


def refused(grader: Grader, code: str, suite: Suite) -> None:
    verdict = grader.grade(code, suite)
    assert verdict.status is Status.GRADED, verdict.detail
    assert verdict.score == 0.0


@pytest.mark.parametrize("kind", SUITES)
@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_at_the_top_of_the_program(grader: Grader, kind: str, trick: str) -> None:
    refused(grader, TRICKS[trick], SUITES[kind])


@pytest.mark.parametrize("kind", ["calls", "asserts", "lenient"])
@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_in_the_function(grader: Grader, kind: str, trick: str) -> None:
    body = "\n".join(f"    {line}" for line in TRICKS[trick].splitlines())
    refused(grader, f"def f(x):\n{body}\n    return 'no'", SUITES[kind])


@pytest.mark.parametrize("kind", ["calls", "asserts", "lenient"])
@pytest.mark.parametrize("trick", FUNCTIONS)
def test_functions_that_lie(grader: Grader, kind: str, trick: str) -> None:
    refused(grader, FUNCTIONS[trick], SUITES[kind])


@pytest.mark.parametrize(
    "code",
    [
        "print(open('correct_output.txt').read())",
        "print(open('../correct_output.txt').read())",
        "print(1)",
        "print(100)",
        "print('1\\n' * 100)",
        "print('\\x00')",
        "open('solution_output.txt', 'w').write('x')",
        "open('checker.py', 'w').write('print(1)')",
        "print('x' * 3_000_000)",
        "import sys\nsys.stdout.buffer.write(b'\\xff\\xfe')",
        "print('import sys; print(1); sys.exit(0)')",
    ],
)
def test_checkers_cannot_be_talked_to(grader: Grader, code: str) -> None:
    refused(grader, code, CHECKED)


def test_the_suites_have_a_solution(grader: Grader) -> None:
    """Else all of the above would be refused whatever it does."""
    program = "n = int(input())\nprint('SECRET-RIGHT-ANSWER' + ('-2' if n == 2 else ''))"
    function = "def f(x): return 'SECRET-RIGHT-' + 'ANSWER'"
    solutions = {
        "stdin": program,
        "calls": function,
        "asserts": function,
        "lenient": "def f(x): return 3",
        "checker": program,
        "files": "open('output.txt', 'w').write('SECRET-RIGHT-ANSWER')",
    }
    for kind, suite in SUITES.items():
        assert grader.grade(solutions[kind], suite).score == 1.0, kind


def test_no_expected_output_is_in_the_process(grader: Grader) -> None:
    """The search finds what is there (here in its own input), so that it would find an answer that leaked."""
    told = Suite((StdinCase("SECRET-RIGHT-ANSWER", "SECRET-RIGHT-ANSWER"),), time_limit_s=4.0)
    assert grader.grade(f"line = [input()]\n{SEARCH}\nprint(answer)", told).score == 1.0


def test_one_answer_leaves_nothing_for_the_next(grader: Grader) -> None:
    """Answers run in forks: what one does to modules and builtins, the next does not see."""
    for trick in ("patch comparisons", "patch json", "patch modules", "patch print and input"):
        refused(grader, TRICKS[trick], ASSERTS)
        assert grader.grade("def f(x): return 'SECRET-RIGHT-ANSWER'", ASSERTS).score == 1.0
