"""Runs of one command that train at the same time: each further one in a process of its own.

What they print goes through this process, so that its live bar stays whole. They end with it: at once when it is
interrupted or fails, and at their next line should it be killed, as nobody reads that line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rich.console import Console

from scgrpo.errors import RunError

WORKER = (sys.executable, "-u", "-m", "scgrpo.cli.beside")


@dataclasses.dataclass(frozen=True)
class Job:
    """One run, in values that JSON has.

    Attributes:
        argv: arguments of `scgrpo train` that make the run's settings.
        path: its run directory; beside: those of the others, relative to it.
        before: record of the evaluation before training, if one was made from the same start.
    """

    argv: list[str]
    path: str
    beside: list[str]
    before: dict[str, Any] | None = None


class SideRuns:
    """The further processes. As a context it leaves none behind."""

    def __init__(self, console: Console, worker: Sequence[str] = WORKER) -> None:
        self.console, self.worker = console, worker
        self._processes: list[tuple[subprocess.Popen[str], threading.Thread, Job]] = []
        self._silent = False

    def start(self, job: Job) -> None:
        """Begin a run; what it prints is printed here from now on."""
        process = subprocess.Popen(
            self.worker,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            encoding="utf-8",
            errors="replace",
        )
        assert process.stdin is not None
        assert process.stdout is not None
        reader = threading.Thread(target=self._print_lines, args=(process.stdout,), daemon=True)
        reader.start()
        self._processes.append((process, reader, job))
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:  # `wait` tells of one that has ended
            json.dump(dataclasses.asdict(job), stdin)

    def wait(self) -> None:
        """Until all are done.

        Raises:
            RunError: one of them failed; it has printed why.
        """
        failed = []
        for process, reader, job in self._processes:
            reader.join()
            if process.wait() != 0:
                failed.append(job.path)
        if failed:
            raise RunError(f"No whole run in {', '.join(failed)}.", "What it printed above says why.")

    def _print_lines(self, stdout: IO[str]) -> None:
        with stdout:
            for line in stdout:
                if not self._silent:
                    self.console.print(line.rstrip("\n"), markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> SideRuns:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._silent = error is not None
        for process, reader, _job in self._processes:
            process.terminate()  # nothing to end after `wait`
            process.wait()
            reader.join(timeout=5)  # a verifier it had started may hold its output open for a while


def enough_cores(runs: int, num_threads: int | None) -> bool:
    """Whether that many runs find a core for each of their threads; None = torch's choice, which is all cores."""
    return num_threads is not None and runs * num_threads <= usable_cores()


def usable_cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_own_command() -> bool:
    """Whether this process is `scgrpo` itself: another program may have registered methods or tasks that a fresh
    process would not know."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return spec.name == "scgrpo.cli.main"
    return Path(getattr(main, "__file__", None) or "").name == "scgrpo"


def _work(_: Sequence[str]) -> int:
    from scgrpo.cli.loading import heavy_imports

    try:
        with heavy_imports():
            from scgrpo.cli.train import train_job

        train_job(Job(**json.load(sys.stdin)))
    except KeyboardInterrupt:  # the first process says so
        return 1
    return 0


if __name__ == "__main__":
    from scgrpo.cli.main import run_command

    sys.exit(run_command(_work, []))
