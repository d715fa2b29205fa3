"""What programs, calls and judgements give, apart from attacks."""

from __future__ import annotations

import os
import resource
from typing import Any

import pytest

from scgrpo.errors import ConfigError
from scgrpo.sandbox import Limits, Outcome, Program
from scgrpo.sandbox.zygote import Zygote

AMPLE = Limits(wall_s=60.0)


@pytest.mark.parametrize(
    ("source", "stdout"),
    [
        ("print(input(), input())", "3 ä\n"),
        ("import sys; print(len(sys.stdin.read()))", "4\n"),
        ("import os; print(os.read(0, 100).decode())", "3\nä\n\n"),
        ("if __name__ == '__main__': print(__name__)", "__main__\n"),
        ("import sys; sys.stdout.write('no newline')", "no newline"),
        (
            "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.2), print('late'))).start()",
            "late\n",
        ),
        ("import atexit; atexit.register(print, 'bye')", "bye\n"),
        ("import sys; print(sys.argv)", "['main.py', 'a', 'b']\n"),
        ("print('before'); exit()", "before\n"),
        ("import sqlite3, xml.dom.minidom, zoneinfo, csv; print(zoneinfo.ZoneInfo('UTC'))", "UTC\n"),
        ("import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__name__)", "A\n"),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int = 1\nprint(P())", "P(x=1)\n"),
        ("import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return n and f(n - 1)\nprint(f(50000))", "0\n"),
        (
            "import threading\nthreading.stack_size(2**26)\nt = threading.Thread(target=print, args=(1,))\nt.start()",
            "1\n",
        ),
        ("import os; print(open(os.devnull).read(), open(os.devnull, 'w').write('x'), len(os.urandom(4)))", " 1 4\n"),
        ("def f(x: int): pass\nprint(f.__annotations__['x'] is int, __file__)", "True main.py\n"),
        ("import sys; print('last'); sys.stdout.close()", "last\n"),
        # What is written at the very end, where files go that nobody has closed.
        ("out = open(1, 'w')\nout.write('held')", "held"),
        ("import os\nclass IO: out = os.fdopen(os.dup(1), 'w')\nIO.out.write('held')", "held"),
        ("import functools\nprint = functools.partial(print, file=open(1, 'w', closefd=False))\nprint(1)", "1\n"),
        (
            "import io, sys\nsys.stdout = io.StringIO()\nprint(1)\nsys.__stdout__.write(sys.stdout.getvalue())",
            "1\n",
        ),
        ("import os, sys\nprint(1)\nsys.stdout = open(os.devnull, 'w')\nprint(2)", "1\n"),
        (
            "import os, sys\nclass Own:\n    text = ''\n    def write(self, text): self.text += text\n"
            "    def flush(self): os.write(1, self.text.encode())\nsys.stdout = Own()\nprint(1)",
            "1\n",
        ),
        ("class A:\n    def __del__(self): print('gone')\na = A()\na.itself = a", "gone\n"),
    ],
)
def test_programs(zygote: Zygote, source: str, stdout: str) -> None:
    result = zygote.run(Program(source, stdin="3\nä\n", arguments=("a", "b")), AMPLE)
    assert (result.outcome, result.stdout, result.exit_code) == (Outcome.OK, stdout, 0), result


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_STACK)[1] != resource.RLIM_INFINITY, reason="the stack is limited here"
)
def test_the_stack_may_grow_within_the_memory(zygote: Zygote) -> None:
    """Programs that recurse ask for this."""
    source = "import resource\nresource.setrlimit(resource.RLIMIT_STACK, (-1, -1))\nprint('done')"
    assert zygote.run(Program(source), AMPLE).stdout == "done\n"


