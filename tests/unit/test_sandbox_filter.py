"""The seccomp program of both architectures, run by a small interpreter: a machine can run only one itself."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from scgrpo.sandbox.inside.seccomp import ALLOW, FAIL, KILL, build
from scgrpo.sandbox.inside.syscalls import ARCHITECTURES, Architecture

PID = 4321
REFUSED = FAIL | errno.EPERM
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def decide(architecture: Architecture, number: int, *args: int, audit: int | None = None, files: str = "any") -> int:
    """What the kernel would make of a system call: the subset of classic BPF that `build` uses."""
    data = {0: number, 4: architecture.audit if audit is None else audit}
    data |= {16 + 8 * index: value & 0xFFFFFFFF for index, value in enumerate((*args, *[0] * (6 - len(args))))}
    program = build(architecture, PID, files)  # type: ignore[arg-type]
    assert len(program) < 4096
    counter = accumulator = 0
    while True:
        code, if_true, if_false, operand = program[counter]
        counter += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            accumulator = data[operand]
            continue
        holds = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: bool(accumulator & operand)}[code]
        assert 0 <= if_true < 256
        assert 0 <= if_false < 256
        counter += if_true if holds else if_false


@pytest.fixture(params=ARCHITECTURES.values(), ids=lambda item: item.name)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return request.param


def test_numbers_are_the_kernel_headers(architecture: Architecture) -> None:
    header = HEADERS[architecture.name]
    if not header.exists():
        pytest.skip(f"{header} is not installed")
    pattern = r"#define __NR(?:3264)?_(\w+) (\d+)"
    true = {match[1]: int(match[2]) for match in re.finditer(pattern, header.read_text())}
    true.setdefault("newfstatat", true.get("fstatat", -1))  # its name in the generic table
    ours = {**architecture.allowed, **architecture.checked, "seccomp": architecture.seccomp}
    assert {name: true.get(name) for name in ours} == ours


def test_allowed_calls_pass_and_all_others_fail(architecture: Architecture) -> None:
    allowed = set(architecture.allowed.values())
    checked = set(architecture.checked.values())
    assert len(allowed) == len(architecture.allowed)
    assert not allowed & checked
    for number in range(600):
        if number not in checked:
            assert decide(architecture, number) == (ALLOW if number in allowed else REFUSED), number


def test_nothing_dangerous_is_allowed(architecture: Architecture) -> None:
    dangerous = (
        "fork vfork execve execveat socket connect socketpair sendto sendmsg recvmsg bind ptrace process_vm_readv "
        "mount unshare setns chroot pivot_root io_uring_setup bpf perf_event_open userfaultfd keyctl memfd_create "
        "openat2 open_by_handle_at setuid setresuid capset kill tkill rt_sigqueueinfo pidfd_open pidfd_send_signal "
        "mkdir unlink unlinkat rename renameat2 link symlink symlinkat chmod fchmodat chown truncate ftruncate "
        "fallocate utimensat personality seccomp landlock_restrict_self sched_setaffinity setpriority setsid "
        "chdir fchdir ioperm iopl shmget"
    )
    assert not set(dangerous.split()) & set(architecture.allowed)


def test_conditions_on_arguments(architecture: Architecture) -> None:
    number = architecture.checked
    thread, process = 0x3D0F00, 0x01200011
    assert decide(architecture, number["clone"], thread) == ALLOW
    assert decide(architecture, number["clone"], process) == REFUSED
    for namespace in (0x10000000, 0x00020000, 0x40000000, 0x20000000, 0x04000000, 0x08000000, 0x02000000, 0x80):
        assert decide(architecture, number["clone"], thread | namespace) == REFUSED
    assert decide(architecture, number["clone3"], 0) == FAIL | errno.ENOSYS
    for name in ("kill", "tgkill"):
        assert decide(architecture, number[name], PID) == ALLOW
        for other in (1, 0, -1, PID + 1, -PID):
            assert decide(architecture, number[name], other) == REFUSED
    assert decide(architecture, number["prlimit64"], 0) == ALLOW
    assert decide(architecture, number["prlimit64"], 1) == REFUSED
    assert decide(architecture, number["prctl"], 15) == ALLOW
    for option in (1, 4, 8, 22, 23, 24, 38, 47):
        assert decide(architecture, number["prctl"], option) == REFUSED
    assert decide(architecture, number["ioctl"], 1, 0x5401) == ALLOW
    assert decide(architecture, number["ioctl"], 1, 0x5412) == FAIL | errno.ENOTTY  # TIOCSTI


def test_another_abi_is_fatal(architecture: Architecture) -> None:
    for other in ARCHITECTURES.values():
        if other is not architecture:
            assert decide(architecture, 0, audit=other.audit) == KILL
    assert decide(architecture, 0, audit=0x40000003) == KILL  # i386
    if architecture.foreign_from is not None:
        assert decide(architecture, architecture.foreign_from + 1) == KILL


def test_opening_files_can_be_for_reading_only_or_not_at_all(architecture: Architecture) -> None:
    read, create = 0x80000, 0x80241
    numbers = architecture.allowed
    assert decide(architecture, numbers["openat"], 0, 0, read, files="reading") == ALLOW
    assert decide(architecture, numbers["openat"], 0, 0, create, files="reading") == FAIL | errno.EROFS
    assert decide(architecture, numbers["openat"], 0, 0, read, files="none") == REFUSED
    assert decide(architecture, numbers["read"], files="none") == ALLOW
    if "open" in numbers:
        assert decide(architecture, numbers["open"], 0, create, files="reading") == FAIL | errno.EROFS
        assert decide(architecture, numbers["open"], 0, read, files="none") == REFUSED
