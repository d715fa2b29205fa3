"""Worker processes that train runs one after another: imports are paid once, a crash costs one run.

A worker reads jobs from its standard input, a line of JSON each, and answers with a line each on its standard output;
what libraries print goes to its log. It ends when its standard input does: killing the sweep leaves none behind.
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
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from scgrpo.errors import RunError

WORKER = (sys.executable, "-u", "-m", "scgrpo.cli.sweep.worker")
_LAST_WORDS = 300  # characters of a dead worker's log in an error


@dataclass(frozen=True)
class Ended:
    """A job has ended: with the worker's answer, or with an error that kept it from answering."""

    job: dict[str, Any]
    answer: dict[str, Any] | None
    error: str
    seconds: float


class Pool:
    """As many workers as environments; as a context it leaves none behind.

    Args:
        environments: variables of each worker, on top of this process's.
        logs: folder for what workers print.
        timeout_s: seconds after which a job's worker is killed.
    """

    def __init__(
        self,
        environments: Sequence[Mapping[str, str]],
        logs: Path,
        *,
        timeout_s: float | None = None,
        worker: Sequence[str] = WORKER,
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.timeout_s = timeout_s
        self._lines: queue.Queue[tuple[_Worker, str | None]] = queue.Queue()
        self._workers = [
            _Worker(worker, environment, logs / f"{number}.log", self._lines)
            for number, environment in enumerate(environments)
        ]

    @property
    def idle(self) -> bool:
        """Whether a worker waits for a job."""
        return any(worker.job is None for worker in self._workers)

    @property
    def running(self) -> list[dict[str, Any]]:
        """Jobs that have not ended."""
        return [worker.job for worker in self._workers if worker.job is not None]

    def submit(self, job: dict[str, Any]) -> None:
        """Give a job, in values that JSON has, to an idle worker."""
        next(worker for worker in self._workers if worker.job is None).begin(job)

    def wait(self, seconds: float) -> Ended | None:
        """The next job that ends within so many seconds.

        Raises:
            RunError: a worker cannot even start.
        """
        self._kill_hung()
        try:
            worker, line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return None
        if line is None:
            return self._died(worker)
        if "ready" in (answer := json.loads(line)):
            worker.ready, worker.since = True, time.monotonic()  # imports are not the job's
            return None
        job, worker.job = worker.job, None
        assert job is not None
        return Ended(job, answer, "", time.monotonic() - worker.since)

    def _died(self, worker: _Worker) -> Ended | None:
        how = worker.how_it_ended()
        if not worker.ready:
            raise RunError(f"A worker process could not start: {how}", f"Its log: {worker.log}.")
        job, worker.job = worker.job, None
        seconds = time.monotonic() - worker.since
        worker.start()
        return None if job is None else Ended(job, None, how, seconds)

    def _kill_hung(self) -> None:
        for worker in self._workers:
            hung = self.timeout_s is not None and time.monotonic() - worker.since > self.timeout_s
            if hung and worker.ready and worker.job is not None and not worker.verdict:
                worker.verdict = f"it took longer than timeout_s={self.timeout_s:g}"
                worker.process.kill()

    def __enter__(self) -> Pool:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            try:
                worker.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


class _Worker:
    """One process, and the next one in its place should it die."""

    process: subprocess.Popen[str]

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        lines: queue.Queue[tuple[_Worker, str | None]],
    ) -> None:
        self.command, self.environment, self.log, self.lines = command, environment, log, lines
        self.job: dict[str, Any] | None = None
        self.ready = False
        self.verdict = ""  # why it was killed, if we did
        self.since = time.monotonic()

    def start(self) -> None:
        self.ready, self.verdict = False, ""
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self.environment, "PYTHONIOENCODING": "utf-8"},
                encoding="utf-8",
            )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def begin(self, job: dict[str, Any]) -> None:
        self.job, self.since = job, time.monotonic()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died: the end of its output says so
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()

    def how_it_ended(self) -> str:
        code = self.process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        words = self.log.read_text(errors="replace").strip()[-_LAST_WORDS:]
        said = f"; its last words: {words}" if words else ""
        return f"the worker process ended ({self.verdict or how}){said}"

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.lines.put((self, line))
        self.lines.put((self, None))
