"""A runner behind HTTP: SandboxFusion's `/run_code` or Piston's `/execute`. How well it isolates is its own affair.

What it cannot do: `judge`, which needs two processes that cannot reach each other; deadlines of single calls (all
calls of `call` share one); CPU seconds. Outputs are cut here, after they were sent.
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from scgrpo.errors import ConfigError, SandboxError
from scgrpo.sandbox.base import CallResult, Judged, Limits, Outcome, Program, Result

_DEFAULT = Limits()
_NETWORK_S = 30.0  # what a request may take beyond the run
_LARGEST_ANSWER = 256 << 20
_NOT_ITS_FORM = (KeyError, TypeError, AttributeError)
_MARK = "#scgrpo-value "
# Reads what to call from stdin and writes values to a stdout that the code does not see by accident.
_CALLER = f"""\
import io, json, os, sys
order = json.load(sys.stdin)
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
sys.stdin = io.StringIO()
def tell(*message):
    out.write({_MARK!r} + json.dumps(message) + "\\n")
    out.flush()
try:
    names = {{"__name__": "solution"}}
    exec(compile(order["source"], "main.py", "exec"), names)
    name = order["function"]
    if "Solution" in names and hasattr(names["Solution"], name):
        function = getattr(names["Solution"](), name)
    else:
        function = names[name]
    for arguments in order["arguments"]:
        tell("ok", function(*arguments))
except BaseException as error:
    tell("raise", type(error).__name__ + ": " + str(error)[:500])
