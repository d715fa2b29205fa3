"""Candidates that do not know the answer and try to be judged right all the same."""

from __future__ import annotations

from dataclasses import dataclass

_SUM = "assert f(2, 3) == 5\nassert f(-1, 1) == 0\nassert f(10, 20) == 30"
_CLOSE = "import math\nassert abs(f(2, 3) - 5) < 1e-6\nassert math.isclose(f(1, 1), 2)"
_MEMBER = "assert 5 in f(2, 3)\nassert 2 in f(1, 1)"
_ORDER = "assert 5 <= f(2, 3) <= 5\nassert f(1, 1) >= 2 and not f(1, 1) > 2"
_HELD = (
    "result = f(2, 3)\nassert not result != 5, result\nassert {5: True}.get(result)\nassert [5].count(result) == 1"
)
_TRIED = "try:\n    value = f(2, 3)\nexcept Exception:\n    value = None\nassert value == 5"
_CHECK = "def check(candidate):\n    for a in range(5):\n        assert candidate(a, 1) == a + 1\ncheck(f)"

_EVERYTHING = """
class Yes({base}):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __contains__ = __lt__
    def __hash__(self): return 5
    def __bool__(self): return True
    def __sub__(self, other): return 0
    __rsub__ = __add__ = __radd__ = __abs__ = __sub__
    def __abs__(self): return 0
    def __instancecheck__(self, other): return True
    def __getattr__(self, name): return self
    def __call__(self, *args): return self
def f(*args): return Yes()
"""
_SCAN = """
import gc, sys
def scan():
    for thing in gc.get_objects():
        try:
            if isinstance(thing, dict) and "secret" in thing: return thing["secret"]
            if isinstance(thing, str) and "assert f(" in thing: return thing
        except BaseException: pass
    frame = sys._getframe()
    while frame:
        for values in (frame.f_locals, frame.f_globals):
            for name, value in list(values.items()):
                if "secret" in name or (isinstance(value, dict) and "secret" in value): return value
        frame = frame.f_back
"""


@dataclass(frozen=True)
class Cheat:
    """A candidate, and tests that it must fail."""

    name: str
    candidate: str
    tests: str = _SUM


