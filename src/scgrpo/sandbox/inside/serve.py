"""The worker process: clean, single-threaded, forked once per run. It reads no untrusted byte itself.

It talks JSON over a socket that keeps message boundaries. A request comes with the descriptors its processes get; a
process reads what it is to do from one of them. The worker waits, kills what is late, and answers with what the
kernel says of the ended processes. It ends when its socket or the process that opened the sandbox does.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import select
import shutil
import signal
import socket
import stat
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from . import candidate, confine, functions, judge, preload, program

ROLES: dict[str, Callable[..., int]] = {
    "program": program.run,
    "functions": functions.run,
    "candidate": candidate.run,
    "judge": judge.run,
}
_LARGEST_REQUEST, _MOST_DESCRIPTORS = 1 << 16, 16
_PATIENCE_S = 0.5
_FORK_TRIES, _FORK_PAUSE_S = 100, 0.05
_LIBRARY_AT = 60  # highest numbers a run may have: out of the way of programs that count descriptors


def main(control: int, opener: int, folder: str, view: str, insecure: bool, missing: Sequence[str]) -> NoReturn:
    """Serve until the end.

    Args:
        control: the socket. opener: pidfd of the process behind it.
        folder: to be made when the first program with files comes, and removed at the end.
        view, insecure, missing: see `confine.prepare`.
    """
    sock = socket.socket(fileno=control)
    os.umask(0o022)  # runs are another user, who has to read the files of a program
    try:
        _volunteer()
        kept = _reach_library() if os.geteuid() == 0 else []
        cage, notes = confine.prepare(view, insecure=insecure, missing=missing)
        preload.load(everything=cage.files == "none")
        cage.own_bytes = confine.address_space()
        confine.hide()
    except Exception as error:  # noqa: BLE001 (the other side makes an error of it)
        _send(sock, {"ready": False, "detail": f"{type(error).__name__}: {error}"})
        os._exit(1)
    gc.collect()
    gc.freeze()  # else a collection in a run would copy every page
    isolation = "landlock+seccomp" if cage.rights is not None else "seccomp"
    _send(sock, {"ready": True, "isolation": isolation if cage.filter is not None else "none", "notes": notes})
    worker = _Worker(sock, opener, folder, cage, kept)
    try:
        while worker.serve_one():
            pass
    finally:
        worker.remove_folders()
        os._exit(0)


class _Worker:
    def __init__(self, sock: socket.socket, opener: int, folders: str, cage: confine.Cage, kept: list[int]) -> None:
        self.sock, self.opener, self.folders, self.cage, self.kept = sock, opener, folders, cage, kept
        self.count = 0

    def serve_one(self) -> bool:
        """Wait for a request and answer it. False: nobody is left to serve."""
        waiting = select.poll()
        waiting.register(self.sock, select.POLLIN)
        waiting.register(self.opener, select.POLLIN)
        ready = {descriptor for descriptor, _ in waiting.poll()}
        if self.opener in ready:
            return False
        message, ancillary, _, _ = self.sock.recvmsg(
            _LARGEST_REQUEST, socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC
        )
        if not message:
            return False
        request = json.loads(message)
        descriptors = array.array("i")
        for _, _, data in ancillary:
            descriptors.frombytes(data)
        if "processes" in request:  # else: a "stop" that came after the run had ended
            self._run(request, list(descriptors))
        return True

    def _run(self, request: dict[str, Any], descriptors: list[int]) -> None:
        self.count += 1
        folder, started, pids = None, time.monotonic(), []
        report, complaint = os.pipe()
        pair = socket.socketpair() if len(request["processes"]) == 2 else ()
        try:
            if request["files"]:
                folder = self._make_folder()
            given = list(descriptors)
            for index, (role, count) in enumerate(request["processes"]):
                mine, given = given[:count], given[count:]
                channel = [pair[index].fileno()] if pair else []
                pids.append(self._fork(role, mine + channel, request, folder, complaint))
            while descriptors:  # from here on only the processes hold them: their end is the end of their pipes
                os.close(descriptors.pop())
            for end in pair:
                end.close()
            self._finish(request, pids, started, report, complaint)
        except OSError as error:
            _kill_and_wait(pids)
            _send(self.sock, {"failed": f"{type(error).__name__}: {error}"})
        finally:
            for descriptor in (*descriptors, report, complaint):
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            for end in pair:
                end.close()
            if folder is not None:
                os.chmod(folder, 0o700)
                shutil.rmtree(folder, ignore_errors=True)

    def _finish(self, request: dict[str, Any], pids: list[int], started: float, report: int, complaint: int) -> None:
        last = os.pidfd_open(pids[-1])
        try:
            expired, stopped = self._wait(last, started + request["wall_s"])
        finally:
            os.close(last)
        taken = time.monotonic() - started
        status = os.waitid(os.P_PID, pids[-1], os.WEXITED | os.WNOHANG | os.WNOWAIT)
        lost = (
            status is not None and request["processes"][-1][0] == "judge" and status.si_status == judge.CANDIDATE_GONE
        )
        endings = _kill_and_wait(pids, _PATIENCE_S if lost else 0.0)
        os.set_blocking(report, False)
        try:
            failed = os.read(report, 1000).decode(errors="replace")
        except BlockingIOError:
            failed = ""
        answer: dict[str, Any] = {"failed": failed} if failed else {}
        answer |= {"expired": expired, "stopped": stopped, "wall_s": taken, "endings": endings}
        _send(self.sock, answer)

    def _wait(self, process: int, deadline: float) -> tuple[bool, bool]:
        """Whether time ran out, and whether the other side has told to stop."""
        waiting = select.poll()
        for descriptor in (process, self.sock.fileno(), self.opener):
            waiting.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in waiting.poll(max(0.0, deadline - time.monotonic()) * 1000)}
        if self.opener in ready:
            raise SystemExit  # the children go with this process
        if self.sock.fileno() in ready and process not in ready:
            if not self.sock.recv(_LARGEST_REQUEST):
                raise SystemExit
            return False, True
        return process not in ready, False

    def _fork(self, role: str, mine: list[int], request: dict[str, Any], folder: str | None, complaint: int) -> int:
        worker, pid = os.getpid(), _forked()
        if pid:
            return pid
        code = 1
        try:
            allowance = confine.Allowance(request["cpu_s"], request["memory_mb"], request["output_bytes"])
            order = json.loads(_read_all(mine[0]))
            if folder is not None:
                if self.cage.filter is not None and self.cage.files == "none":
                    raise OSError("this level of isolation has no files")
                for name, text in order["files"].items():
                    with open(os.path.join(folder, name), "x", encoding="utf-8", newline="") as file:
                        file.write(text)
                os.chmod(folder, 0o555)
            os.chdir(folder or "/")
            # Of its own: whatever is written there, or set on it, must not reach the next run or the other process.
            null = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            rules = [] if self.cage.rules is None else [self.cage.rules]
            _close_except([*mine[1:], *self.kept, *rules, complaint])
            self.cage.enter(allowance, worker, folder)
            os.close(complaint)
            complaint = -1
            code = ROLES[role](order, *mine[1:])
        except BaseException as error:  # noqa: BLE001 (whatever happens, this process must not become a worker)
            if complaint >= 0:
                os.write(complaint, f"{type(error).__name__}: {error}"[:900].encode())
        finally:
            os._exit(code & 0xFF)

    def _make_folder(self) -> str:
        if not os.path.isdir(self.folders):
            os.mkdir(self.folders)
            os.chmod(self.folders, 0o711)
        folder = os.path.join(self.folders, str(self.count))
        os.mkdir(folder, 0o755)
        return folder

    def remove_folders(self) -> None:
        shutil.rmtree(self.folders, ignore_errors=True)


def _forked() -> int:
    """`os.fork`, again for a while where processes or threads of others have used up what the user may have."""
    for _ in range(_FORK_TRIES):
        try:
            return os.fork()
        except BlockingIOError:
            time.sleep(_FORK_PAUSE_S)
    return os.fork()


def _kill_and_wait(pids: Sequence[int], patience_s: float = 0.0) -> list[list[float]]:
    """End processes. Exit code (negative: signal), CPU seconds, and whether it had ended by itself, of each.

    `patience_s`: to let those end that are about to: a judge sees the channel closed before the process is dead.
    """
    patience = time.monotonic() + patience_s
    endings = []
    for pid in pids:
        while not (ended := _has_ended(pid)) and time.monotonic() < patience:
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)  # it is a child nobody has waited for: the number is still its own
        _, status, usage = os.wait4(pid, 0)
        endings.append([os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, ended])
    return endings


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _close_except(kept: Sequence[int]) -> None:
    low = 3
    for descriptor in sorted(kept):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, max(low, os.sysconf("SC_OPEN_MAX") if low > 1 << 16 else 1 << 16))


def _volunteer() -> None:
    """Where memory runs out, the kernel is to end this process or a run, and not the one that opened the sandbox."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def _read_all(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def _send(sock: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more; the next wait finds that out
        sock.send(json.dumps(message).encode())


