"""Landlock: which files this process may open, and that it may reach no network and no other process by signals."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on every architecture
_ASK_VERSION = 1
_RULE_PATH = 1
WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
_FILE_RIGHTS = ((1, 13), (2, 14), (3, 15), (5, 16))  # from this ABI on: so many rights on files exist
_NETWORK = 0b11  # bind and connect TCP, ABI 4
_SCOPES = 0b11  # abstract unix sockets and signals, ABI 6

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """The kernel's Landlock ABI; 0: it has none, or it is switched off."""
    return max(0, _libc.syscall(_CREATE, None, 0, _ASK_VERSION))


def ruleset(rights: Mapping[str, int]) -> int:
    """A rule set (file descriptor) that denies everything except `rights` on files and below folders.

    Paths that do not exist are left out.

    Raises:
        OSError: the kernel refuses.
    """
    abi = version()
    bits = max((count for needs, count in _FILE_RIGHTS if abi >= needs), default=0)
    attributes = struct.pack("Q", (1 << bits) - 1)
    if abi >= 4:
        attributes += struct.pack("Q", _NETWORK)
    if abi >= 6:
        attributes += struct.pack("Q", _SCOPES)
    rules = _checked(_libc.syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0), "create")
    for path, wanted in rights.items():
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        allowed = wanted if os.path.isdir(path) else wanted & (READ_FILE | WRITE_FILE)
        rule = struct.pack("=Qi", allowed, handle)
        try:
            _checked(_libc.syscall(_ADD_RULE, rules, _RULE_PATH, rule, 0), path)
        finally:
            os.close(handle)
    return rules


def restrict(rules: int) -> None:
    """Put a rule set on this thread and whatever it starts, for ever. Needs no_new_privs.

    Raises:
        OSError: the kernel refuses.
    """
    _checked(_libc.syscall(_RESTRICT, rules, 0), "restrict")


def _checked(answer: int, what: str) -> int:
    if answer < 0:
        raise OSError(ctypes.get_errno(), f"landlock: {what}: {os.strerror(ctypes.get_errno())}")
    return answer
