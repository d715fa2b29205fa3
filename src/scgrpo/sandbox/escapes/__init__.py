"""Attacks on the sandbox, as data, and the check that runs them."""

from scgrpo.sandbox.escapes.check import Bait, Finding, bait, run_attack, run_cheat, run_corpus, secret_environment
from scgrpo.sandbox.escapes.judged import CHEATS, Cheat
from scgrpo.sandbox.escapes.programs import PROGRAMS, Attack

__all__ = [
    "CHEATS",
    "PROGRAMS",
    "Attack",
    "Bait",
    "Cheat",
    "Finding",
    "bait",
    "run_attack",
    "run_cheat",
    "run_corpus",
    "secret_environment",
]