@pytest.mark.parametrize(
    ("source", "code", "stderr"),
    [
        ("import sys; print('x'); sys.exit(3)", 3, ""),
        ("import sys; sys.exit('said')", 1, "said\n"),
        ("x = 1\n1 / 0", 1, 'Traceback (most recent call last):\n  File "main.py", line 2, in <module>\n    1 / 0\n'),
        ("x = (", 1, "SyntaxError"),
        ("\ud800", 1, "Unicode"),
        ("import os; os._exit(200)", 200, ""),
        ("open('made', 'w')", 1, "Permission"),
        ("raise SystemExit", 0, ""),
    ],
)
def test_ways_to_end(zygote: Zygote, source: str, code: int, stderr: str) -> None:
    result = zygote.run(Program(source), AMPLE)
    assert (result.exit_code, result.outcome) == (code, Outcome.EXIT if code else Outcome.OK)
    assert stderr in result.stderr


def test_files_can_be_read_and_imported(zygote: Zygote) -> None:
    files = {"input.txt": "a\r\nü", "helper.py": "VALUE = 5", "..x": ""}
    source = (
        "import helper, os\nprint(helper.VALUE, repr(open('input.txt', newline='').read()), sorted(os.listdir()))"
    )
    result = zygote.run(Program(source, files=files), AMPLE)
    assert result.stdout == "5 'a\\r\\nü' ['..x', 'helper.py', 'input.txt']\n"
    assert zygote.run(Program("import os; print(os.path.exists('input.txt'))"), AMPLE).stdout == "False\n"


def test_files_can_be_read_whatever_the_umask(zygote: Zygote) -> None:
    before = os.umask(0o077)
    try:
        with Zygote(1) as sandbox:
            result = sandbox.run(Program("print(open('a').read())", files={"a": "text"}), AMPLE)
    finally:
        os.umask(before)
    assert (result.outcome, result.stdout) == (Outcome.OK, "text\n"), result


def test_a_program_with_files_has_no_other_descriptors(zygote: Zygote) -> None:
    source = """
import os, stat
for number in range(3, 256):
    try:
        mode = os.fstat(number).st_mode
    except OSError:
        continue
    if not stat.S_ISDIR(mode):
        print(number, oct(mode))
"""
    assert zygote.run(Program(source, files={"a": "b"}), AMPLE).stdout == ""


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "a\0b"])
def test_files_are_plain_names(name: str) -> None:
    with pytest.raises(ConfigError):
        Program("", files={name: ""})


