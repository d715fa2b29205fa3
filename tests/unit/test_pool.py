"""The verifier pool: whatever an item does, it ends in a verdict, in bounded time, and the pool works on."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scgrpo.errors import ConfigError, VerifierError
from scgrpo.tasks import Status
from scgrpo.tasks.pool import VerifierPool

VERIFIER = """
import os, re, signal, subprocess, sys, threading, time

def act(do, value=None):
    if do == "score": return value
    if do == "raise": raise KeyError("no such thing")
    if do == "odd_error":
        class Odd(Exception):
            def __str__(self): raise RuntimeError
        raise Odd
    if do == "none": return None
    if do == "nan": return float("nan")
    if do == "text": return "many"
    if do == "give_up": raise TimeoutError("own limit")
    if do == "loop":
        while True: pass
    if do == "hold_the_lock": return re.fullmatch("(a+)+", "a" * 100 + "b") is None
    if do == "sleep": time.sleep(value); return 1
    if do == "exit": sys.exit(3)
    if do == "hard_exit": os._exit(4)
    if do == "segfault": os.kill(os.getpid(), signal.SIGSEGV)
    if do == "memory": return len(bytearray(3 * 2**30))
    if do == "print": print("noise", flush=True); os.write(1, b"{}\\n"); return 1
    if do == "input": return float(sys.stdin.read() == "")
    if do == "modules": return float("torch" in sys.modules or "numpy" in sys.modules)
    if do == "alarm":
        signal.signal(signal.SIGALRM, lambda *a: 1 / 0)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        time.sleep(30)
    if do == "main_thread": return threading.current_thread() is threading.main_thread()
    if do == "pid": return os.getpid()
    if do == "child":
        child = subprocess.Popen(["sleep", "600"])
        open(value, "w").write(str(child.pid))
        time.sleep(600)
    if do == "runaway_child":
        if os.fork() == 0:
            os.setsid()
            time.sleep(4)
            os._exit(0)
        time.sleep(600)
