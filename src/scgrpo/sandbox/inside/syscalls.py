"""System calls a confined process may make, by number and architecture. Everything not here fails with EPERM."""

from __future__ import annotations

from dataclasses import dataclass

# Opening files, which Landlock restricts to the standard library. Without Landlock they are left out.
_FILES = ("openat", "getdents64", "readlinkat", "newfstatat", "statx", "faccessat", "faccessat2")
_FILES_X86 = ("open", "stat", "lstat", "access", "readlink")

_X86_64 = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
    "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "access": 21, "pipe": 22, "select": 23,
    "sched_yield": 24, "mremap": 25, "madvise": 28, "dup": 32, "dup2": 33, "nanosleep": 35, "getitimer": 36,
    "alarm": 37, "setitimer": 38, "getpid": 39, "exit": 60, "uname": 63, "getcwd": 79, "readlink": 89,
    "umask": 95, "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102,
    "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "getpgrp": 111, "getgroups": 115, "getresuid": 118,
    "getresgid": 120, "getpgid": 121, "getsid": 124, "rt_sigpending": 127, "rt_sigtimedwait": 128, "sigaltstack": 131,
    "sched_getparam": 143, "sched_getscheduler": 145, "gettid": 186, "time": 201, "futex": 202,
    "sched_getaffinity": 204, "getdents64": 217, "set_tid_address": 218, "restart_syscall": 219,
    "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "epoll_wait": 232,
    "epoll_ctl": 233, "openat": 257, "newfstatat": 262, "readlinkat": 267, "faccessat": 269, "pselect6": 270,
    "ppoll": 271, "set_robust_list": 273, "get_robust_list": 274, "epoll_pwait": 281, "eventfd2": 290,
    "epoll_create1": 291, "dup3": 292, "pipe2": 293, "getcpu": 309, "getrandom": 318, "membarrier": 324,
    "statx": 332, "rseq": 334, "faccessat2": 439,
}  # fmt: skip
_X86_64_CHECKED = {
    "ioctl": 16, "fcntl": 72, "clone": 56, "kill": 62, "prctl": 157, "tgkill": 234, "prlimit64": 302, "clone3": 435,
}  # fmt: skip

_AARCH64 = {
    "getcwd": 17, "eventfd2": 19, "epoll_create1": 20, "epoll_ctl": 21, "epoll_pwait": 22, "dup": 23, "dup3": 24,
    "faccessat": 48, "openat": 56, "close": 57, "pipe2": 59, "getdents64": 61, "lseek": 62, "read": 63,
    "write": 64, "readv": 65, "writev": 66, "pread64": 67, "pwrite64": 68, "pselect6": 72, "ppoll": 73,
    "readlinkat": 78, "newfstatat": 79, "fstat": 80, "exit": 93, "exit_group": 94, "set_tid_address": 96, "futex": 98,
    "set_robust_list": 99, "get_robust_list": 100, "nanosleep": 101, "getitimer": 102, "setitimer": 103,
    "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "sched_getscheduler": 120,
    "sched_getparam": 121, "sched_getaffinity": 123, "sched_yield": 124, "restart_syscall": 128, "sigaltstack": 132,
    "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigpending": 136, "rt_sigtimedwait": 137, "rt_sigreturn": 139,
    "getresuid": 148, "getresgid": 150, "times": 153, "getpgid": 155, "getsid": 156, "getgroups": 158, "uname": 160,
    "getrlimit": 163, "getrusage": 165, "umask": 166, "getcpu": 168, "gettimeofday": 169, "getpid": 172,
    "getppid": 173, "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177, "gettid": 178, "sysinfo": 179,
    "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226, "madvise": 233, "getrandom": 278,
    "membarrier": 283, "statx": 291, "rseq": 293, "faccessat2": 439,
}  # fmt: skip
_AARCH64_CHECKED = {
    "fcntl": 25, "ioctl": 29, "kill": 129, "tgkill": 131, "prctl": 167, "clone": 220, "prlimit64": 261, "clone3": 435,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """Numbers of one architecture.

    Attributes:
        audit: AUDIT_ARCH_*, what the kernel tells a filter.
        allowed: system calls allowed whatever their arguments.
        checked: those of which `seccomp.build` looks at the arguments.
        seccomp: number of the call that installs a filter.
        foreign_from: calls from this number on belong to another ABI (x32) and are fatal; None: there is none.
    """

    name: str
    audit: int
    allowed: dict[str, int]
    checked: dict[str, int]
    seccomp: int
    foreign_from: int | None = None

    def without_files(self) -> dict[str, int]:
        """`allowed` for a process that may open nothing."""
        return {name: number for name, number in self.allowed.items() if name not in (*_FILES, *_FILES_X86)}


ARCHITECTURES = {
    "x86_64": Architecture("x86_64", 0xC000003E, _X86_64, _X86_64_CHECKED, 317, 0x40000000),
    "aarch64": Architecture("aarch64", 0xC00000B7, _AARCH64, _AARCH64_CHECKED, 277),
}