@pytest.mark.parametrize("limits", [{"wall_s": 0}, {"wall_s": float("inf")}, {"cpu_s": -1}, {"memory_mb": 0}])
def test_limits_are_above_zero(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Limits(**limits)


def test_large_inputs_and_outputs(zygote: Zygote) -> None:
    large = "7" * 5_000_000
    result = zygote.run(Program("print(input())", stdin=large), Limits(wall_s=60.0, output_bytes=6_000_000))
    assert result.stdout == large + "\n"
    source = "x = 1\n" + "# " + "c" * 5_000_000 + "\nprint(x)"
    assert zygote.run(Program(source), AMPLE).stdout == "1\n"


def test_output_is_cut_where_it_says(zygote: Zygote) -> None:
    exact = zygote.run(Program("print(end='x' * 100)"), Limits(wall_s=60.0, output_bytes=100))
    assert (exact.outcome, exact.stdout) == (Outcome.OK, "x" * 100)
    # The kernel stops it at 10,001 bytes, so the rest is never written anywhere.
    over = zygote.run(Program("import sys; sys.stderr.write('x' * 20000)"), Limits(wall_s=60.0, output_bytes=10_000))
    assert (over.outcome, len(over.stderr)) == (Outcome.OUTPUT, 10_000)


def test_runs_repeat_and_do_not_see_each_other(zygote: Zygote) -> None:
    source = "import random, builtins\nprint(random.random(), {'a', 'b', 'c', 'd'}, hasattr(builtins, 'left'))"
    first = zygote.run(Program(source), AMPLE)
    for _ in range(4):
        zygote.run(Program("import builtins, sys; builtins.left = 1; sys.modules['random'] = None"), AMPLE)
        assert zygote.run(Program(source), AMPLE).stdout == first.stdout
    assert first.stdout.endswith("False\n")


def test_many_programs_keep_their_order(zygote: Zygote) -> None:
    programs = [(Program("import time; time.sleep(0.3); print(0)"), AMPLE)]
    programs += [(Program(f"print({number})"), AMPLE) for number in range(1, 12)]
    assert [result.stdout for result in zygote.run_many(programs)] == [f"{number}\n" for number in range(12)]


def test_calls(zygote: Zygote) -> None:
    source = "class Solution:\n    seen = 0\n    def f(self, a, b):\n        self.seen += 1\n"
    source += "        return a, [b], self.seen"
    values = [item.value for item in zygote.call(source, "f", [[1, "x"], [None, {"k": 2.5}]], AMPLE)]
    assert values == [[1, ["x"], 1], [None, [{"k": 2.5}], 2]]
    assert zygote.call("def f():\n    print('noise')\n    return True", "f", [[]], AMPLE)[0].value is True
    assert zygote.call("def f(): pass", "f", [], AMPLE) == []


@pytest.mark.parametrize(
    ("source", "outcomes", "detail"),
    [
        ("def f(x): return 1 // x", "ok exit", "ZeroDivisionError"),
        ("def f(x): return 1 if x else {2}", "ok exit", "not JSON serializable"),
        ("import sys\ndef f(x): return 1 if x else sys.exit(0)", "ok exit", "SystemExit"),
        ("import os\ndef f(x): return 1 if x else os._exit(0)", "ok exit", "before all calls"),
        ("import ctypes\ndef f(x): return 1 if x else ctypes.string_at(0)", "ok killed", "SIGSEGV"),
        ("import time\ndef f(x): return 1 if x else time.sleep(99)", "ok timeout", "no value within"),
        ("def f(x): return 1 if x else 'x' * 10 ** 7", "ok output", "too much"),
        ("def g(x): return 1", "exit", "neither Solution.f nor f"),
        ("x = (", "exit", "SyntaxError"),
        (
            "import os\nfor n in range(3, 64):\n    try: os.write(n, b'[junk\\n')\n    except OSError: pass",
            "exit",
            "JSON",
        ),
    ],
)
def test_calls_stop_at_the_first_that_fails(zygote: Zygote, source: str, outcomes: str, detail: str) -> None:
    wall_s = 2.0 if "timeout" in outcomes else 60.0
    found = zygote.call(source, "f", [[1], [0], [1]], Limits(wall_s=wall_s))
    assert " ".join(item.outcome for item in found) == outcomes, found
    assert detail in found[-1].detail


BUSY = """
import signal, time
signal.signal(signal.SIGXCPU, signal.SIG_IGN)
def f(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
    return seconds
"""


def test_cpu_time_is_the_same_for_all(zygote: Zygote) -> None:
    """The kernel gives whole seconds, and one more to who ignores its signal."""
    limits = Limits(wall_s=60.0, cpu_s=0.5)
    found = zygote.call(BUSY, "f", [[0.01], [1.1]], limits)
    assert [(item.outcome, item.value) for item in found] == [(Outcome.OK, 0.01), (Outcome.TIMEOUT, None)]
    assert "CPU" in found[-1].detail
    judged = zygote.judge(BUSY, "assert f(1.1) == 1.1", limits)
    assert (judged.passed, judged.outcome) == (False, Outcome.TIMEOUT)
    assert zygote.run(Program(BUSY + "f(1.1)"), limits).outcome is Outcome.TIMEOUT
    assert zygote.judge(BUSY, "assert f(0.01) == 0.01", limits).passed


def test_calls_have_a_total_time(zygote: Zygote) -> None:
    source = "import time\ndef f(x):\n    time.sleep(0.4)\n    return x"
    found = zygote.call(source, "f", [[n] for n in range(50)], AMPLE, total_wall_s=2.0)
    assert 0 < len(found) < 10
    assert found[-1].outcome is Outcome.TIMEOUT
