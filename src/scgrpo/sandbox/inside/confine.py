"""From trusted code to a process that can only compute: limits, identity, Landlock, seccomp, in this order."""

from __future__ import annotations

import ctypes
import glob
import os
import platform
import resource
import socket
import struct
import sys
import sysconfig
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from . import landlock, seccomp
from .syscalls import ARCHITECTURES

# No real user has a number from here on (it is reserved in the usual tables). With its process id added, every run is
# a user of its own, so that a limit on processes counts its own threads only.
_UID_BASE = 1_879_048_192
_NOBODY = 65534
_THREADS = 128
_DESCRIPTORS = 64
_STACK_BYTES = 64 << 20
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _SIGKILL = 1, 4, 38, 9
_READ = landlock.READ_FILE | landlock.READ_DIR

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Allowance:
    """Limits of one process; see `scgrpo.sandbox.Limits`."""

    cpu_s: float | None
    memory_mb: int
    output_bytes: int


@dataclass
class Cage:
    """What all runs of a worker have in common, prepared once.

    Attributes:
        files: what the filter says about opening files.
        rights: what Landlock lets them open; None: there is no Landlock.
        rules: descriptor of the rule set made of `rights`.
        filter: None: there is none (the user's explicit word).
        own_bytes: address space that the interpreter has before any run.
    """

    files: seccomp.Files
    rights: Mapping[str, int] | None
    rules: int | None
    filter: seccomp.Filter | None
    own_bytes: int

    def enter(self, allowance: Allowance, parent: int, folder: str | None = None) -> None:
        """Confine this process for good, and end it with its `parent`. `folder` can be read in addition.

        Args:
            parent: its process id as known before the fork: it may be gone by now, and another one be the parent.

        Raises:
            OSError: a step failed, or the parent is gone; nothing untrusted may run.
        """
        rules = self.rules
        if folder is not None and self.rights is not None:
            rules = landlock.ruleset({**self.rights, folder: _READ})
        drops = os.geteuid() == 0
        self._limit(allowance, drops)
        if drops:
            _become_nobody()
        _drop_capabilities()
        hide()
        _prctl(_PR_SET_PDEATHSIG, _SIGKILL)  # after the change of identity, which would clear it
        if os.getppid() != parent:
            raise OSError("the worker is gone")
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        if rules is not None:
            landlock.restrict(rules)
        for descriptor in {rules, self.rules}:
            if descriptor is not None:
                os.close(descriptor)
        if self.filter is not None:
            self.filter.install()

    def _limit(self, allowance: Allowance, drops: bool) -> None:
        memory = self.own_bytes + (allowance.memory_mb << 20)
        limits = {
            resource.RLIMIT_AS: (memory, memory),
            resource.RLIMIT_FSIZE: (allowance.output_bytes, allowance.output_bytes),
            resource.RLIMIT_CORE: (0, 0),
            resource.RLIMIT_NOFILE: (_DESCRIPTORS, _DESCRIPTORS),
            resource.RLIMIT_STACK: (_STACK_BYTES, resource.RLIM_INFINITY),  # may grow: it is address space too
        }
        if allowance.cpu_s is not None:
            seconds = max(1, int(-(-allowance.cpu_s // 1)))
            limits[resource.RLIMIT_CPU] = (seconds, seconds + 1)  # SIGXCPU, which can be ignored; SIGKILL
        if drops:
            limits[resource.RLIMIT_NPROC] = (_THREADS, _THREADS)
        for which, (soft, hard) in limits.items():
            _, ceiling = resource.getrlimit(which)
            if ceiling != resource.RLIM_INFINITY:
                soft, hard = min(soft, ceiling), ceiling if hard == resource.RLIM_INFINITY else min(hard, ceiling)
            resource.setrlimit(which, (soft, hard))


def prepare(view: str, *, insecure: bool = False, missing: Collection[str] = ()) -> tuple[Cage, list[str]]:
    """The best cage this kernel gives, and what was found on the way.

    Args:
        view: "host": the worker sees all of the machine's files. "mounts": only those that runs may read.
        insecure: go on without any isolation where there is none.
        missing: "landlock" or "seccomp", to do as if the kernel lacked it.
    """
    architecture = None if "seccomp" in missing else ARCHITECTURES.get(platform.machine())
    abi = 0 if "landlock" in missing else landlock.version()
    notes = [f"Landlock ABI {abi}" if abi else "no Landlock (Linux 5.13 or later, and not switched off, has it)"]
    if architecture is None:
        notes.append(f"no filter of system calls for {platform.machine()}")
    rights = readable() if abi else None
    rules = landlock.ruleset(rights) if rights is not None else None
    without_landlock: seccomp.Files = "reading" if view == "mounts" else "none"
    files: seccomp.Files = "any" if rights is not None else without_landlock
    filter_ = None if architecture is None else seccomp.Filter(architecture, files)
    cage = Cage(files, rights, rules, filter_, address_space())
    complaint = _try(cage) if architecture is not None else "no seccomp"
    if complaint:
        notes.append(f"the trial run was not held: {complaint}")
        cage.filter = None
        if not insecure:
            raise OSError("; ".join(notes))
    else:
        notes.append("seccomp filter installed and tried")
    if os.geteuid() == 0:
        notes.append("runs are another user than root" if _can_become_nobody() else "runs stay root, no capabilities")
    return cage, notes


def readable() -> dict[str, int]:
    """Landlock rights on what Python needs: its standard library without installed packages, and shared libraries."""
    paths = sysconfig.get_paths()
    rights: dict[str, int] = {}
    for library in {os.path.realpath(paths["stdlib"]), os.path.realpath(paths["platstdlib"])}:
        rights[library] = landlock.READ_DIR  # names only; the contents follow, one by one
        for entry in os.listdir(library):
            if entry not in ("site-packages", "dist-packages", "__pycache__", "sitecustomize.py", "usercustomize.py"):
                rights[os.path.join(library, entry)] = _READ
        rights[os.path.join(library, "__pycache__")] = _READ
    for library in _libraries():
        rights[library] = _READ
    for path in ("/etc/ld.so.cache", "/dev/urandom", "/dev/random", "/dev/zero"):
        rights[path] = landlock.READ_FILE
    rights["/usr/share/zoneinfo"] = _READ
    rights["/dev/null"] = landlock.READ_FILE | landlock.WRITE_FILE
    return rights


def _libraries() -> set[str]:
    """Folders of the system's shared libraries, and single ones elsewhere."""
    found: set[str] = set(glob.glob(os.path.join(os.path.realpath(sys.base_prefix), "lib", "*.so*")))
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        mapped = {line.split(None, 5)[5].strip() for line in maps if ".so" in line and "/" in line}
    for path in mapped:
        folder = os.path.dirname(path)
        found.add(folder if folder.startswith(("/lib", "/usr/lib")) and "python" not in folder else path)
    return found


def _try(cage: Cage) -> str:
    """Confine a process and let it try what must fail. What succeeded, or went wrong; empty: all was held."""
    receive, send = os.pipe()
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        try:
            cage.enter(Allowance(cpu_s=5, memory_mb=64, output_bytes=1000), parent)
            os.write(send, _attempts().encode() or b"held")
        except BaseException as error:  # noqa: BLE001 (it is reported, and the process ends)
            os.write(send, repr(error).encode())
        os._exit(0)
    os.close(send)
    os.waitpid(pid, 0)
    with os.fdopen(receive, "rb") as answers:
        answer = answers.read().decode() or "no answer"
    return "" if answer == "held" else answer


def _attempts() -> str:
    succeeded = []
    for name, attempt in (
        ("opening a file", lambda: open("/etc/passwd").close()),
        ("making a socket", lambda: socket.socket().close()),
        ("starting a process", lambda: os.fork() or os._exit(0)),
    ):
        try:
            attempt()
        except OSError:
            continue
        succeeded.append(name)
    return ", ".join(succeeded)


def hide() -> None:
    """Let no process of the same user read this one's memory, environment or descriptors in /proc."""
    _prctl(_PR_SET_DUMPABLE, 0)


def _become_nobody() -> None:
    for number in (_UID_BASE + os.getpid(), _NOBODY):
        try:
            os.setgroups([])
            os.setresgid(number, number, number)
            os.setresuid(number, number, number)
            return
        except OSError:
            continue  # not mapped in this user namespace: root is nobody there already


def _can_become_nobody() -> bool:
    pid = os.fork()
    if pid == 0:
        _become_nobody()
        os._exit(0 if os.getuid() else 1)
    return os.waitpid(pid, 0)[1] == 0


def _drop_capabilities() -> None:
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    if _libc.capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()
