"""Ray workers that are forked from the driver, not started anew: each import of verl costs seconds of CPU.

For tests only, by driver.py. The driver imports what is heavy and, before it touches Ray, forks a server. Ray runs
this file in place of Python for its workers, and it asks that server for a process: with the same arguments,
environment and files, and killed as any other.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from array import array
from typing import Any, NoReturn

SOCKET = "FORKED_WORKERS_SOCKET"
INTS = array("i").itemsize


def serve(path: str) -> None:
    """Fork the server; returns in the caller."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    if os.fork():
        listener.close()
        return
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the attendants
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _attend(connection)
        connection.close()


def interpreter(folder: str) -> str:
    """A program that takes Python's arguments, and has workers forked."""
    path = os.path.join(folder, "python")
    with open(path, "w") as script:
        script.write(
            '#!/bin/sh\ncase "$*" in *default_worker.py*) '
            f'exec "{sys.executable}" -I -S "{os.path.abspath(__file__)}" "$@";; esac\n'
            f'exec "{sys.executable}" "$@"\n'
        )
    os.chmod(path, 0o755)
    return path


def _ask() -> int:
    """Have a worker forked; wait for its end; its exit code."""
    request = json.dumps({"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[SOCKET])
        files = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [0, 1, 2]))]
        connection.sendmsg([len(request).to_bytes(8, "big")], files)
        connection.sendall(request)
        pid = int(connection.recv(16))
        signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
        return int(connection.recv(16) or b"1")


def _attend(connection: socket.socket) -> NoReturn:
    """Fork the worker, tell its process id, and its exit code when it ends."""
    head, received, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(3 * INTS))
    size, files = int.from_bytes(head, "big"), array("i", received[0][2])
    data = b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    pid = os.fork()
    if pid == 0:
        connection.close()
        for target, file in enumerate(files):
            os.dup2(file, target)
        _become(json.loads(data))
    connection.sendall(str(pid).encode())
    _, status = os.waitpid(pid, 0)
    connection.sendall(str(abs(os.waitstatus_to_exitcode(status))).encode())
    os._exit(0)


def _become(request: dict[str, Any]) -> NoReturn:
    """Be the worker: what Ray's setup_worker.py does with its arguments, without starting Python again."""
    import atexit
    import random
    import runpy
    import traceback

    import numpy as np

    code = 1
    try:
        os.setpgrp()  # Ray kills the whole process group of a worker that died
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        random.seed()
        np.random.seed()
        argv = []
        for argument in request["argv"]:
            name, _, value = argument.partition("=")
            if name == "--serialized-runtime-env-context":
                os.environ.update(json.loads(value or "{}").get("env_vars") or {})
            elif name != "--language" and not name.endswith("setup_worker.py"):
                argv.append(argument)
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - the exit code tells
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(_ask())
