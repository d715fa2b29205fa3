"""The embedded back-end: workers of clean Python processes that fork once per run."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import signal
import time
import weakref
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from scgrpo.errors import ConfigError, SandboxError
from scgrpo.sandbox.base import CallResult, Judged, Limits, Outcome, Program, Result
from scgrpo.sandbox.worker import Launch, Stream, Worker, WorkerError, collecting, sealed

_DEFAULT = Limits()
_REPORT_BYTES = 10_000


class Zygote:
    """A `Sandbox` of `num_workers` processes.

    Inputs go in and outputs come out through memory, not files: a full disk stops only programs with `files`, and
    those only where there is no /dev/shm.

    Raises:
        SandboxError: this machine gives no safe level.
    """

    def __init__(self, num_workers: int = 2, launch: Launch | None = None, name: str = "") -> None:
        if num_workers < 1:
            raise ConfigError(f"num_workers={num_workers} cannot work.", "Take at least 1.")
        self._name = name
        self._workers = [Worker(launch or Launch()) for _ in range(num_workers)]
        self._owner = os.getpid()
        self._closer = weakref.finalize(self, _close_all, self._workers, self._owner)
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="scgrpo-sandbox")
        try:
            list(self._threads.map(Worker.start, self._workers))
            for worker in self._workers:
                self._idle.put(worker)
        except BaseException as error:
            self.close()
            if type(error) is RuntimeError:  # no thread can be started
                raise SandboxError(f"The sandbox cannot be opened: {error}.", "End some processes first.") from error
            raise

    @property
    def level(self) -> str:
        """`landlock+seccomp`, `seccomp` (no file can be opened at all), either after `bubblewrap+`, or `none`."""
        isolation = self._workers[0].isolation or "none"
        return f"{self._name}+{isolation}" if self._name else isolation

    @property
    def notes(self) -> list[str]:
        """What the workers found when they started."""
        return self._workers[0].notes

    def run(self, program: Program, limits: Limits = _DEFAULT) -> Result:
        order = {"source": program.source, "files": dict(program.files), "arguments": list(program.arguments)}
        with ExitStack() as held:
            try:
                inputs = [_order(held, order), _held(held, sealed(program.stdin.encode("utf-8", "surrogatepass")))]
                output, errors = _held(held, collecting()), _held(held, collecting())
                answer = self._request([("program", [*inputs, output, errors])], limits, files=bool(program.files))
                stdout, stderr = _text(output, limits.output_bytes), _text(errors, limits.output_bytes)
                full = max(os.fstat(output).st_size, os.fstat(errors).st_size) > limits.output_bytes
            except (WorkerError, OSError) as error:
                return Result(Outcome.ERROR, detail=str(error))
        ending = answer["endings"][-1]
        outcome, detail = _outcome(answer, ending, limits, full)
        return Result(outcome, stdout, stderr, ending[0], answer["wall_s"], ending[1], detail or _last_line(stderr))

    def run_many(self, programs: Sequence[tuple[Program, Limits]]) -> list[Result]:
        self._check()
        futures = [self._threads.submit(self.run, program, limits) for program, limits in programs]
        try:
            return [future.result() for future in futures]
        except BaseException:  # Ctrl-C: without this, Python would wait for all that still runs before it ends
            for future in futures:
                future.cancel()
            for worker in self._workers:
                worker.interrupt()
            raise

    def call(
        self,
        source: str,
        function: str,
        arguments: Sequence[Sequence[Any]],
        limits: Limits = _DEFAULT,
        *,
        total_wall_s: float | None = None,
    ) -> list[CallResult]:
        if not arguments:
            return []
        order = {
            "source": source,
            "function": function,
            "arguments": [list(items) for items in arguments],
            "files": {},
        }
        with ExitStack() as held:
            try:
                inputs, errors = _order(held, order), _held(held, collecting())
                reading, writing = (_held(held, end) for end in os.pipe2(os.O_CLOEXEC))
                values = _Values(reading, limits, len(arguments))
                total_wall_s = total_wall_s or limits.wall_s * len(arguments)
                given = [("functions", [inputs, writing, errors])]
                answer = self._request(given, limits, wall_s=total_wall_s, stream=values)
                last_line = _last_line(_text(errors, limits.output_bytes))
            except (WorkerError, OSError) as error:
                return [CallResult(Outcome.ERROR, detail=str(error))]
        return _calls(values, answer, limits, len(arguments), last_line)

    def judge(
        self, candidate: str, tests: str, limits: Limits = _DEFAULT, *, entry_points: Collection[str] = ()
    ) -> Judged:
        secret = secrets.token_hex(16)
        order = {"tests": tests, "secret": secret, "entry_points": list(entry_points)}
        with ExitStack() as held:
            try:
                theirs, ours = _order(held, {"source": candidate}), _order(held, order)
                report = _held(held, collecting())
                answer = self._request([("candidate", [theirs]), ("judge", [ours, report])], limits)
                return _judged(answer, os.pread(report, _REPORT_BYTES, 0), secret, limits)
            except (WorkerError, OSError) as error:
                return Judged(None, Outcome.ERROR, str(error))

    def _request(
        self,
        processes: Sequence[tuple[str, list[int]]],
        limits: Limits,
        *,
        wall_s: float | None = None,
        files: bool = False,
        stream: Stream | None = None,
    ) -> dict[str, Any]:
        message = {
            "processes": [[role, len(given)] for role, given in processes],
            "files": files,
            "wall_s": wall_s or limits.wall_s,
            "cpu_s": limits.cpu_s,
            "memory_mb": limits.memory_mb,
            "output_bytes": max(limits.output_bytes, _REPORT_BYTES) + 1,
        }
        with self._worker() as worker:
            answer = worker.request(message, [number for _, given in processes for number in given], stream)
        if "failed" in answer:
            raise WorkerError(f"the run could not be confined: {answer['failed']}")
        return answer

    @contextmanager
    def _worker(self) -> Iterator[Worker]:
        self._check()
        worker = self._idle.get()
        try:
            yield worker
        finally:
            self._idle.put(worker)

    def _check(self) -> None:
        if not self._closer.alive or os.getpid() != self._owner:
            raise SandboxError("This sandbox is closed or belongs to another process.", "Open a new one.")

    def close(self) -> None:
        if os.getpid() != self._owner:  # a forked copy: the workers are not its own
            return
        self._closer()
        with contextlib.suppress(queue.Empty):
            for _ in self._workers:  # one that is not idle is cleaned up by the thread that waits for it
                worker = self._idle.get_nowait()
                worker.kill()
                self._idle.put(worker)
        self._threads.shutdown(wait=False)

    def __enter__(self) -> Zygote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Values:
    """The lines that a run of `call` writes, as they come."""

    def __init__(self, descriptor: int, limits: Limits, wanted: int) -> None:
        self.descriptor, self.limits, self.wanted = descriptor, limits, wanted
        self.deadline = time.monotonic() + limits.wall_s
        self.results: list[CallResult] = []
        self.full = False
        self._rest = b""
        self._size = 0
        self._since = time.monotonic()

    def feed(self, data: bytes) -> None:
        self._size += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines[: max(0, self.wanted - len(self.results))]:
            now = time.monotonic()
            self.results.append(_value(line, now - self._since))
            self._since, self.deadline = now, now + self.limits.wall_s
        if self._size > self.limits.output_bytes:
            self.full, self.deadline = True, 0.0


def _calls(values: _Values, answer: dict[str, Any], limits: Limits, wanted: int, last_line: str) -> list[CallResult]:
    results = values.results[:wanted]
    ending = answer["endings"][-1]
    if results and _overtime(ending, limits):
        results[-1] = CallResult(Outcome.TIMEOUT, detail=f"{ending[1]:.1f} s of CPU time", wall_s=results[-1].wall_s)
    failed = next((index for index, item in enumerate(results) if item.outcome is not Outcome.OK), wanted)
    results = results[: failed + 1]
    if len(results) == wanted or (results and results[-1].outcome is not Outcome.OK):
        return results
    if answer["stopped"]:
        detail = f"no value within {limits.wall_s:g} s" if not values.full else "it returned too much"
        return [*results, CallResult(Outcome.OUTPUT if values.full else Outcome.TIMEOUT, detail=detail)]
    outcome, detail = _outcome(answer, ending, limits, False)
    if outcome is Outcome.OK:
        outcome, detail = Outcome.EXIT, "it ended before all calls were made"
    return [*results, CallResult(outcome, detail=detail or last_line)]


def _value(line: bytes, wall_s: float) -> CallResult:
    try:
        kind, value = json.loads(line)
    except (ValueError, TypeError, RecursionError) as error:
        return CallResult(Outcome.EXIT, detail=f"what it returned is not JSON: {error}", wall_s=wall_s)
    if kind == "ok":
        return CallResult(Outcome.OK, value, wall_s=wall_s)
    return CallResult(Outcome.EXIT, detail=_printable(str(value)), wall_s=wall_s)


def _judged(answer: dict[str, Any], report: bytes, secret: str, limits: Limits) -> Judged:
    """Only a report with the secret counts; without one, how the processes ended says why."""
    candidate, judge = answer["endings"]
    try:
        said = json.loads(report)
        genuine = secrets.compare_digest(said["secret"], secret)
    except (ValueError, TypeError, KeyError):
        genuine = False
    if genuine:
        said["detail"] = _printable(said["detail"])
    if genuine and said["passed"] is None:
        return Judged(None, Outcome.ERROR, said["detail"])
    for ending in (candidate, judge):
        if _overtime(ending, limits):
            return Judged(False, *_outcome(answer, ending, limits, False))
    if genuine and said["passed"]:
        return Judged(True, Outcome.OK)
    alive = not candidate[2]  # if the tests say that it is gone: it broke the protocol
    if genuine and (alive or not said["gone"]) and not answer["expired"]:
        return Judged(False, Outcome.EXIT, said["detail"])
    outcome, detail = _outcome(answer, candidate if genuine else judge, limits, False)
    if outcome is Outcome.OK:
        outcome = Outcome.EXIT
    return Judged(False, outcome, detail or (said["detail"] if genuine else "the tests ended early"))


def _outcome(answer: dict[str, Any], ending: Sequence[float], limits: Limits, full: bool) -> tuple[Outcome, str]:
    code, cpu_s = int(ending[0]), ending[1]
    if full:
        return Outcome.OUTPUT, f"more than {limits.output_bytes} bytes of output"
    if answer["expired"]:
        return Outcome.TIMEOUT, f"killed after {answer['wall_s']:.1f} s"
    if code == -signal.SIGXCPU or _overtime(ending, limits):
        return Outcome.TIMEOUT, f"{cpu_s:.1f} s of CPU time"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return Outcome.KILLED, f"killed by {name}"
    return (Outcome.EXIT if code else Outcome.OK), ""


def _overtime(ending: Sequence[float], limits: Limits) -> bool:
    """The kernel allows whole seconds, and one more to a program that ignores its signal."""
    return limits.cpu_s is not None and ending[1] > limits.cpu_s


def _printable(text: str) -> str:
    """A candidate's words, without what cannot be encoded."""
    return text.encode("utf-8", "backslashreplace").decode()


def _held(stack: ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def _order(stack: ExitStack, order: dict[str, Any]) -> int:
    return _held(stack, sealed(json.dumps(order).encode()))


def _text(descriptor: int, limit: int) -> str:
    return os.pread(descriptor, limit, 0).decode("utf-8", "replace")


def _last_line(text: str) -> str:
    lines = text.strip().rsplit("\n", 1)
    return lines[-1][:500]


def _close_all(workers: Sequence[Worker], owner: int) -> None:
    if os.getpid() != owner:  # a forked copy of the process must not kill its workers
        return
    for worker in workers:
        worker.stop()
