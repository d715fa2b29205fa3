"""What a task is: rows of prompts, and a verifier that can say "I could not grade this"."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

Split = Literal["train", "eval"]
# One problem: "problem_id" (str), "prompt" (chat messages) and whatever columns the verifier needs (JSON values).
Row = dict[str, Any]
Message = dict[str, Any]
# What a model wrote: text, or, in an environment, the messages of the whole transcript.
Completion = str | list[Message]


class Status(StrEnum):
    """How a verification ended."""

    GRADED = "graded"
    ERROR = "error"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class Verdict:
    """Outcome of one verification. `score` is NaN unless `status` is GRADED: broken is not wrong."""

    score: float
    status: Status = Status.GRADED
    detail: str = ""

    @classmethod
    def error(cls, detail: str) -> Verdict:
        return cls(math.nan, Status.ERROR, detail)

    @classmethod
    def timeout(cls, detail: str) -> Verdict:
        return cls(math.nan, Status.TIMEOUT, detail)


@dataclass(frozen=True)
class Canned:
    """One row with completions whose verdicts are known: what `--dry-run` grades before anything is trained."""

    row: Row
    right: tuple[Completion, ...]
    wrong: tuple[Completion, ...]


class Task(ABC):
    """Data, prompts and a verifier. Knows nothing of models or training.

    Attributes:
        name: registry name; also the name of its reward function, hence of the metric `rewards/<name>/mean`.
        template: name of the teacher template (`scgrpo.teacher.prompts.TEMPLATES`) that fits its prompts.
        success_threshold: score from which a completion counts as solved.
        needs: what it takes besides this package, in a few words (`extra math`); "" for nothing.
    """

    name: str
    template: str = "generic"
    success_threshold: float = 0.5
    needs: str = ""

    @abstractmethod
    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        """Rows of a split, always the same ones in the same order; train and eval are disjoint."""

    @abstractmethod
    def verify(self, completions: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """One verdict per completion. Never raises for a bad completion and never hangs. A host may call it from
        several threads at once, except for tasks with environments."""

    @abstractmethod
    def canned(self) -> Canned:
        """A row with known right and wrong completions."""

    def close(self) -> None:  # noqa: B027 (most tasks hold nothing)
        """Release worker processes, if any."""
