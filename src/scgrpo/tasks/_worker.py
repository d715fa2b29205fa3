"""The process behind `scgrpo.tasks.pool`: reads one JSON request per line, grades it, answers one JSON line.

Standard library only. The function runs in the main thread (so that it may use SIGALRM), and whatever it prints
goes to stderr: the real stdout belongs to the protocol.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections.abc import Callable
from typing import IO, Any

_DETAIL_CHARS = 500
# Where the kernel does not tell that the parent is gone (`_end_with_parent`), a function that never ends is stopped
# this much CPU time after its deadline.
_ORPHAN_GRACE_S = 5


def main(function: str, timeout_s: float, memory_mb: int | None) -> None:
    """Serve requests until stdin ends. `function` is `package.module:callable`."""
    requests, replies = _claim_streams()
    _limit_memory(memory_mb)
    try:
        grade = load_function(function)
    except Exception as error:  # noqa: BLE001 (importing a module runs its code)
        _send(replies, {"ready": False, "detail": _describe(error)})
        return
    _send(replies, {"ready": True})
    for line in requests:
        _limit_cpu(timeout_s)
        _end_with_parent(requests, True)
        answer = _answer(grade, json.loads(line))
        _end_with_parent(requests, False)  # the next request is no reason to end
        _send(replies, answer)


def load_function(path: str) -> Callable[..., Any]:
    """The callable named `package.module:callable`."""
    module, _, name = path.partition(":")
    function = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise TypeError(f"{path} is not callable")
    return function


def _answer(grade: Callable[..., Any], item: dict[str, Any]) -> dict[str, Any]:
    try:
        value = grade(**item)
        score = math.nan if value is None else float(value)
    except TimeoutError as error:
        return {"status": "timeout", "detail": _describe(error)}
    except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever a verifier raises is a verdict, not a crash)
        return {"status": "error", "detail": _describe(error)}
    if not math.isfinite(score):
        return {"status": "error", "detail": f"the verifier returned {value!r}, not a finite score"[:_DETAIL_CHARS]}
    return {"status": "graded", "score": score}


def _claim_streams() -> tuple[IO[str], IO[str]]:
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)

    def close_in_child() -> None:
        for stream in (requests, replies):
            os.close(stream.fileno())

    # A process that the function forks would otherwise keep the pipes open after this one is killed.
    os.register_at_fork(after_in_child=close_in_child)
    return requests, replies


def _send(replies: IO[str], message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _describe(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 (an exception whose text cannot be made must not kill the worker)
        text = "(no text)"
    return f"{type(error).__name__}: {text}"[:_DETAIL_CHARS]


def _end_with_parent(requests: IO[str], on: bool) -> None:
    """While on, the kernel ends this process and its children when the other end of the pipe is closed: the parent
    may be killed while the function blocks, or holds Python's lock, and does not see that stdin has ended."""
    try:
        import fcntl
        import select

        descriptor = requests.fileno()
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        # SIGIO, whose default is to end the process; the group is this process and what it has started.
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, -os.getpid() if os.getpgrp() == os.getpid() else os.getpid())
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_ASYNC if on else flags & ~os.O_ASYNC)
        poll = select.poll()
        poll.register(descriptor, 0)
        gone = on and any(events & select.POLLHUP for _, events in poll.poll(0))
    except (ImportError, AttributeError, OSError):
        return  # `_limit_cpu` is left
    if gone:  # before the kernel was asked
        raise SystemExit


def _limit_memory(memory_mb: int | None) -> None:
    if memory_mb is None:
        return
    try:
        import resource

        limit = memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    except (ImportError, ValueError, OSError):
        print("scgrpo: this system does not limit a verifier's memory.", file=sys.stderr)


def _limit_cpu(timeout_s: float) -> None:
    try:
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        more = (timeout_s + _ORPHAN_GRACE_S) * (os.cpu_count() or 1)  # the function may have threads
        soft = math.ceil(usage.ru_utime + usage.ru_stime + more)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    except (ImportError, ValueError, OSError):
        return  # only a second line of defence: the parent's deadline is the first