"""


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "pool_test_verifier.py").write_text(VERIFIER)
    (folder / "broken_verifier.py").write_text("import does_not_exist\ndef act(): pass\n")
    return folder


def new_pool(folder: Path) -> VerifierPool:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        return VerifierPool("pool_test_verifier:act", num_workers=2, timeout_s=1.5)


@pytest.fixture(scope="module")
def pool(module_folder: Path) -> Iterator[VerifierPool]:
    with new_pool(module_folder) as pool:
        yield pool


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def test_scores_come_back_in_order(pool: VerifierPool) -> None:
    items = [{"do": "score", "value": n / 8} for n in range(100)]
    assert [v.score for v in pool.grade(items)] == [n / 8 for n in range(100)]
    assert pool.grade([]) == []
    assert pool.grade([{"do": "score", "value": True}])[0].score == 1.0


@pytest.mark.parametrize(
    ("item", "status", "detail"),
    [
        ({"do": "raise"}, Status.ERROR, "KeyError: 'no such thing'"),
        ({"do": "odd_error"}, Status.ERROR, "Odd: (no text)"),
        ({"do": "none"}, Status.ERROR, "returned None, not a finite score"),
        ({"do": "nan"}, Status.ERROR, "returned nan, not a finite score"),
        ({"do": "text"}, Status.ERROR, "could not convert string to float"),
        ({"unknown": 1}, Status.ERROR, "unexpected keyword argument 'unknown'"),
        ({"do": {1, 2}}, Status.ERROR, "not JSON"),
        ({"do": "give_up"}, Status.TIMEOUT, "own limit"),
        ({"do": "loop"}, Status.TIMEOUT, "no verdict within 1.5 s"),
        ({"do": "sleep", "value": 600}, Status.TIMEOUT, "no verdict within 1.5 s"),
        ({"do": "exit"}, Status.ERROR, "SystemExit: 3"),
        ({"do": "hard_exit"}, Status.ERROR, "exit code 4"),
        ({"do": "segfault"}, Status.ERROR, "SIGSEGV"),
        ({"do": "memory"}, Status.ERROR, "MemoryError"),
        ({"do": "alarm"}, Status.ERROR, "ZeroDivisionError"),
        ({"do": "runaway_child"}, Status.TIMEOUT, "no verdict within 1.5 s"),
    ],
)
def test_a_bad_item_is_a_verdict_and_its_neighbours_are_graded(
    pool: VerifierPool, item: dict, status: Status, detail: str
) -> None:
    good = {"do": "score", "value": 0.5}
    start = time.monotonic()
    first, bad, last = pool.grade([good, item, good])
    assert time.monotonic() - start < 6
    assert (bad.status, math.isnan(bad.score)) == (status, True)
    assert detail in bad.detail
    assert (first.score, last.score) == (0.5, 0.5)
    assert [v.score for v in pool.grade([good] * 4)] == [0.5] * 4


def test_the_worker_is_clean(pool: VerifierPool) -> None:
    names = ["print", "main_thread", "input", "modules"]
    assert [v.score for v in pool.grade([{"do": name} for name in names])] == [1.0, 1.0, 1.0, 0.0]


def test_a_worker_that_dies_idle_costs_no_item(pool: VerifierPool) -> None:
    for worker in pool._workers:
        assert worker.process is not None
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
    assert [v.score for v in pool.grade([{"do": "score", "value": 1}] * 3)] == [1.0, 1.0, 1.0]


def test_a_late_worker_takes_its_children_along(pool: VerifierPool, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    assert pool.grade([{"do": "child", "value": str(pid_file)}])[0].status is Status.TIMEOUT
    assert wait_for(lambda: not alive(int(pid_file.read_text())))


def test_items_run_in_parallel_and_from_several_threads(pool: VerifierPool) -> None:
    start = time.monotonic()
    pool.grade([{"do": "sleep", "value": 0.5}] * 4)
    assert 0.9 < time.monotonic() - start < 1.9
    results: dict[int, list[float]] = {}

    def call(n: int) -> None:
        results[n] = [v.score for v in pool.grade([{"do": "score", "value": n}] * 50)]

    threads = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [float(n)] * 50 for n in range(4)}


def test_closing_ends_the_workers_and_what_they_grade(module_folder: Path) -> None:
    pool = new_pool(module_folder)
    pids = [worker.process.pid for worker in pool._workers if worker.process]
    verdicts: list = []
    thread = threading.Thread(target=lambda: verdicts.extend(pool.grade([{"do": "sleep", "value": 600}] * 5)))
    thread.start()
    time.sleep(0.2)
    pool.close()
    pool.close()
    thread.join(timeout=5)
    assert [(v.status, v.detail) for v in verdicts] == [(Status.ERROR, "the verifier pool was closed")] * 5
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(VerifierError, match="closed"):
        pool.grade([{"do": "score", "value": 1}])


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("broken_verifier:act", "No module named 'does_not_exist'"),
        ("pool_test_verifier:nothing", "has no attribute 'nothing'"),
        ("pool_test_verifier:os", "not callable"),
    ],
)
def test_what_cannot_be_imported_is_an_error_at_the_start(
    function: str, reason: str, module_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(module_folder))
    with pytest.raises(VerifierError, match=reason):
        VerifierPool(function, num_workers=1)


@pytest.mark.parametrize(
    "settings",
    [{"num_workers": 0}, {"timeout_s": 0}, {"memory_mb": -1}, {"function": "no_colon"}, {"function": "a:"}],
)
def test_impossible_settings(settings: dict) -> None:
    with pytest.raises(ConfigError):
        VerifierPool(**({"function": "math:sqrt"} | settings))


SCRIPT = """
import os, sys, threading, time
from scgrpo.tasks.pool import VerifierPool
pool = VerifierPool("pool_test_verifier:act", num_workers=1, timeout_s=20)
print(int(pool.grade([{"do": "pid"}])[0].score), flush=True)
"""


def run_script(body: str, folder: Path, **settings: object) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT + textwrap.dedent(body)], env=env, stdout=subprocess.PIPE, text=True, **settings
    )


def test_a_program_that_forgets_to_close_ends_and_leaves_nothing(module_folder: Path) -> None:
    script = run_script("", module_folder)
    out, _ = script.communicate(timeout=20)
    assert script.returncode == 0
    assert wait_for(lambda: not alive(int(out)))


def test_a_program_without_stdin(module_folder: Path) -> None:
    script = run_script("", module_folder, preexec_fn=lambda: os.close(0))
    out, _ = script.communicate(timeout=20)
    assert script.returncode == 0
    assert int(out) > 0


def test_a_killed_program_leaves_no_idle_worker(module_folder: Path) -> None:
    script = run_script("time.sleep(60)", module_folder)
    assert script.stdout is not None
    pid = int(script.stdout.readline())
    assert alive(pid)
    script.kill()
    script.wait()
    script.stdout.close()
    assert wait_for(lambda: not alive(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a limit of processor time has to do")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("do", ["sleep", "hold_the_lock", "child"])
def test_a_killed_program_leaves_no_busy_worker(module_folder: Path, tmp_path: Path, do: str, how: int) -> None:
    child = tmp_path / "child"
    value = {"sleep": 600, "child": str(child)}.get(do)
    script = run_script(f"pool.grade([{{'do': {do!r}, 'value': {value!r}}}])", module_folder)
    assert script.stdout is not None
    worker = int(script.stdout.readline())
    assert wait_for(lambda: do != "child" or (child.exists() and child.read_text() != ""), 20)
    time.sleep(0.5)
    assert alive(worker)
    script.send_signal(how)
    script.wait()
    script.stdout.close()
    assert wait_for(lambda: not alive(worker))
    if do == "child":
        assert wait_for(lambda: not alive(int(child.read_text())))


def test_an_interrupt_is_not_waited_out_and_leaves_a_pool_that_works(module_folder: Path) -> None:
    script = run_script(
        """
        import signal
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        start = time.monotonic()
        try:
            pool.grade([{"do": "sleep", "value": 600}] * 50)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        second = int(pool.grade([{"do": "pid"}])[0].score)
        print(time.monotonic() - start < 15, second, flush=True)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        pool.grade([{"do": "sleep", "value": 600}] * 50)
        """,
        module_folder,
    )
    out, _ = script.communicate(timeout=60)
    first, interrupted, in_time, second = out.split()  # waiting for the first item would take 20 s
    assert (interrupted, in_time) == ("interrupted", "True")
    assert script.returncode not in (0, None)
    assert wait_for(lambda: not alive(int(first)) and not alive(int(second)))


def test_a_forked_copy_is_told_and_harms_nothing(module_folder: Path) -> None:
    script = run_script(
        """
        before = pool.grade([{"do": "pid"}])[0].score
        if os.fork() == 0:
            try:
                pool.grade([{"do": "pid"}])
            except Exception as error:
                print(type(error).__name__, flush=True)
            pool.close()
            os._exit(0)
        os.wait()
        print(pool.grade([{"do": "pid"}])[0].score == before)
        """,
        module_folder,
    )
    out, _ = script.communicate(timeout=20)
    assert out.split()[1:] == ["VerifierError", "True"]
