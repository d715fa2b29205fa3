"""Assert-style tests across two processes: right candidates pass, whatever plain Python they use."""

from __future__ import annotations

import pytest

from scgrpo.sandbox import Limits, Outcome
from scgrpo.sandbox.zygote import Zygote

AMPLE = Limits(wall_s=60.0)

PASSING = {
    "plain values": ("def f(x): return x", """
import collections, datetime, decimal, fractions
for value in (None, True, 0, -1, 2**70, -(10**5000), 0.1, -0.0, float("inf"), "ä\\ud800", b"\\xff", bytearray(b"a"),
              1j, [1, [2]], (1, (2,)), {1, 2}, frozenset("ab"), {"k": [1], (1, 2): None}, range(3, 9, 2),
              slice(1, None, [2]), int,
              ValueError,
              decimal.Decimal("1.50"), fractions.Fraction(1, 3), collections.deque([1, 2], 5),
              datetime.date(2020, 2, 29),
              collections.Counter("aab"), collections.OrderedDict(a=1), datetime.timedelta(days=1, microseconds=3),
              datetime.datetime(2020, 1, 2, 3, 4, 5, 6), {1: 2}.keys(), {1: 2}.items()):
    back = f(value)
    assert type(back) is type(value), (value, back)
    assert back == value, (value, back)
"""),
    "subclasses are what they derive from": (
        "import collections, enum\nP = collections.namedtuple('P', 'x y')\nclass C(enum.IntEnum):\n    A = 3\n"
        "class S(str): pass\n"
        "def f(k): return {'t': P(1, 2), 'i': C.A, 's': S('x'), 'd': collections.defaultdict(int, a=1)}[k]",
        "assert f('t') == (1, 2) and f('i') == 3 and f('s') == 'x' and f('d') == {'a': 1}",
    ),
    "arguments changed in place": (
        "def f(xs, d, s):\n    xs.sort(); xs.append(9); d['new'] = [1]; s.discard(1); xs[0].append(7)",
        "inner = [1]\nxs, d, s = [[2], inner], {}, {1, 2}\nxs[1] = inner\nassert f(xs, d, s) is None\n"
        "assert xs == [[1, 7], [2], 9] and d == {'new': [1]} and s == {2}",
    ),
    "a mapping with a default": (
        "import collections\ndef f(d):\n    d[3].append(1)\n    return d\n"
        "def g(): return collections.defaultdict(lambda: 7)",
        "import collections\nd = collections.defaultdict(list)\nback = f(d)\n"
        "assert back == d == {3: [1]} and back[4] == [] and g()[1] == 7",
    ),
    "keyword arguments": (
        "def f(*a, operation=1, **k): return a, operation, k",
        "assert f(1, operation=2, target=3) == ((1,), 2, {'target': 3})",
    ),
    "exceptions": (
        "class Own(KeyError): pass\ndef f(x):\n    if x: raise Own('no')\n    raise ValueError('bad')",
        "try:\n    f(0)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'bad'\n"
        "try:\n    f(1)\nexcept KeyError:\n    pass\nelse:\n    assert False",
    ),
    "classes and their objects": (
        "class Node:\n    def __init__(self, v): self.v, self.next = v, None\n    def __len__(self): return 3\n"
        "def total(n):\n    return 0 if n is None else n.v + total(n.next)",
        "a = Node(1)\na.next = Node(2)\na.next.next = Node(3)\n"
        "assert total(a) == 6 and a.next.v == 2 and len(a) == 3\n"
        "assert a.next is a.next and a != a.next and a in [Node(0), a]",
    ),
    "generators, iterators, closures": (
        "def g(n):\n    yield from range(n)\ndef m(xs): return map(abs, xs)\ndef add(a): return lambda b: a + b",
        "assert list(g(3)) == [0, 1, 2] and sorted(m([-2, 1])) == [1, 2] and add(1)(2) == 3 and 2 in g(3)\n"
        "it = g(2)\nassert next(it) == 0 and next(it) == 1 and next(it, None) is None",
    ),
    "functions of the tests, called back": (
        "def f(g, xs): return [g(x) for x in xs]",
        "seen = []\nassert f(lambda x: x * 2, [1, 2]) == [2, 4]\nf(seen.append, [1])\nassert seen == [1]",
    ),
    "a callback that calls the candidate": (
        "def f(n, g): return n if n == 0 else 1 + g(n - 1)",
        "def g(n): return f(n, g)\nassert f(5, g) == 5",
    ),
    "slices of what is no list": (
        "import array, collections\ndef f(x): return collections.UserList(x)\ndef g(x): return array.array('i', x)",
        "assert list(f([1, 2, 3])[1:]) == [2, 3] and list(g([1, 2, 3])[::-2]) == [3, 1]",
    ),
    "a name that Python has too": ("def sum(a, b): return a * b", "assert sum(3, 4) == 12"),
    "a module that the tests do not import": ("def f(x): return x", "assert math.isclose(f(1.0), 1.0)"),
    "constants": ("LIMIT = 5\ndef bump():\n    global LIMIT\n    LIMIT += 1",
                  "assert LIMIT == 5\nbump()\nassert LIMIT == 6"),
    "tests with helpers": ("def f(x): return x + 1",
                           "def f_all(xs): return [f(x) for x in xs]\nassert f_all([1]) == [2]"),
    "printing": ("def f(x):\n    print('x' * 10000)\n    return x", "print(f(1))\nassert f(1) == 1"),
    "an empty test": ("def f(): pass", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSING)
def test_right_candidates_pass(zygote: Zygote, name: str) -> None:
    candidate, tests = PASSING[name]
    judged = zygote.judge(candidate, tests, AMPLE, entry_points=["sum"] if "sum(" in candidate else ())
    assert judged.passed is True, judged


@pytest.mark.parametrize(
    ("candidate", "tests", "detail"),
    [
        (
            "def f(x): return 1",
            "x = 1\nassert f(1) == 2, 'reason'",
            "line 2, assert f(1) == 2, 'reason': AssertionError: r",
        ),
        ("def f(x): return 1", "assert g(1) == 2", "name 'g' is not defined"),
        ("x = (", "pass", "does not load: SyntaxError"),
        ("def f(x: Missing): return 1", "assert f(1) == 1", "NameError: name 'Missing' is not defined"),
        ("def f(x): return [1]", "assert f(1) is f(1)", "AssertionError"),
        ("def abs(x): return 0\ndef f(x): return 1", "assert abs(f(1) - 5) < 1", "AssertionError"),
        ("def f(x): raise KeyError(x)", "f(1)", "KeyError"),
        (
            "class A:\n    def __eq__(self, o): return True\ndef f(): return A()",
            "assert f() == f()",
            "AssertionError",
        ),
        (
            "def f(): return 1",
            "try:\n    assert f() == 2\nexcept AssertionError:\n    raise ValueError('own')",
            "own",
        ),
    ],
)
def test_wrong_candidates_fail_and_say_why(zygote: Zygote, candidate: str, tests: str, detail: str) -> None:
    judged = zygote.judge(candidate, tests, AMPLE)
    assert (judged.passed, judged.outcome) == (False, Outcome.EXIT)
    assert detail in judged.detail


def test_how_a_candidate_ends_is_the_outcome(zygote: Zygote) -> None:
    crash = "import ctypes\ndef f(): ctypes.string_at(0)"
    assert zygote.judge(crash, "f()", AMPLE).outcome is Outcome.KILLED
    hang = zygote.judge("def f():\n    while True: pass", "f()", Limits(wall_s=1.0))
    assert (hang.passed, hang.outcome) == (False, Outcome.TIMEOUT)
    busy = zygote.judge("def f():\n    while True: pass", "f()", Limits(wall_s=60.0, cpu_s=1.0))
    assert (busy.passed, busy.outcome) == (False, Outcome.TIMEOUT)


def test_a_dead_candidate_cannot_be_swallowed(zygote: Zygote) -> None:
    tests = "try:\n    f()\nexcept:\n    pass"
    assert zygote.judge("import os\ndef f(): os._exit(0)", tests, AMPLE).passed is False


OWN_TUPLE = "import collections\nP = collections.namedtuple('P', 'x')\n"
OWN_NUMBER = "class Metre(int):\n    unit = 'm'\n"


@pytest.mark.parametrize(
    "tests",
    [
        "assert (",
        "f(object())",
        "try:\n    f(open('/dev/null'))\nexcept:\n    pass",
        OWN_TUPLE + "assert f([P(1)])[0] == (1,)",
        OWN_NUMBER + "assert f(Metre(1)) == 1",
    ],
)
def test_tests_that_cannot_be_carried_over_give_no_verdict(zygote: Zygote, tests: str) -> None:
    judged = zygote.judge("def f(x): return x", tests, AMPLE)
    assert (judged.passed, judged.outcome) == (None, Outcome.ERROR), judged


def test_random_tests_cannot_be_foreseen(zygote: Zygote) -> None:
    candidate = "import random\ndef f(): return random.random()"
    tests = "import random\nassert f() == random.random()"
    assert zygote.judge(candidate, tests, AMPLE).passed is False
