"""Runs a program as `__main__`, as Python itself would."""

from __future__ import annotations

import atexit
import builtins
import linecache
import os
import random
import sys
import threading
import traceback
import types
from typing import Any

from . import preload

_FRAMES = -20  # of a traceback: the last ones


def run(order: dict[str, Any], stdin: int, stdout: int, stderr: int) -> int:
    """Returns the exit code; the caller ends the process."""
    for descriptor, number in ((stdin, 0), (stdout, 1), (stderr, 2)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = ["main.py", *order["arguments"]]
    code = 0
    try:
        module = start("__main__", order["source"])
        if order["files"]:
            sys.path.insert(0, os.getcwd())  # there may be modules among them
        exec(compile(order["source"], "main.py", "exec"), module.__dict__)
    except BaseException as error:  # noqa: BLE001 (SystemExit and KeyboardInterrupt too, as Python does)
        code = explain(error)
    return finish() or code


def start(name: str, source: str) -> types.ModuleType:
    """A module for the source, and nothing of ours in sight. Python's own streams, unused so far, are as a program
    expects them: UTF-8 on descriptors 0, 1 and 2.
    """
    random.seed(0)
    preload.forget(__name__.partition(".")[0])
    module = types.ModuleType(name)
    module.__dict__["__builtins__"] = builtins
    sys.modules[name] = module
    linecache.cache["main.py"] = (len(source), None, source.splitlines(keepends=True), "main.py")
    return module


def explain(error: BaseException) -> int:
    """Write what ended the program to stderr, as Python would. The exit code."""
    try:
        if isinstance(error, SystemExit):
            if error.code is None or isinstance(error.code, int):
                return int(error.code or 0)
            print(error.code, file=sys.stderr)
            return 1
        own = error.__traceback__.tb_next if error.__traceback__ else None
        traceback.print_exception(type(error), error, own, limit=_FRAMES)
    except BaseException:  # noqa: BLE001 (no memory left even for that)
        return 1
    return 1


def finish() -> int:
    """Wait for threads, call what waits for the end, flush."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 (a closed or full stdout)
        return 1
    return 0