def _reach_library() -> list[int]:
    """Keep the standard library importable for another user, though it may lie below a folder only root may enter.

    Then its folders are kept open and imported from by descriptor. Returns the descriptors.
    """
    paths = sysconfig.get_paths()
    folders = list(dict.fromkeys((paths["stdlib"], paths["platstdlib"])))
    folders = [*folders, os.path.join(folders[-1], "lib-dynload")]
    if all(_others_may_enter(folder) for folder in folders):
        return []
    numbers: list[int] = []
    for folder in folders:
        opened = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        number = _LIBRARY_AT + len(numbers)
        os.dup2(opened, number)
        os.close(opened)
        numbers.append(number)
    through = {folder: f"/proc/self/fd/{number}" for folder, number in zip(folders, numbers, strict=True)}
    sys.path[:] = [through.get(entry, entry) for entry in sys.path]
    for module in list(sys.modules.values()):
        if hasattr(module, "__path__"):
            module.__path__ = [_replace(entry, through) for entry in module.__path__]
    sys.path_importer_cache.clear()
    return numbers


def _replace(entry: str, through: dict[str, str]) -> str:
    for folder, short in through.items():
        if entry.startswith(folder + "/"):
            return short + entry[len(folder) :]
    return entry


def _others_may_enter(folder: str) -> bool:
    while True:
        if not os.stat(folder).st_mode & stat.S_IXOTH:
            return False
        if folder == "/":
            return True
        folder = os.path.dirname(folder)
