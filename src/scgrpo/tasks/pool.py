"""Verifiers behind processes that can be killed.

A verifier that hangs, eats memory or crashes the interpreter cannot be stopped from inside its own process, and
timeouts built on SIGALRM work in a main thread only. So a `VerifierPool` keeps a few clean worker processes, hands
each one item at a time, and kills and replaces a worker that is late. Every item ends in a `Verdict`:

    the function returned a finite number      graded
    it raised, returned anything else, died    error
    it raised TimeoutError, or the deadline    timeout
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from scgrpo.errors import ConfigError, VerifierError
from scgrpo.tasks.base import Verdict

_START_TIMEOUT_S = 120.0
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # unless the environment says otherwise
# sys.path is handed over so that a function beside the user's script is found; `-c` puts no folder of ours on it.
_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from scgrpo.tasks._worker import main; main(*json.loads(sys.argv[2]))"
)


def check_limits(num_workers: int, timeout_s: float, memory_mb: int | None) -> None:
    """For those who make their pool later. Raises ConfigError: a setting out of range."""
    if num_workers < 1 or timeout_s <= 0 or (memory_mb is not None and memory_mb <= 0):
        raise ConfigError(
            f"A pool with num_workers={num_workers}, timeout_s={timeout_s}, memory_mb={memory_mb} cannot work.",
            "num_workers must be at least 1; timeout_s and memory_mb above 0 (memory_mb=None sets no limit).",
        )


class VerifierPool:
    """Runs a slow or unsafe verifier in worker processes with a hard deadline per item.

    Args:
        function: import path `package.module:callable`. It is called with each item's keys as keyword arguments (JSON
            values), in a worker's main thread, and returns a score. Raising TimeoutError means "ran out of time", any
            other exception "could not grade".
        num_workers: processes, started at once and kept. Items are graded in parallel, one per worker.
        timeout_s: wall-clock deadline per item. A late worker is killed, with what it has started, and replaced.
        memory_mb: address space limit of each worker (RLIMIT_AS, where the system has it); None for no limit.

    The workers are new interpreters: they inherit no threads, no CUDA context and none of this process's memory, and
    they import only what the module of `function` imports. They isolate faults, not attackers: this is not a sandbox.
    `grade` may be called from several threads at once. The pool closes with `close()`, at the end of a `with` block,
    or at exit.

    Raises:
        ConfigError: a setting out of range, or `function` not of the form `module:callable`.
        VerifierError: the function cannot be imported in a worker.
    """

    def __init__(
        self, function: str, *, num_workers: int = 2, timeout_s: float = 10.0, memory_mb: int | None = 2048
    ) -> None:
        check_limits(num_workers, timeout_s, memory_mb)
        module, colon, name = function.partition(":")
        if not (module and colon and name):
            raise ConfigError(f"{function!r} does not name a function.", "Write it as `package.module:callable`.")
        self.function = function
        self.timeout_s = timeout_s
        self._workers = [_Worker(function, timeout_s, memory_mb) for _ in range(num_workers)]
        self._owner = os.getpid()
        self._closer = weakref.finalize(self, _close_all, self._workers, self._owner)
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="scgrpo-verifier")
        try:
            for worker in self._workers:
                worker.start()
            for worker in self._workers:
                worker.wait_until_ready()
                self._idle.put(worker)
        except BaseException:
            self.close()
            raise

    def grade(self, items: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """One verdict per item, in order. No item raises, whatever it does to its worker.

        An interrupt (Ctrl-C) drops the items that are waiting and kills the workers, so that nothing is waited for;
        the pool can be used again, and starts new ones.

        Raises:
            VerifierError: the pool is closed, or was made by another process and came here by a fork.
        """
        if not self._closer.alive or os.getpid() != self._owner:
            raise VerifierError("This VerifierPool is closed or belongs to another process.", "Make a new one.")
        try:
            return list(self._threads.map(self._grade_one, items))
        except BaseException:
            for worker in self._workers:
                worker.interrupt()
            raise

    def _grade_one(self, item: Mapping[str, Any]) -> Verdict:
        try:
            request = json.dumps(dict(item))
        except (TypeError, ValueError, RecursionError) as error:
            return Verdict.error(f"the item is not JSON: {error}")
        worker = self._idle.get()
        try:
            return worker.grade(request)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Kill the workers; items still being graded end as errors. Calling it twice is harmless."""
        if os.getpid() != self._owner:  # a forked copy: the workers are not its own
            return
        self._closer()
        with contextlib.suppress(queue.Empty):
            for _ in self._workers:  # a worker that is not idle is cleaned up by the thread that waits for it
                worker = self._idle.get_nowait()
                worker.kill()
                self._idle.put(worker)
        self._threads.shutdown(wait=False)

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Worker:
    """One process and the pipe to it. Used by one thread at a time; `interrupt` and `stop` may come from another."""

    def __init__(self, function: str, timeout_s: float, memory_mb: int | None) -> None:
        self.function, self.timeout_s = function, timeout_s
        # Fixed now: a replacement must find the function where the first process found it.
        search_path = [entry or os.getcwd() for entry in sys.path]
        self.arguments = [json.dumps(search_path), json.dumps([function, timeout_s, memory_mb])]
        self.process: subprocess.Popen[str] | None = None
        self.stopped = False

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env=_ONE_THREAD | os.environ,
            process_group=0,  # Ctrl-C is the parent's to handle, and a kill reaches what the function has started
        )
        if self.stopped:  # in the meantime, by another thread
            self.kill()
            raise VerifierError("The VerifierPool was closed.", "Make a new one.")

    def wait_until_ready(self) -> None:
        reply, expired = self._exchange("", _START_TIMEOUT_S)
        if reply is None or not reply["ready"]:
            detail = reply["detail"] if reply else "it took too long" if expired else self._epitaph()
            self.kill()
            raise VerifierError(
                f"A verifier process for {self.function!r} could not start: {detail}",
                "Check that the module can be imported by a fresh Python in this environment.",
            )

    def grade(self, request: str) -> Verdict:
        if self.stopped:
            return Verdict.error("the verifier pool was closed")
        try:
            if self.process is None or self.process.poll() is not None:  # killed for an item, or died while idle
                self.kill()
                self.start()
                self.wait_until_ready()
        except (VerifierError, OSError) as error:
            self.kill()
            return Verdict.error(f"the verifier process could not be replaced: {error}")
        reply, expired = self._exchange(request + "\n", self.timeout_s)
        verdict = self._verdict(reply, expired)
        if expired or reply is None:
            self.kill()
        return verdict

    def _verdict(self, reply: dict[str, Any] | None, expired: bool) -> Verdict:
        if reply is None:
            if expired:
                return Verdict.timeout(f"no verdict within {self.timeout_s:g} s")
            return Verdict.error("the verifier pool was closed" if self.stopped else self._epitaph())
        if reply["status"] == "graded":
            return Verdict(reply["score"])
        return (Verdict.timeout if reply["status"] == "timeout" else Verdict.error)(reply["detail"])

    def _exchange(self, request: str, timeout_s: float) -> tuple[dict[str, Any] | None, bool]:
        """Send, wait for one line. A timer kills the process when time is up, which ends both waits."""
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            _kill_group(process)

        timer = threading.Timer(timeout_s, expire)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            line = process.stdout.readline()
            reply = json.loads(line) if line.endswith("\n") else None
        except (OSError, ValueError):  # it died while being written to, or its pipe was closed
            reply = None
        finally:
            timer.cancel()
            timer.join()  # after this, `expired` cannot change
        return reply, expired.is_set()

    def _epitaph(self) -> str:
        assert self.process is not None
        _kill_group(self.process)  # a process that has ended by itself keeps its own exit code
        code = self.process.wait()
        if code >= 0:
            return f"the verifier process ended with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"the verifier process was killed by {name}"

    def kill(self) -> None:
        """End the process and its children; the next item starts a new one."""
        process, self.process = self.process, None
        if process is None:
            return
        _kill_group(process)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was buffered for a dead process cannot be flushed
                    pipe.close()

    def interrupt(self) -> None:
        """End the process: a thread that waits for its answer sees the pipe end, and the next item starts another."""
        process = self.process
        if process is not None:
            _kill_group(process)

    def stop(self) -> None:
        """End the process for good. A thread that waits for its answer sees the pipe end."""
        self.stopped = True
        process = self.process
        if process is not None:
            _kill_group(process)
            process.wait()


def _kill_group(process: subprocess.Popen[str]) -> None:
    if process.returncode is not None:  # it was waited for: its id may belong to someone else by now
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _close_all(workers: Sequence[_Worker], owner: int) -> None:
    if os.getpid() != owner:  # a forked copy of the parent must not kill the parent's workers
        return
    for worker in workers:
        worker.stop()
