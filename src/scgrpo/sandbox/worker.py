"""One worker process, seen from the process that opened the sandbox: started, asked, killed, replaced."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from scgrpo.errors import SandboxError

HERE = Path(__file__).resolve().parent
_START_S = 120.0
_GRACE_S = 15.0  # for the worker to answer after a run's time is up, on a busy machine
_BOOTSTRAP = (
    "import json, sys; sys.path.insert(0, sys.argv[1]); from inside.serve import main; del sys.path[0]; "
    "main(*json.loads(sys.argv[2]))"
)


@dataclass(frozen=True)
class Launch:
    """How a worker is started.

    Attributes:
        prefix: what goes before Python's own command line.
        view: see `inside.confine.prepare`.
        insecure: run even without isolation.
        missing: features of the kernel to do without, to see what is left; see `inside.confine.prepare`.
    """

    prefix: tuple[str, ...] = ()
    view: str = "host"
    insecure: bool = False
    missing: tuple[str, ...] = ()

    def folder(self) -> str:
        """A new name for a worker's folder, in memory if possible."""
        memory = self.view == "host" and os.access("/dev/shm", os.W_OK)
        root = "/tmp" if self.view == "mounts" else "/dev/shm" if memory else tempfile.gettempdir()
        return os.path.join(root, f"scgrpo-sandbox-{secrets.token_hex(8)}")

    def command(self, control: int, opener: int, folder: str) -> list[str]:
        python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
        options = ["-S", "-s", "-P", "-B", "-X", "utf8", "-c", _BOOTSTRAP]
        arguments = json.dumps([control, opener, folder, self.view, self.insecure, self.missing])
        return [*self.prefix, python, *options, str(HERE), arguments]


class Stream(Protocol):
    """A pipe from a run that is read while it lasts."""

    descriptor: int
    deadline: float

    def feed(self, data: bytes) -> None:
        """Take what has come; may move `deadline` (time.monotonic()), after which the run is stopped."""


class WorkerError(Exception):
    """The worker ended, or does not answer: nothing is known about the run."""