"""


class _TooLargeError(Exception):
    """The program wrote more than is read of an answer."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """One would repeat the request as a GET, without the program, and at an address that nobody named."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Remote:
    """A `Sandbox` at an address. The style follows from the path's end: `/run_code` or `/execute`.

    Raises:
        ConfigError: an address of another form.
    """

    def __init__(self, url: str, num_workers: int = 2) -> None:
        parts = urlsplit(url)
        style = parts.path.rstrip("/").rpartition("/")[2]
        if parts.scheme not in ("http", "https") or style not in ("run_code", "execute"):
            raise ConfigError(
                f"{url!r} is not the address of a runner.",
                "Give http(s)://HOST:PORT/run_code (SandboxFusion) or http(s)://HOST:PORT/api/v2/execute (Piston).",
            )
        if num_workers < 1:
            raise ConfigError(f"num_workers={num_workers} cannot work.", "Take at least 1.")
        self.url = url
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._request, self._result = (_fusion, _fusion_result) if style == "run_code" else (_piston, _piston_result)
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="scgrpo-remote")
        self._owner = os.getpid()
        self._closed = False

    @property
    def level(self) -> str:
        return "remote"

    def run(self, program: Program, limits: Limits = _DEFAULT) -> Result:
        self._check()
        started = time.monotonic()
        try:
            answer = self._post(self._request(program, limits), limits.wall_s + _NETWORK_S)
            result = self._result(answer, limits, time.monotonic() - started)
        except _TooLargeError as error:
            return Result(Outcome.OUTPUT, "", "", None, time.monotonic() - started, 0.0, str(error))
        except (OSError, http.client.HTTPException, ValueError, RecursionError, *_NOT_ITS_FORM) as error:
            return Result(Outcome.ERROR, detail=f"the remote runner: {type(error).__name__}: {error}"[:500])
        return result

    def run_many(self, programs: Sequence[tuple[Program, Limits]]) -> list[Result]:
        self._check()
        return list(self._threads.map(lambda item: self.run(*item), programs))

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
        order = {"source": source, "function": function, "arguments": [list(items) for items in arguments]}
        total = Limits(
            total_wall_s or limits.wall_s * len(arguments), limits.cpu_s, limits.memory_mb, limits.output_bytes
        )
        result = self.run(Program(_CALLER, stdin=json.dumps(order)), total)
        if result.outcome is Outcome.ERROR:
            return [CallResult(Outcome.ERROR, detail=result.detail)]
        found = [_value(line[len(_MARK) :]) for line in result.stdout.split("\n") if line.startswith(_MARK)]
        found = found[: len(arguments)]
        if len(found) < len(arguments) and (not found or found[-1].outcome is Outcome.OK):
            outcome = Outcome.EXIT if result.outcome is Outcome.OK else result.outcome
            found.append(CallResult(outcome, detail=result.detail or "it ended before all calls were made"))
        return found

    def judge(
        self, candidate: str, tests: str, limits: Limits = _DEFAULT, *, entry_points: Collection[str] = ()
    ) -> Judged:
        raise SandboxError(
            "A remote runner cannot keep tests and candidate apart.", "Judge with a local sandbox ('auto')."
        )

    def _post(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        request = urllib.request.Request(self.url, json.dumps(message).encode(), {"Content-Type": "application/json"})
        deadline = time.monotonic() + timeout_s
        try:
            with self._opener.open(request, timeout=timeout_s) as reply:
                data = _read(reply, deadline)
        except urllib.error.HTTPError as error:
            with error:
                elsewhere = error.headers["Location"] if error.code in range(300, 400) else None
                said = f"it is at {elsewhere}" if elsewhere else error.read(300).decode(errors="replace")
                raise ValueError(f"{error.code} {said}") from None
        answer = json.loads(data)
        if not isinstance(answer, dict):
            raise ValueError("the answer is not an object")
        return answer

    def _check(self) -> None:
        if self._closed or os.getpid() != self._owner:
            raise SandboxError("This sandbox is closed or belongs to another process.", "Open a new one.")

    def close(self) -> None:
        if os.getpid() == self._owner:
            self._closed = True
            self._threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Remote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(reply: http.client.HTTPResponse, deadline: float) -> bytes:
    """The body, which may come in drops: the timeout of a connection is for each of them."""
    data = bytearray()
    while part := reply.read1(1 << 20):
        data += part
        if len(data) > _LARGEST_ANSWER:
            raise _TooLargeError("the answer is too large")
        if time.monotonic() > deadline:
            raise TimeoutError("the answer takes too long")
    if reply.length:
        raise ValueError("the answer is cut off")
    return bytes(data)


def _fusion(program: Program, limits: Limits) -> dict[str, Any]:
    if program.arguments:
        raise ValueError("/run_code takes no arguments")
    files = {name: base64.b64encode(text.encode()).decode() for name, text in program.files.items()}
    return {
        "code": program.source,
        "language": "python",
        "stdin": program.stdin,
        "run_timeout": limits.wall_s,
        "memory_limit_MB": limits.memory_mb,
        "files": files,
    }


def _fusion_result(answer: dict[str, Any], limits: Limits, wall_s: float) -> Result:
    run = answer["run_result"]
    if answer["status"] == "SandboxError" or run is None:
        return Result(Outcome.ERROR, detail=f"the remote runner: {answer.get('message') or answer['status']}"[:500])
    code, late = run.get("return_code"), run["status"] == "TimeLimitExceeded"
    if run["status"] == "Error":
        return Result(Outcome.ERROR, detail=f"the remote runner: {run.get('stderr') or 'Error'}"[:500])
    taken = run.get("execution_time") or wall_s
    return _finished(run.get("stdout"), run.get("stderr"), code, late, float(taken), limits)


def _piston(program: Program, limits: Limits) -> dict[str, Any]:
    others = [{"name": name, "content": text} for name, text in program.files.items()]
    return {
        "language": "python",
        "version": "*",
        "files": [{"name": "main.py", "content": program.source}, *others],
        "stdin": program.stdin,
        "args": list(program.arguments),
        "run_timeout": math.ceil(limits.wall_s * 1000),
        "run_memory_limit": limits.memory_mb << 20,
    }


def _piston_result(answer: dict[str, Any], limits: Limits, wall_s: float) -> Result:
    run = answer["run"]
    status, killed = run.get("status"), run.get("signal")
    if status == "XX":
        return Result(Outcome.ERROR, detail=f"the remote runner: {run.get('message')}"[:500])
    late = status == "TO" or (status is None and killed == "SIGKILL" and wall_s >= limits.wall_s)
    code = -9 if killed else run.get("code")
    result = _finished(run.get("stdout"), run.get("stderr"), code, late, wall_s, limits)
    if status in ("OL", "EL"):
        return Result(Outcome.OUTPUT, result.stdout, result.stderr, code, wall_s, 0.0, "too much output")
    return result


def _finished(
    stdout: str | None, stderr: str | None, code: int | None, late: bool, wall_s: float, limits: Limits
) -> Result:
    texts = [(text or "").encode("utf-8", "surrogatepass") for text in (stdout, stderr)]
    cut = [text[: limits.output_bytes].decode("utf-8", "replace") for text in texts]
    if late:
        outcome, detail = Outcome.TIMEOUT, f"killed after {wall_s:.1f} s"
    elif max(map(len, texts)) > limits.output_bytes:
        outcome, detail = Outcome.OUTPUT, f"more than {limits.output_bytes} bytes of output"
    elif code is None:
        raise ValueError("the answer has no exit code")
    else:
        outcome = Outcome.OK if code == 0 else Outcome.EXIT if code > 0 else Outcome.KILLED
        detail = "" if code == 0 else cut[1].strip().rpartition("\n")[2][:500] or f"exit code {code}"
    return Result(outcome, cut[0], cut[1], code, wall_s, 0.0, detail)


def _value(line: str) -> CallResult:
    try:
        kind, value = json.loads(line)
    except (ValueError, TypeError, RecursionError) as error:
        return CallResult(Outcome.EXIT, detail=f"what it returned is not JSON: {error}")
    return CallResult(Outcome.OK, value) if kind == "ok" else CallResult(Outcome.EXIT, detail=str(value))
