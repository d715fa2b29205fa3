"""Runs a program as `__main__`, as Python itself would."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import io
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
    module = start("__main__", order["source"])
    module.__dict__["__file__"] = "main.py"
    try:
        if order["files"]:
            sys.path.insert(0, os.getcwd())  # there may be modules among them
        execute(order["source"], module.__dict__)
    except BaseException as error:  # noqa: BLE001 (SystemExit and KeyboardInterrupt too, as Python does)
        code = explain(error)
    return finish(module) or code


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


def execute(source: str, names: dict[str, Any]) -> None:
    """Run a source, which does not inherit this module's `from __future__ import annotations`."""
    exec(compile(source, "main.py", "exec", dont_inherit=True), names)


def explain(error: BaseException) -> int:
    """Write what ended the program to stderr, as Python would. The exit code."""
    try:
        if isinstance(error, SystemExit):
            if error.code is None or isinstance(error.code, int):
                return int(error.code or 0)
            print(error.code, file=sys.stderr)
            return 1
        own = error.__traceback__  # without the frames of ours
        while own is not None and os.path.dirname(own.tb_frame.f_code.co_filename) == os.path.dirname(__file__):
            own = own.tb_next
        traceback.print_exception(type(error), error, own, limit=_FRAMES)
    except BaseException:  # noqa: BLE001 (no memory left even for that)
        return 1
    return 1


def finish(module: types.ModuleType) -> int:
    """Wait for threads, call what waits for the end, flush. As when Python ends, the program's names go, and its
    files with them, which write what they still hold (`out = open(1, "w")`).
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        _flush(sys.stdout)  # perhaps one of the program's own, which needs its names
        sys.stdout = sys.__stdout__
        module.__dict__.clear()
        _flush_files()
        gc.collect()
        _flush(sys.stdout)
    except BaseException:  # noqa: BLE001 (a full stdout)
        return 1
    return 0


def _flush(stream: Any) -> None:
    if stream is not None and not getattr(stream, "closed", False):
        stream.flush()


def _flush_files() -> None:
    """Those in reference cycles: the collector might close the descriptor below one before it has written."""
    for thing in gc.get_objects():
        if type(thing) in (io.TextIOWrapper, io.BufferedWriter):
            with contextlib.suppress(OSError, ValueError):  # closed or full: Python would ignore it too
                thing.flush()
