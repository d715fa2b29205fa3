"""What the tiny model is pre-trained on: synthetic chain-of-thought documents of the two tiny tasks.

Each document is one conversation. Three kinds:

    plain     user: problem                                    -> imperfect solution
    verified  system: verified {correct solution}, user: problem -> mostly that solution again, else an imperfect one
    attempt   system: attempt {usually wrong try}, user: problem -> imperfect solution, independent of the try

An imperfect solution is a correct one with probability `skill`, otherwise an aimless attempt. The first documents,
the schooling, are skilled: the model learns what works. The later ones are careless, and at temperature 1 the model
becomes as careless as they are: it fails often, though it could do better. Reinforcement learning can find that.
Ending with documents of a given skill also makes the pass rate a matter of the recipe and not of luck: models that
are stopped while they still learn differ much from seed to seed.
Only training problems are used; the held-out ones appear in no document.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from scgrpo.tasks.base import Row
from scgrpo.tasks.countdown import CountdownTask
from scgrpo.tasks.procedural import ProceduralTask
from scgrpo.tasks.reach import ReachTask

Kind = Literal["plain", "verified", "attempt"]


@dataclass(frozen=True)
class Subject:
    """One task as the documents show it.

    Attributes:
        share: probability that a document is about this task.
        skill: probability that a careless document's imperfect solution is meant to be correct.
    """

    task: ProceduralTask
    share: float
    skill: float


SUBJECTS = (
    Subject(ReachTask(), share=0.5, skill=0.38),
    Subject(CountdownTask(), share=0.5, skill=0.65),
)
SCHOOLING_SKILL = 0.9
KIND_SHARES: dict[Kind, float] = {"plain": 0.56, "verified": 0.35, "attempt": 0.09}
# How often a document with a verified demonstration repeats it.
FOLLOW = 0.9


@dataclass(frozen=True)
class Document:
    """One training example: the loss is on the completion and its end token only."""

    messages: list[dict[str, str]]
    completion: str


def conditioned(row: Row, kind: Kind, demonstration: str) -> list[dict[str, str]]:
    """The row's prompt with a demonstration in the system message, in the words of the `tiny` teacher template."""
    return [{"role": "system", "content": f"{kind} {demonstration}"}, *row["prompt"]]


class Documents:
    """An endless, seeded stream of documents."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._rows = {subject.task.name: subject.task.rows("train") for subject in SUBJECTS}

    def batch(self, num_documents: int, *, schooling: bool = False) -> list[Document]:
        """Documents of one kind, so that short prompts need no padding for long ones."""
        kinds, shares = zip(*KIND_SHARES.items(), strict=True)
        kind = self._rng.choices(kinds, shares)[0]
        return [self._document(kind, schooling) for _ in range(num_documents)]

    def _document(self, kind: Kind, schooling: bool) -> Document:
        rng = self._rng
        subject = rng.choices(SUBJECTS, [subject.share for subject in SUBJECTS])[0]
        task, row = subject.task, rng.choice(self._rows[subject.task.name])
        skilled = rng.random() < (SCHOOLING_SKILL if schooling else subject.skill)
        completion = task.solution(row, rng) if skilled else task.attempt(row, rng)
        if kind == "plain":
            return Document(row["prompt"], completion)
        demonstration = task.solution(row, rng) if kind == "verified" else task.attempt(row, rng)
        if kind == "verified" and rng.random() < FOLLOW:
            completion = demonstration
        return Document(conditioned(row, kind, demonstration), completion)
