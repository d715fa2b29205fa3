"""Every error the package raises on purpose.

Each class also inherits the standard error it refines, so `except ValueError` keeps working, and each
carries two texts: what is wrong (`problem`) and what to do about it (`remedy`).
"""

from __future__ import annotations


class ScgrpoError(Exception):
    """Base of all errors raised by scgrpo. `str(error)` is the problem followed by the remedy."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        # Both arguments go to Exception.args: that is what makes the error survive pickling between processes.
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}".strip()


class ConfigError(ScgrpoError, ValueError):
    """Settings that are unknown, out of range or impossible together."""


class ShapeError(ScgrpoError, ValueError):
    """Tensors or lists whose lengths do not fit each other."""


class NonFiniteError(ScgrpoError, ArithmeticError):
    """NaN or infinity in rewards, logits, weights or the loss: training on it would destroy the model."""


class VerifierError(ScgrpoError, RuntimeError):
    """A verifier that cannot grade anything at all (a single failure is a `Verdict`, not an exception)."""


class SandboxError(ScgrpoError, RuntimeError):
    """A sandbox that cannot be opened safely, or is closed. What code does inside is a result, never an exception."""


class RolloutError(ScgrpoError, RuntimeError):
    """Rollouts that will not come: whoever makes or grades them has died, hangs, or fails every time."""


class DataError(ScgrpoError, ValueError):
    """A data set whose rows are missing, malformed or without the columns a task needs."""


class MissingDataError(DataError):
    """Data that is not on this machine and cannot be fetched now; what is there and malformed is a `DataError`."""


class RunError(ScgrpoError, OSError):
    """A run directory that is missing, already in use, or written by an incompatible version."""


class MissingExtraError(ScgrpoError, ImportError):
    """An optional dependency is not installed; the remedy names the extra."""


class IncompatibleHostError(ScgrpoError, RuntimeError):
    """The training framework (TRL) no longer offers a seam this package builds on."""
