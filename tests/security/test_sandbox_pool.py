"""The workers survive what happens to them, and do not survive the process that opened the sandbox."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from scgrpo.errors import ConfigError, SandboxError
from scgrpo.sandbox import Limits, Outcome, Program, Result, open_sandbox, worker
from scgrpo.sandbox.bubblewrap import open_wrapped
from scgrpo.sandbox.worker import Launch, Worker
from scgrpo.sandbox.zygote import Zygote

AMPLE = Limits(wall_s=60.0)
ALIVE = Program("print(6 * 7)")
SLEEP = Program("import time; print('on', flush=True); time.sleep(1000)")


@pytest.fixture
def one(zygote: Zygote) -> Iterator[Zygote]:
    """A sandbox with one worker, to be mistreated."""
    with Zygote(1) as sandbox:
        yield sandbox


def pid_of(sandbox: Zygote) -> int:
    process = sandbox._workers[0]._process
    assert process is not None
    return process.pid


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def descendants(pid: int) -> list[int]:
    own = [int(child) for child in children(pid)]
    return [*own, *(below for child in own for below in descendants(child))]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def in_background(work: Callable[[], Any]) -> tuple[Thread, list[Any]]:
    results: list[Any] = []
    thread = Thread(target=lambda: results.append(work()))
    thread.start()
    return thread, results


def test_a_crashing_run_leaves_the_worker(one: Zygote) -> None:
    before = pid_of(one)
    assert one.run(Program("import ctypes; ctypes.string_at(0)"), AMPLE).outcome is Outcome.KILLED
    assert one.run(ALIVE, AMPLE).stdout == "42\n"
    assert pid_of(one) == before


def test_a_worker_killed_while_idle_is_replaced(one: Zygote) -> None:
    os.kill(pid_of(one), signal.SIGKILL)
    assert eventually(lambda: gone(pid_of(one)))
    assert one.run(ALIVE, AMPLE).stdout == "42\n"


def test_a_worker_killed_in_a_run_makes_it_an_error(one: Zygote) -> None:
    before = pid_of(one)
    thread, results = in_background(lambda: one.run(SLEEP, AMPLE))
    assert eventually(lambda: bool(children(before)))
    run = int(children(before)[0])
    os.kill(before, signal.SIGKILL)
    thread.join(60)
    assert results[0].outcome is Outcome.ERROR
    assert results[0].exit_code is None
    assert eventually(lambda: gone(run))  # it does not outlive its worker
    assert one.run(ALIVE, AMPLE).stdout == "42\n"
    assert pid_of(one) != before


def test_a_worker_that_does_not_answer_is_replaced(one: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_GRACE_S", 0.5)
    os.kill(pid_of(one), signal.SIGSTOP)
    assert one.run(ALIVE, Limits(wall_s=0.5)).outcome is Outcome.ERROR
    assert one.run(ALIVE, AMPLE).stdout == "42\n"


def test_hundreds_of_runs_in_threads(zygote: Zygote) -> None:
    def run(number: int) -> tuple[Result, list[Any], bool | None]:
        source = f"def f(x):\n    return x + {number}"
        return (
            zygote.run(Program("print(input())", stdin=str(number)), AMPLE),
            zygote.call(source, "f", [[1]], AMPLE) if number % 5 == 0 else [],
            zygote.judge(source, f"assert f(1) == {number + 1}", AMPLE).passed if number % 5 == 1 else True,
        )

    with ThreadPoolExecutor(8) as threads:
        for number, (result, calls, passed) in enumerate(threads.map(run, range(200))):
            assert result.stdout == f"{number}\n", result
            assert [call.value for call in calls] == [number + 1][: len(calls)]
            assert passed is True


def test_nothing_is_left_open_and_no_process_either(one: Zygote) -> None:
    def everything() -> None:
        one.run(ALIVE, AMPLE)
        one.run(Program("print(open('a').read())", stdin="x" * 10**5, files={"a": "text"}), AMPLE)
        one.run(SLEEP, Limits(wall_s=0.1))
        one.run(Program("import os; os._exit(3)"), AMPLE)
        one.call("def f(x):\n    return x", "f", [[1], [2]], AMPLE)
        one.call("import time\ndef f(x):\n    time.sleep(x)", "f", [[1000]], Limits(wall_s=0.1))
        one.judge("def f(x):\n    return x", "assert f(1) == 1", AMPLE)
        one.judge("import os\ndef f(x):\n    os._exit(0)", "assert f(1) == 1", AMPLE)

    def state() -> tuple[int, int, list[str], list[Path]]:
        pid = pid_of(one)
        folders = list(Path(one._workers[0]._folder).iterdir())
        ours = len(os.listdir("/proc/self/fd"))
        return ours, len(os.listdir(f"/proc/{pid}/fd")), children(pid), folders

    everything()
    time.sleep(1.0)  # a worker answers first and closes its copies then
    before = state()
    for _ in range(5):
        everything()
    assert eventually(lambda: state() == before), (state(), before)
    assert before[2:] == ([], [])


def test_the_kernel_ends_runs_first_where_memory_runs_out(one: Zygote) -> None:
    pid = pid_of(one)
    thread, _ = in_background(lambda: one.run(SLEEP, Limits(wall_s=20.0)))
    assert eventually(lambda: bool(children(pid)))
    for process in (pid, *children(pid)):
        assert Path(f"/proc/{process}/oom_score_adj").read_text() == "1000\n"
    assert Path("/proc/self/oom_score_adj").read_text() != "1000\n"
    one.close()
    thread.join(60)


def test_closing_ends_the_processes_and_the_runs() -> None:
    sandbox = open_sandbox("zygote", num_workers=1)
    assert isinstance(sandbox, Zygote)
    pid = pid_of(sandbox)
    sleep = Program(SLEEP.source, files={"a": "text"})
    thread, results = in_background(lambda: sandbox.run(sleep, AMPLE))
    assert eventually(lambda: bool(children(pid)))
    run = int(children(pid)[0])
    folder = Path(sandbox._workers[0]._folder)
    sandbox.close()
    sandbox.close()
    thread.join(60)
    assert not folder.exists()
    assert (results[0].outcome, results[0].detail) == (Outcome.ERROR, "the sandbox was closed")
    assert eventually(lambda: gone(pid) and gone(run))
    with pytest.raises(SandboxError, match="closed"):
        sandbox.run(ALIVE)
    with pytest.raises(SandboxError, match="closed"):
        sandbox.run_many([(ALIVE, AMPLE)])


@pytest.mark.parametrize("end", ["close", "interrupt"])
def test_runs_inside_bubblewrap_end_too(end: str) -> None:
    try:
        sandbox = open_wrapped(1)
    except SandboxError as error:
        pytest.skip(f"bubblewrap cannot be used here: {error.problem}")
    with sandbox:
        thread, results = in_background(lambda: sandbox.run(SLEEP, Limits(wall_s=900.0)))
        assert eventually(lambda: len(descendants(pid_of(sandbox))) == 2)  # the worker and the run
        pids = [pid_of(sandbox), *descendants(pid_of(sandbox))]
        sandbox.close() if end == "close" else sandbox._workers[0].interrupt()
        thread.join(60)
        assert not thread.is_alive()
        assert results[0].outcome is Outcome.ERROR
        assert eventually(lambda: all(map(gone, pids)))


def test_a_replacement_with_less_isolation_is_refused(zygote: Zygote) -> None:
    found = Worker(Launch(missing=("landlock",)))
    found.isolation = zygote.level
    with pytest.raises(SandboxError, match="not safe"):
        found.start()


def test_no_isolation_is_refused_unless_asked_for(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    none = ("landlock", "seccomp")
    with pytest.raises(SandboxError, match="not safe") as refusal:
        Zygote(1, Launch(missing=none))
    assert "allow_insecure" in refusal.value.remedy
    monkeypatch.setattr("scgrpo.sandbox.opening.Launch", lambda insecure: Launch(insecure=insecure, missing=none))
    with open_sandbox("zygote", num_workers=1, allow_insecure=True) as sandbox:
        assert sandbox.level == "none"
        assert sandbox.run(ALIVE, AMPLE).stdout == "42\n"
    assert "WITHOUT" in caplog.text


def test_a_machine_without_room_for_threads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("concurrent.futures.thread.threading.Thread.start", full)
    with pytest.raises(SandboxError, match="can't start new thread"):
        Zygote(1)


@pytest.mark.parametrize(
    "options",
    [{"backend": "docker"}, {"num_workers": 0}, {"backend": "remote"}, {"url": "http://localhost/run_code"}],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        open_sandbox(**options)


# What follows happens to a whole process, so it happens to one of its own.

OPEN = """
    import os, signal, sys, threading, time
    from scgrpo.errors import SandboxError
    from scgrpo.sandbox import Limits, Program
    from scgrpo.sandbox.zygote import Zygote
    sandbox = Zygote(1)
    ample = Limits(wall_s=60.0)
    alive = lambda: sandbox.run(Program("print(6 * 7)"), ample).stdout == "42\\n"
    def worker(): return sandbox._workers[0]._process.pid
    def start_a_run():
        sleep = Program("import time; time.sleep(1000)")
        threading.Thread(target=lambda: sandbox.run(sleep, ample), daemon=True).start()
        while not open(f"/proc/{worker()}/task/{worker()}/children").read(): time.sleep(0.02)
        return int(open(f"/proc/{worker()}/task/{worker()}/children").read())
