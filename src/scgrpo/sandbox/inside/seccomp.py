"""The seccomp filter: a list of allowed system calls, a few with conditions on their arguments."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from typing import Literal

from .syscalls import Architecture

ALLOW, FAIL, KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16  # offsets in struct seccomp_data

_CLONE_THREAD = 0x00010000
_NEW_NAMESPACES = 0x7E020000 | 0x00000080  # CLONE_NEW*, CLONE_NEWTIME included
_PRCTL = (15, 16, 0x53564D41)  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIONCLEX FIOCLEX
# F_DUPFD F_GETFD F_SETFD F_GETFL F_SETFL F_DUPFD_CLOEXEC F_GETPIPE_SZ F_GET_SEALS. Others reach other processes:
# F_SETOWN sends them signals, leases and locks stop them, hints stay on files.
_FCNTL = (0, 1, 2, 3, 4, 1030, 1032, 1034)

_OPEN_FLAGS_AT = {"openat": 2, "open": 1}  # which argument
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_libc = ctypes.CDLL(None, use_errno=True)

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand
Files = Literal["any", "reading", "none"]


def build(architecture: Architecture, pid: int, files: Files = "any") -> list[Instruction]:
    """The filter's program (classic BPF) for the process `pid`.

    Args:
        files: which may be opened, as far as a filter can tell: "any" (Landlock decides), "reading" or "none".

    Threads are allowed, processes are not: `clone` needs CLONE_THREAD, and `clone3`, whose flags a filter cannot see,
    answers ENOSYS so that libc uses `clone`. Signals go to the process itself only. Limits can be set on itself only.
    """
    numbers = dict(architecture.without_files() if files == "none" else architecture.allowed)
    checked = architecture.checked
    opening = [] if files != "reading" else [name for name in _OPEN_FLAGS_AT if name in numbers]
    program: list[Instruction] = [_load(_ARCHITECTURE_AT), (_EQUAL, 1, 0, architecture.audit), _give(KILL)]
    program.append(_load(_NUMBER_AT))
    if architecture.foreign_from is not None:
        program += [(_AT_LEAST, 0, 1, architecture.foreign_from), _give(KILL)]
    for name in opening:
        reading = [(_ANY_BIT, 0, 1, _WRITING), _give(FAIL | errno.EROFS), _give(ALLOW)]
        program += _when(numbers.pop(name), [_load(_argument(_OPEN_FLAGS_AT[name])), *reading])
    for number in numbers.values():
        program += [(_EQUAL, 0, 1, number), _give(ALLOW)]
    flags = [
        (_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        _give(FAIL | errno.EPERM),
        (_ANY_BIT, 0, 1, _CLONE_THREAD),
        _give(ALLOW),
    ]
    program += _when(checked["clone"], [_load(_argument(0)), *flags, _give(FAIL | errno.EPERM)])
    program += _when(checked["clone3"], [_give(FAIL | errno.ENOSYS)])
    program += _when(checked["prlimit64"], _if_argument(0, [0]))
    program += _when(checked["prctl"], _if_argument(0, _PRCTL))
    program += _when(checked["fcntl"], _if_argument(1, _FCNTL))
    program += _when(checked["ioctl"], _if_argument(1, _IOCTL, errno.ENOTTY))
    for name in ("kill", "tgkill"):
        program += _when(checked[name], _if_argument(0, [pid]))
    program.append(_give(FAIL | errno.EPERM))
    return program


def _argument(index: int) -> int:
    """Where the low half of an argument is; both architectures are little-endian."""
    return _ARGUMENTS_AT + 8 * index


def _load(offset: int) -> Instruction:
    return (_LOAD, 0, 0, offset)


def _give(verdict: int) -> Instruction:
    return (_RETURN, 0, 0, verdict)


def _when(number: int, block: list[Instruction]) -> list[Instruction]:
    """Run a block, which must end in a return, for one system call."""
    return [(_EQUAL, 0, len(block), number), *block]


def _if_argument(index: int, values: Iterable[int], error: int = errno.EPERM) -> list[Instruction]:
    block = [_load(_argument(index))]
    for value in values:
        block += [(_EQUAL, 0, 1, value), _give(ALLOW)]
    return [*block, _give(FAIL | error)]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


class Filter:
    """A program ready to be installed in any process: packed once, as building it takes longer than a run may."""

    _SOME_PID = 0x5AFEB0C5  # no process has it

    def __init__(self, architecture: Architecture, files: Files) -> None:
        self.architecture = architecture
        program = build(architecture, self._SOME_PID, files)
        self.length = len(program)
        self.packed = b"".join(struct.pack("HBBI", *instruction) for instruction in program)

    def install(self) -> None:
        """Put the filter on this process, all its threads and whatever it starts, for ever. Needs no_new_privs.

        Raises:
            OSError: the kernel refuses.
        """
        packed = self.packed.replace(struct.pack("I", self._SOME_PID), struct.pack("I", os.getpid()))
        buffer = ctypes.create_string_buffer(packed)
        argument = _Program(self.length, ctypes.addressof(buffer))
        set_filter, all_threads = 1, 1
        if _libc.syscall(self.architecture.seccomp, set_filter, all_threads, ctypes.byref(argument)) != 0:
            raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