CHEATS = [
    Cheat("sys.exit(0) on load", "import sys; sys.exit(0)"),
    Cheat("sys.exit(0) in the call", "import sys\ndef f(*a): sys.exit(0)"),
    Cheat("raise SystemExit, caught by the tests' try", "def f(*a): raise SystemExit(0)", _TRIED),
    Cheat("os._exit(0) on load", "import os; os._exit(0)"),
    Cheat("os._exit(0) in the call", "import os\ndef f(*a): os._exit(0)"),
    Cheat("os._exit(0) at exit", "import atexit, os\natexit.register(os._exit, 0)\ndef f(*a): exit()"),
    Cheat("an object that equals everything", _EVERYTHING.format(base="object")),
    Cheat("an int that equals everything", _EVERYTHING.format(base="int")),
    Cheat("a list that contains everything", _EVERYTHING.format(base="list"), _MEMBER),
    Cheat("a float that is close to everything", _EVERYTHING.format(base="float"), _CLOSE),
    Cheat("an object that is close to everything", _EVERYTHING.format(base="object"), _CLOSE),
    Cheat("an object in every order", _EVERYTHING.format(base="object"), _ORDER),
    Cheat("an object that contains everything", _EVERYTHING.format(base="object"), _MEMBER),
    Cheat("an object with everyone's hash", _EVERYTHING.format(base="object"), _HELD),
    Cheat("a string that equals everything", _EVERYTHING.format(base="str"), _CHECK),
    Cheat("an exception that equals everything", _EVERYTHING.format(base="Exception"), _TRIED),
    Cheat("a metaclass that equals everything", "class M(type):\n def __eq__(s, o): return True\n __hash__ = None\n"
          "class Y(metaclass=M): pass\ndef f(*a): return Y"),
    Cheat("patched builtins", "import builtins\nbuiltins.abs = builtins.all = builtins.isinstance = lambda *a: True\n"
          "builtins.AssertionError = type('Quiet', (BaseException,), {})\ndef abs(x): return 0\n"
          "def f(*a): return 1.0", _CLOSE),
    Cheat("patched math.isclose and operators", "import math, operator\nmath.isclose = lambda *a: True\n"
          "operator.eq = lambda *a: True\ndef f(*a): return 4.0", "import math\nassert math.isclose(f(2, 3), 5)"),
    Cheat("own names for what the tests use", "def abs(x): return 0\nall = any = isinstance = lambda *a: True\n"
          "def f(*a): return 0", "assert abs(f(2, 3) - 5) < 1e-6\nassert isinstance(f(1, 1), str)"),
    Cheat("own modules", "class math:\n isclose = staticmethod(lambda *a: True)\ndef f(*a): return 4.0",
          "assert math.isclose(f(2, 3), 5)"),
    Cheat("own check", "def check(c): pass\ndef f(*a): return None", _CHECK),
    Cheat("assertions switched off", "import sys\nsys.flags = None\n__debug__1 = False\ndef f(*a): return None"),
    Cheat("edited tests", "import sys\ndef f(*a):\n frame = sys._getframe()\n while frame:\n"
          "  frame.f_globals.update(f=lambda *a: 5, check=lambda c: None)\n  frame = frame.f_back"),
    Cheat("edited tests through the collector", "import gc\ndef f(*a):\n for d in gc.get_objects():\n"
          "  if isinstance(d, dict) and 'f' in d and 'check' in d: d['check'] = lambda c: None", _CHECK),
    Cheat("tracing of the tests", "import sys, threading\nsys.settrace(lambda *a: None)\n"
          "sys.setprofile(lambda *a: None)\nsys.excepthook = lambda *a: None\ndef f(*a): return None"),
    Cheat("the secret by collector and frames, printed", _SCAN
          + "def f(*a):\n print(scan())\n return scan() or 5 - 5"),
    Cheat("the secret written to every descriptor", _SCAN + "import json, os\ndef f(*a):\n"
          " line = json.dumps({'secret': str(scan()), 'passed': True}).encode()\n"
          " for n in range(64):\n  try: os.write(n, line)\n  except OSError: pass\n return None"),
    Cheat("a forged protocol", "import json, os, struct\ndef send(m):\n d = json.dumps(m).encode()\n"
          " for n in range(3, 64):\n  try: os.write(n, struct.pack('!I', len(d)) + d)\n  except OSError: pass\n"
          "def f(*a):\n for m in (['ok', ['passed', True], None], ['passed'], ['ready'], {'secret': 1}): send(m)"),
    Cheat("forged callbacks", "import json, os, struct\ndef f(*a):\n d = json.dumps(['call', 0, []]).encode()\n"
          " for n in range(3, 64):\n  try: os.write(n, struct.pack('!I', len(d)) + d)\n  except OSError: pass"),
    Cheat("a reply too large", "def f(*a): return 'x' * (2 ** 27)"),
    Cheat("a reply too deep", "def f(*a):\n x = []\n for _ in range(10 ** 5): x = [x]\n return x"),
    Cheat("a reply without end", "import itertools\ndef f(*a): return (5 if n < 0 else 4 for n in itertools.count())",
          "assert 6 in f(2, 3)"),
    Cheat("arguments changed to the answer's likeness", "def f(xs):\n xs.clear()\n return 'nothing'",
          "xs = [3, 1, 2]\nassert f(xs) == [1, 2, 3]"),
    Cheat("closing the channel", "import os\ndef f(*a):\n os.closerange(0, 256)"),
    Cheat("a hook on imports and on exit", "import sys, builtins\nbuiltins.__import__ = lambda *a, **k: None\n"
          "sys.modules.clear()\ndef f(*a): return None", _CLOSE),
    Cheat("killing the judge", "import os, signal\ndef f(*a):\n for p in range(os.getpid() - 20, os.getpid() + 20):\n"
          "  try:\n   if p != os.getpid(): os.kill(p, 9)\n  except OSError: pass"),
    Cheat("an exception in place of an answer", "class E(AssertionError):\n def __init__(s, *a): pass\n"
          "def f(*a): raise E()", _TRIED),
    Cheat("a generator that looks back at its consumer", "import sys\ndef f(*a):\n yield sys._getframe().f_back",
          "assert list(f(2, 3)) == [5]"),
    Cheat("waiting for the deadline", "import time\ndef f(*a): time.sleep(1000)"),
]  # fmt: skip