"""


def script(body: str) -> subprocess.Popen[str]:
    source = textwrap.dedent(OPEN) + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True
    )


def test_workers_and_runs_end_with_a_killed_process(zygote: Zygote) -> None:
    process = script("""
        print(worker(), start_a_run(), flush=True)
        time.sleep(1000)
    """)
    with process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        process.kill()
    assert eventually(lambda: all(gone(pid) for pid in pids))


def test_a_fork_of_the_process_neither_uses_nor_keeps_nor_ends_the_workers(zygote: Zygote) -> None:
    process = script("""
        child = os.fork()
        if child == 0:
            try: sandbox.run(Program("print(1)"))
            except SandboxError: print("refused", flush=True)
            sandbox.close()
            time.sleep(1000)
        print(worker(), child, alive(), flush=True)
        time.sleep(1000)
    """)
    with process:
        assert process.stdout is not None
        lines = sorted(process.stdout.readline().strip() for _ in range(2))
        pid, child, alive = lines[0].split()
        assert (alive, lines[1]) == ("True", "refused")
        process.kill()
        assert eventually(lambda: gone(int(pid)))  # though the fork still holds the socket
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)


def test_calls_end_though_a_fork_holds_their_pipe(zygote: Zygote) -> None:
    process = script("""
        def fork_meanwhile():
            time.sleep(0.5)
            if os.fork() == 0:
                time.sleep(30)
                os._exit(0)
        threading.Thread(target=fork_meanwhile).start()
        values = sandbox.call("import time\\ndef f(x):\\n    time.sleep(2)\\n    return x", "f", [[1]], ample)
        print(values[0].value, flush=True)
        os.killpg(0, signal.SIGKILL)
    """)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"


def test_ctrl_c_ends_a_run_and_not_the_sandbox(zygote: Zygote) -> None:
    process = script("""
        before = worker()
        def interrupt():
            while not open(f"/proc/{before}/task/{before}/children").read(): time.sleep(0.02)
            os.killpg(0, signal.SIGINT)
        threading.Thread(target=interrupt).start()
        try: sandbox.run(Program("import time; time.sleep(1000)"), ample)
        except KeyboardInterrupt: print("interrupted", alive(), flush=True)
    """)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "interrupted True\n"
    assert process.returncode == 0


def test_ctrl_c_ends_many_runs_and_not_the_sandbox(zygote: Zygote) -> None:
    process = script("""
        before = worker()
        def interrupt():
            while not open(f"/proc/{before}/task/{before}/children").read(): time.sleep(0.02)
            os.killpg(0, signal.SIGINT)
        threading.Thread(target=interrupt).start()
        sleep = Program("import time; time.sleep(1000)"), Limits(wall_s=900.0)
        try: sandbox.run_many([sleep] * 3)
        except KeyboardInterrupt: print("interrupted", alive(), flush=True)
    """)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "interrupted True\n"
    assert process.returncode == 0