class Worker:
    """Used by one thread at a time; only `stop` and `interrupt` may come from another."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.stopped = False
        self.isolation: str | None = None  # what the first process reported; a later one must not have less
        self.notes: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._errors = -1
        self._folder = ""

    def start(self) -> None:
        """Start the process, if there is none, and wait until it is confined and tried.

        Raises:
            SandboxError: it does not start, or is less isolated than before.
        """
        if self.stopped:
            raise SandboxError("The sandbox is closed.", "Open a new one.")
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        try:
            self._launch()
            answer = self._receive(_START_S)
        except (OSError, WorkerError) as error:
            detail = f"{error} {self._last_words()}".strip()
            self.kill()
            raise SandboxError(
                f"A sandbox worker does not start: {detail}",
                "Check that a fresh Python of this installation starts, and that memory and descriptors are left.",
            ) from error
        except BaseException:
            self.kill()
            raise
        if not answer["ready"] or self.isolation not in (None, answer["isolation"]):
            self.kill()
            found = answer.get("detail") or f"{answer['isolation']} instead of {self.isolation}"
            raise SandboxError(f"The sandbox is not safe here: {found}.", _REMEDY)
        self.isolation, self.notes = answer["isolation"], answer["notes"]

    def _launch(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        self._errors = os.memfd_create("scgrpo-worker", os.MFD_CLOEXEC)
        self._folder = self.launch.folder()
        opener = os.pidfd_open(os.getpid())  # the worker ends with this process, even where forks hold the socket
        # No secrets, and nothing that changes what Python does: hashes are the same in every run.
        environment = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "MALLOC_ARENA_MAX": "2"}
        environment |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        with theirs:
            try:
                self._process = subprocess.Popen(
                    self.launch.command(theirs.fileno(), opener, self._folder),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    pass_fds=(theirs.fileno(), opener),
                    env=environment,
                    cwd="/",
                    start_new_session=True,  # Ctrl-C is for the process that opened the sandbox
                )
            finally:
                os.close(opener)
        if self.stopped:  # in the meantime, by another thread
            raise WorkerError("The sandbox was closed.")

    def request(
        self, message: dict[str, Any], descriptors: Sequence[int], stream: Stream | None = None
    ) -> dict[str, Any]:
        """Have one run made; what the kernel said of it.

        Args:
            message: see `inside.serve`.
            descriptors: what the run's processes get copies of.
            stream: read while the run lasts.

        Raises:
            WorkerError: and then the next request gets a new process.
        """
        try:
            self.start()
            assert self._socket is not None
            deadline = time.monotonic() + message["wall_s"] + _GRACE_S
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
            self._socket.sendmsg([json.dumps(message).encode()], rights)
            if stream is not None:
                self._follow(stream, deadline)
            return self._receive(max(0.0, deadline - time.monotonic()))
        except (OSError, WorkerError, SandboxError) as error:
            detail = "the sandbox was closed" if self.stopped else f"{error} {self._last_words()}".strip()
            self.kill()
            raise WorkerError(detail) from error
        except BaseException:  # Ctrl-C: the run goes on in there
            self.kill()
            raise

    def _follow(self, stream: Stream, deadline: float) -> None:
        """Read a stream until the worker has an answer, and have the run stopped when it is late.

        The answer is what counts, not the stream's end: a fork of this process may hold its other side open.
        """
        assert self._socket is not None
        os.set_blocking(stream.descriptor, False)
        waiting, told = select.poll(), False
        waiting.register(stream.descriptor, select.POLLIN)
        waiting.register(self._socket, select.POLLIN)
        while True:
            until = deadline if told else min(deadline, stream.deadline)
            ready = {number for number, _ in waiting.poll(max(0.0, until - time.monotonic()) * 1000)}
            if stream.descriptor in ready and not _feed(stream, not told):
                waiting.unregister(stream.descriptor)
            if self._socket.fileno() in ready:
                while _feed(stream, not told):
                    pass
                return
            if time.monotonic() >= deadline:
                raise WorkerError("The worker does not answer.")
            if not told and time.monotonic() >= stream.deadline:
                self._socket.send(b'{"stop": true}')
                told = True

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        assert self._socket is not None
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        if not waiting.poll(timeout_s * 1000):
            raise WorkerError("The worker does not answer.")
        data = self._socket.recv(1 << 16)
        if not data:
            raise WorkerError("The worker ended.")
        answer: dict[str, Any] = json.loads(data)
        return answer

    def _last_words(self) -> str:
        """The end of what the process wrote to stderr."""
        if self._errors < 0:
            return ""
        size = os.fstat(self._errors).st_size
        return os.pread(self._errors, 500, max(0, size - 500)).decode(errors="replace").strip()

    def kill(self) -> None:
        """End the process and what it has started. The next request starts a new one."""
        self.interrupt()
        process, self._process = self._process, None
        if process is not None:
            process.wait()
            shutil.rmtree(self._folder, ignore_errors=True)  # it had no time to
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._errors >= 0:
            os.close(self._errors)
            self._errors = -1

    def interrupt(self) -> None:
        """End the process, and with it a run, from any thread. The next request starts a new one."""
        process, sock = self._process, self._socket
        if process is not None:
            _kill_group(process)
        if sock is not None:  # a worker inside bubblewrap is not of that group, and ends with the socket
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """End the process for good, from any thread. One that waits for an answer sees the socket's end."""
        self.stopped = True
        process = self._process
        self.interrupt()
        if process is not None:
            process.wait()
            shutil.rmtree(self._folder, ignore_errors=True)


_REMEDY = (
    "Use a Linux kernel from 5.13 on with Landlock and seccomp, or install bubblewrap, or give the address of a "
    "remote runner (backend='remote', url=...). allow_insecure=True runs code without protection."
)


def _feed(stream: Stream, wanted: bool) -> bool:
    """Hand over what there is, if it is still wanted. False: there is nothing, or never will be."""
    try:
        data = os.read(stream.descriptor, 1 << 16)
    except BlockingIOError:
        return False
    if data and wanted:
        stream.feed(data)
    return bool(data)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is not None:  # it was waited for: its number may belong to someone else by now
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def sealed(data: bytes) -> int:
    """A descriptor from which `data` can be read, and nothing written; it needs no disk."""
    descriptor = os.memfd_create("scgrpo-input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def collecting() -> int:
    """A descriptor that a run writes to, within its limits, and that is read afterwards."""
    return os.memfd_create("scgrpo-output", os.MFD_CLOEXEC)
