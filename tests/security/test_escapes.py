"""The escape corpus, attack by attack, at every level that this machine gives."""

from __future__ import annotations

import pytest

from scgrpo.sandbox import Limits, Outcome, Program
from scgrpo.sandbox.escapes import CHEATS, PROGRAMS, Attack, Bait, Cheat, run_attack, run_cheat
from scgrpo.sandbox.worker import Launch
from scgrpo.sandbox.zygote import Zygote

# What a level without Landlock has to hold by other means; bounds on resources are the same code everywhere.
REACHING = [attack for attack in PROGRAMS if attack.group != "resources"]


def name_of(item: Attack | Cheat) -> str:
    return item.name


@pytest.mark.parametrize("attack", PROGRAMS, ids=name_of)
def test_programs_do_not_get_out(zygote: Zygote, lure: Bait, attack: Attack) -> None:
    finding = run_attack(zygote, attack, lure)
    assert finding.held is True, finding


@pytest.mark.parametrize("cheat", CHEATS, ids=name_of)
def test_candidates_that_cheat_do_not_pass(zygote: Zygote, cheat: Cheat) -> None:
    finding = run_cheat(zygote, cheat)
    assert finding.held is True, finding


@pytest.mark.parametrize("attack", REACHING, ids=name_of)
def test_without_landlock(closed: Zygote, lure: Bait, attack: Attack) -> None:
    finding = run_attack(closed, attack, lure)
    assert finding.held is True, finding


@pytest.mark.parametrize("attack", REACHING, ids=name_of)
def test_bubblewrap(wrapped: Zygote, lure: Bait, attack: Attack) -> None:
    finding = run_attack(wrapped, attack, lure)
    assert finding.held is True, finding


@pytest.mark.parametrize("cheat", CHEATS, ids=name_of)
def test_tests_of_the_cheats_can_be_passed(zygote: Zygote, cheat: Cheat) -> None:
    """Else the corpus would show nothing."""
    honest = {
        "assert 5 in f(2, 3)": "def f(*a): return [sum(a)]",
        "assert 6 in f(2, 3)": "def f(*a): return [6]",
        "xs = [3, 1, 2]": "def f(xs): return sorted(xs)",
        "assert list(f(2, 3))": "def f(*a): yield sum(a)",
        "assert abs(f(2, 3) - 5) < 1e-6\nassert isinstance": "def f(*a): return 5 if a == (2, 3) else 'x'",
    }
    candidate = next((code for start, code in honest.items() if cheat.tests.startswith(start)), None)
    judged = zygote.judge(candidate or "def f(*a): return sum(a)", cheat.tests, Limits(wall_s=60.0))
    assert judged.passed is True, judged


def test_the_corpus_can_fail(lure: Bait) -> None:
    """Without protection the corpus sees the escape, by what the program says and by what the host sees."""
    attacks = {attack.name: attack for attack in PROGRAMS}
    bare = Launch(insecure=True, missing=("landlock", "seccomp"))
    with Zygote(1, bare) as sandbox:
        assert sandbox.level == "none"
        assert run_attack(sandbox, attacks["read a world-readable file"], lure).held is False
        silent = Attack("silent", "network", attacks["TCP to loopback"].source.replace("escaped()", ""))
        finding = run_attack(sandbox, silent, lure)
    assert finding.held is False
    assert "connection" in finding.seen


def test_outcomes_of_bounds(zygote: Zygote) -> None:
    loop = zygote.run(Program("while True: pass"), Limits(wall_s=60.0, cpu_s=1))
    assert loop.outcome is Outcome.TIMEOUT
    assert "CPU" in loop.detail
    assert zygote.run(Program("import time; time.sleep(99)"), Limits(wall_s=0.5)).outcome is Outcome.TIMEOUT
    assert zygote.run(Program("print('x' * 10**7)")).outcome is Outcome.OUTPUT
    assert zygote.run(Program("import ctypes; ctypes.string_at(0)")).outcome is Outcome.KILLED
    memory = zygote.run(Program("x = bytearray(10**9)"), Limits(wall_s=60.0, memory_mb=256))
    assert (memory.outcome, memory.detail) == (Outcome.EXIT, "MemoryError")
