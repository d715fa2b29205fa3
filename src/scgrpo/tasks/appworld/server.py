"""One AppWorld environment server: processes of its own, which we start, watch and end.

    ours ── socket on 127.0.0.1, opened here: the number of its port is taken by nobody else
      └── supervisor ── template ── world          see inside/serve.py

The server gets none of our environment variables and no descriptors but its own. It ends with us, also when we are
killed: the supervisor watches a pipe and its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scgrpo.errors import ConfigError, VerifierError
from scgrpo.tasks.appworld.client import ServerTimeoutError, post
from scgrpo.tasks.appworld.places import INSIDE, Places

Role = Literal["world", "judge"]

_START_TIMEOUT_S = 300.0
_RENEW_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 10.0
_TAIL_BYTES = 1500
# Users that nobody has: systemd hands these numbers out to services without an account.
_FIRST_USER, _NUM_USERS = 61184, 4336


@dataclass(frozen=True)
class ServerSettings:
    """What the servers of a pool have in common.

    Attributes:
        places: the virtual environment and the data.
        shared: folder that holds a folder for each server.
        confine: see inside/confinement.py. Without it the model's code may do what the trainer's user may.
        memory_mb: address space of each process.
    """

    places: Places
    shared: Path
    confine: bool = True
    memory_mb: int = 4096


class Server:
    """One server. Used by one thread at a time; only `kill` may come from another.

    Attributes:
        outputs: folder in which the world saves its state.
        log: file with what the processes print.
        facts: of the template: `confinement` and `versions`; empty before the first start.
    """

    def __init__(self, settings: ServerSettings, number: int, role: Role) -> None:
        self.settings, self.number, self.role = settings, number, role
        self.folder = settings.shared / f"{role}-{number}"
        self.outputs = self.folder / "experiments" / "outputs"
        self.log = settings.shared / f"{role}-{number}.log"
        self.facts: dict[str, Any] = {}
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._control = self._report = -1

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def renew(self) -> None:
        """A world in which nothing has happened yet. What is left of the one before is killed.

        Raises:
            VerifierError: the server cannot be started.
            ConfigError: this system cannot confine it.
        """
        if self.running:
            try:
                self._command(_RENEW_TIMEOUT_S)
                return
            except (VerifierError, OSError):
                pass  # a template that does not answer is replaced
        self.kill()
        self._start()
        self._command(_RENEW_TIMEOUT_S)

    def call(self, endpoint: str, timeout_s: float, **arguments: Any) -> Any:
        """The server's answer.

        Raises:
            ServerTimeoutError: there was none in time.
            VerifierError: the server failed; the end of its log is part of the message.
        """
        try:
            return post(self.port, endpoint, arguments, timeout_s)
        except ServerTimeoutError as error:
            raise ServerTimeoutError(error.problem, self._log_remark()) from error
        except VerifierError as error:
            raise VerifierError(error.problem, self._log_remark()) from error

    def kill(self) -> None:
        """End the processes and remove the folder. Calling it twice is harmless."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)
        for descriptor in (self._control, self._report):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._control = self._report = -1
        shutil.rmtree(self.folder, ignore_errors=True)

    def tail(self) -> str:
        """The end of the log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""

    def _log_remark(self) -> str:
        tail = self.tail()
        return f"The end of its log: {tail}" if tail else "Its log is empty."

    def _start(self) -> None:
        if not sys.platform.startswith("linux"):
            raise ConfigError("AppWorld's servers can be run on Linux only.", "Train there, or in a container.")
        self.folder.mkdir(mode=0o750)
        with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
            self.port = listener.getsockname()[1]
            control, self._control = os.pipe()
            self._report, report = os.pipe()
            settings = self._settings(listener.fileno(), control)
            try:
                with open(self.log, "ab", opener=_private) as log:
                    self._process = subprocess.Popen(
                        [str(self.settings.places.python), str(INSIDE / "serve.py"), json.dumps(settings)],
                        stdin=subprocess.PIPE,  # its end is the end of the server
                        stdout=report,
                        stderr=log,
                        env=_environment(self.folder),
                        cwd=self.folder,
                        pass_fds=(listener.fileno(), control),
                        process_group=0,  # Ctrl-C is ours to handle
                    )
            except OSError as error:
                raise VerifierError(
                    f"AppWorld's Python {self.settings.places.python} cannot be started: {error}.",
                    "Make it again: scgrpo appworld setup",
                ) from error
            finally:
                os.close(control)
                os.close(report)
        self._await_start()

    def _await_start(self) -> None:
        reply = self._reply(_START_TIMEOUT_S)
        if reply.get("ready"):
            self.facts = {name: reply[name] for name in ("confinement", "versions")}
            return
        remark = self._log_remark()
        self.kill()
        if "ConfinementError" in reply["detail"]:
            raise ConfigError(
                f"AppWorld's server cannot be confined: {reply['detail']}.",
                "It runs what the model writes. If that is to happen unconfined, say so: confine: false.",
            )
        raise VerifierError(f"AppWorld's server could not start: {reply['detail']}.", remark)

    def _settings(self, listener: int, control: int) -> dict[str, Any]:
        first = os.getpid() * 16
        # The judge's is a number that no world has: a world could send signals to a process of the same user.
        user = _FIRST_USER + (first + (0 if self.role == "judge" else 1 + self.number % 15)) % _NUM_USERS
        return {
            "parent": os.getpid(),
            "socket_fd": listener,
            "control_fd": control,
            "folder": str(self.folder),
            "shared": str(self.settings.shared),
            "data": str(self.settings.places.data),
            "role": self.role,
            "confine": self.settings.confine,
            "memory_mb": self.settings.memory_mb,
            "uid": user if os.geteuid() == 0 else None,
            "gid": _FIRST_USER + first % _NUM_USERS,  # one for the pool: the judge reads what the others save
        }

    def _command(self, timeout_s: float) -> None:
        """Ask the template for a new world."""
        os.write(self._control, b"world\n")
        reply = self._reply(timeout_s)
        if "world" not in reply:
            raise VerifierError(f"AppWorld's server made no new world: {reply['detail']}.", self._log_remark())

    def _reply(self, timeout_s: float) -> dict[str, Any]:
        """One line of the template's; a `detail` of our own where none comes."""
        end, line = time.monotonic() + timeout_s, b""
        report = select.poll()  # not select(), which takes no descriptor from 1024 on
        report.register(self._report, select.POLLIN)
        while not line.endswith(b"\n"):
            ready = report.poll(max(0.0, end - time.monotonic()) * 1000)
            piece = os.read(self._report, 2**16) if ready else b""
            if not piece:
                return {"detail": "its processes ended" if ready else f"it said nothing for {timeout_s:g} s"}
            line += piece
        reply: dict[str, Any] = json.loads(line)
        return reply


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # it may hold what the licence does not let others see


def _environment(folder: Path) -> dict[str, str]:
    """All of the server's environment variables: none of ours, which may hold keys."""
    return {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "IPYTHONDIR": str(folder / "ipython"),
        "TMPDIR": str(folder / "tmp"),
        "APPWORLD_ROOT": str(folder),
        "APPWORLD_CACHE": str(folder / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """Write to the pipe that the supervisor watches, which ends all that it has started; kill it if it does not."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write(b"end")
        process.stdin.flush()
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
