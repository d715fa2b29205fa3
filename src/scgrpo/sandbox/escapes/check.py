"""Runs the corpus and says what was held. The host watches too: a program that gets out does not have to tell."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scgrpo.sandbox.base import Limits, Outcome, Program, Sandbox
from scgrpo.sandbox.escapes.judged import CHEATS, Cheat
from scgrpo.sandbox.escapes.programs import PROGRAMS, Attack

_JUDGE_LIMITS = Limits(wall_s=20.0, memory_mb=256)
_SHORT = Limits(wall_s=2.0, memory_mb=256)
_WAITS = ("waiting for the deadline", "a reply without end")
ALIVE = Program("print(6 * 7)")


@dataclass(frozen=True)
class Finding:
    """What became of one attack. `held`: False means that something got out, None that the sandbox gave no answer."""

    name: str
    group: str
    expected: str
    seen: str
    held: bool | None


@dataclass
class Bait:
    """Things on this machine that no program may reach, and how to see that one has."""

    folder: Path
    secret: Path
    tcp: socket.socket
    udp: socket.socket
    unix: socket.socket

    @property
    def arguments(self) -> tuple[str, ...]:
        port, path = self.tcp.getsockname()[1], self.unix.getsockname()
        return (sys.executable, str(os.getpid()), str(self.secret), str(port), path, str(self.folder))

    def taken(self) -> str:
        """What has been touched; empty: nothing."""
        if select.select([self.tcp, self.udp, self.unix], [], [], 0)[0]:
            return "a connection arrived"
        if sorted(path.name for path in self.folder.iterdir()) != ["secret.txt", "socket"]:
            return "the folder has changed"
        if self.secret.read_text() != "a secret of the host":
            return "the file has changed"
        return ""


@contextmanager
def bait() -> Iterator[Bait]:
    """Lay it out, and clear it away."""
    folder = Path(tempfile.mkdtemp(prefix="scgrpo-bait-"))
    try:
        folder.chmod(0o777)  # only the sandbox is to stop a write
        secret = folder / "secret.txt"
        secret.write_text("a secret of the host")
        secret.chmod(0o666)
        with (
            socket.socket() as tcp,
            socket.socket(type=socket.SOCK_DGRAM) as udp,
            socket.socket(socket.AF_UNIX) as unix,
        ):
            tcp.bind(("127.0.0.1", 0))
            tcp.listen()
            udp.bind(tcp.getsockname())
            unix.bind(str(folder / "socket"))
            (folder / "socket").chmod(0o777)
            unix.listen()
            yield Bait(folder, secret, tcp, udp, unix)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def secret_environment() -> Iterator[None]:
    """A secret in the environment, as a trainer's has; open the sandbox within."""
    os.environ["SCGRPO_BAIT_TOKEN"] = "secret-" + secrets.token_hex(8)
    try:
        yield
    finally:
        with contextlib.suppress(KeyError):
            del os.environ["SCGRPO_BAIT_TOKEN"]


def run_attack(sandbox: Sandbox, attack: Attack, lure: Bait) -> Finding:
    """Run a program, look at what it and the host say, and see that the sandbox still works."""
    result = sandbox.run(Program(attack.source, arguments=lure.arguments), attack.limits)
    expected = "/".join(sorted(attack.allowed))
    seen = f"{result.outcome} after {result.wall_s:.2f} s"
    broken = "ESCAPED" in result.stdout or lure.taken()
    if broken:
        lines = [line for line in result.stdout.splitlines() if "ESCAPED" in line]
        return Finding(attack.name, attack.group, expected, "; ".join([*lines[:3], lure.taken()]), False)
    if result.outcome is Outcome.ERROR:
        return Finding(attack.name, attack.group, expected, f"{seen}: {result.detail}", None)
    if sandbox.run(ALIVE).stdout != "42\n":
        return Finding(attack.name, attack.group, expected, f"{seen}; then the sandbox was broken", False)
    return Finding(attack.name, attack.group, expected, seen, result.outcome in attack.allowed)


def run_cheat(sandbox: Sandbox, cheat: Cheat) -> Finding:
    """Judge a candidate that must not pass."""
    judged = sandbox.judge(cheat.candidate, cheat.tests, _SHORT if cheat.name in _WAITS else _JUDGE_LIMITS)
    seen = f"{judged.outcome}: {judged.detail}" if judged.detail else str(judged.outcome)
    held = None if judged.passed is None else not judged.passed
    return Finding(cheat.name, "judge", "not passed", "PASSED" if judged.passed else seen, held)


def run_corpus(sandbox: Sandbox) -> Iterator[Finding]:
    """All attacks, one after the other; on a remote runner those of programs, as it judges nothing."""
    with bait() as lure:
        for attack in PROGRAMS:
            yield run_attack(sandbox, attack, lure)
    for cheat in CHEATS if sandbox.level != "remote" else ():
        yield run_cheat(sandbox, cheat)
