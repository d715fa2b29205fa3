"""What the process that runs a model's code may do. Linux; standard library only.

    Landlock      files: an allow-list of folders to read, one to write, nothing to execute; TCP: no connection, where
                  the kernel can (ABI 4); no signals to processes outside (ABI 6)
    network       a network namespace of its own, empty: the socket it serves on was opened outside
    identity      an unprivileged user where the process was root and that user can read what it needs; otherwise no
                  capabilities
    limits        memory, file size, open files, processes, no core files

Landlock is required, and `confine` raises without it. The others are taken where the system gives them; what was
reached is returned, for people to read.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
from collections.abc import Iterable, Iterator

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP = 1, 36, 38, 24
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
# The same numbers on x86_64, aarch64 and every other architecture since Linux 5.1.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 10, 1 << 11
_TRUNCATE = 1 << 14
_ALL_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}  # by ABI; later ones below
_ALL_FILES_SINCE_5 = (1 << 16) - 1
_ALL_TCP = 0b11  # bind and connect
_ALL_SCOPES = 0b11  # abstract unix sockets and signals
_NEVER = _EXECUTE | _MAKE_CHAR | _MAKE_SOCK | _MAKE_FIFO | _MAKE_BLOCK
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | 1 << 15

MAX_FILE_BYTES = 256 * 2**20
MAX_OPEN_FILES = 1024
MAX_PROCESSES = 256


class ConfinementError(RuntimeError):
    """The system does not give what is required."""


def die_with_parent() -> None:
    """Have this process killed when the one that made it ends (its main thread, to be exact)."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)


def adopt_orphans() -> None:
    """Make descendants whose parents end children of this process, so that it can end them."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def landlock_abi() -> int:
    """Version of the kernel's Landlock; 0 without it."""
    version = _LIBC.syscall(_CREATE_RULESET, None, 0, 1)
    return max(version, 0)


def confine(
    *, readable: Iterable[str], writable: str, must_read: Iterable[str], uid: int | None, gid: int, memory_mb: int
) -> dict[str, str]:
    """Confine this process, which must have one thread, and all that it starts.

    Args:
        readable: files and folders; those that do not exist are skipped.
        writable: the one folder to write in.
        must_read: what the unprivileged user has to be able to read, or it is not taken.
        uid: an unprivileged user's number, if this process is root's; None: stay who we are.
        gid: its group.
        memory_mb: of address space.

    Returns:
        What was reached, in words.

    Raises:
        ConfinementError: no Landlock.
    """
    abi = landlock_abi()
    if abi < 1:
        raise ConfinementError("this kernel has no Landlock (Linux 5.13 or newer, with it switched on)")
    network = "none" if _own_network() else "no TCP" if abi >= 4 else "not confined"
    identity = _become(uid, gid, must_read, writable)
    limit(memory_mb, own_user=identity.startswith("user"))
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _restrict_files(abi, readable, writable)
    return {"files": f"Landlock ABI {abi}", "network": network, "identity": identity}


def limit(memory_mb: int, *, own_user: bool = False) -> None:
    """Resource limits; the number of processes only for a user of its own, because it counts the user's."""
    limits = [
        (resource.RLIMIT_AS, memory_mb * 2**20),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ]
    if own_user:
        limits.append((resource.RLIMIT_NPROC, MAX_PROCESSES))
    for kind, value in limits:
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def keep_from_signalling() -> None:
    """Let this process and its descendants send no signal to, and trace no, process outside; where the kernel can."""
    if landlock_abi() >= 6:
        _enforce(_ruleset(struct.pack("QQQ", 0, 0, _ALL_SCOPES)))


def _own_network() -> bool:
    """Leave the network. As root, or else through a user namespace in which nothing else changes."""
    uid, gid = os.geteuid(), os.getegid()
    if _LIBC.unshare(_CLONE_NEWNET) == 0:
        return True
    if uid == 0 or _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    with contextlib.suppress(OSError):
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    return True


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _become(uid: int | None, gid: int, must_read: Iterable[str], writable: str) -> str:
    if os.geteuid() != 0:
        _drop_capabilities()  # those that a user namespace gave
        return "the trainer's user"
    if uid is not None:
        os.chown(writable, uid, gid)
        if _can_read(uid, gid, must_read):
            _set_user(uid, gid)
            return f"user {uid}"
        os.chown(writable, 0, 0)
    _drop_capabilities()
    return "root without capabilities"


def _set_user(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _can_read(uid: int, gid: int, paths: Iterable[str]) -> bool:
    """Whether the user can, tried in a process that becomes it."""
    child = os.fork()
    if child == 0:
        try:
            _set_user(uid, gid)
            os._exit(0 if all(os.access(path, os.R_OK) for path in paths) else 1)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _drop_capabilities() -> None:
    for capability in range(64):
        _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    _LIBC.capset(header, ctypes.create_string_buffer(struct.pack("6I", *[0] * 6)))


def _restrict_files(abi: int, readable: Iterable[str], writable: str) -> None:
    handled = _ALL_FILES.get(abi, _ALL_FILES_SINCE_5)
    fields = [handled] + [_ALL_TCP] * (abi >= 4) + [_ALL_SCOPES] * (abi >= 6)
    ruleset = _ruleset(struct.pack(f"{len(fields)}Q", *fields))
    for path in readable:
        _allow(ruleset, path, handled & (_READ_FILE | _READ_DIR))
    _allow(ruleset, writable, handled & ~_NEVER)
    _allow(ruleset, os.devnull, handled & (_READ_FILE | _WRITE_FILE))
    _enforce(ruleset)


def _ruleset(attributes: bytes) -> int:
    return _checked(
        _LIBC.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0), "making a ruleset"
    )


def _allow(ruleset: int, path: str, rights: int) -> None:
    with _opened(path) as (handle, is_folder):
        if handle is not None:
            rule = struct.pack("=Qi", rights if is_folder else rights & _FILE_RIGHTS, handle)
            _checked(_LIBC.syscall(_ADD_RULE, ruleset, 1, rule, 0), f"a rule for {path}")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[int | None, bool]]:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        yield None, False
        return
    try:
        yield handle, os.path.isdir(path)
    finally:
        os.close(handle)


def _enforce(ruleset: int) -> None:
    try:
        _checked(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0), "entering the ruleset")
    finally:
        os.close(ruleset)


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise ConfinementError(f"Landlock: {what} failed: {os.strerror(ctypes.get_errno())}")
    return result
