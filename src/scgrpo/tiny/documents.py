"""What the small models are pre-trained on: synthetic chain-of-thought documents about their tasks.

Each document is one conversation. Three kinds:

    plain     user: problem                                    -> imperfect solution
    verified  system: verified {correct solution}, user: problem -> mostly that solution again, else an imperfect one
    attempt   system: attempt {usually wrong try}, user: problem -> imperfect solution, independent of the try

With a recipe's `recover`, some verified documents stray from the demonstration and find back. Without them a model
that has left the demonstration's path has never seen what the demonstration is still good for, and expects nothing.

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

from scgrpo.tasks.base import Completion, Row
from scgrpo.teacher.prompts import transcript
from scgrpo.tiny.recipe import Kind, Recipe


@dataclass(frozen=True)
class Document:
    """A prompt (chat messages) and the completion: text, or the transcript of a conversation."""

    messages: list[dict[str, str]]
    completion: Completion


def conditioned(row: Row, kind: Kind, demonstration: Completion) -> list[dict[str, str]]:
    """The prompt of a row with a demonstration, as the `tiny` teacher template builds it, on one line."""
    shown = " ".join(transcript(demonstration).split())
    return [{"role": "system", "content": f"{kind} {shown}"}, *row["prompt"]]


class Documents:
    """An endless seeded stream of documents."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe = recipe
        self._rng = random.Random(seed)
        self._rows = [subject.task.rows("train") for subject in recipe.subjects]
        self._kinds, self._kind_shares = zip(*recipe.kind_shares.items(), strict=True)
        self._shares = [subject.share for subject in recipe.subjects]

    def batch(self, num_documents: int, *, schooling: bool = False) -> list[Document]:
        """Documents of one kind, so that short prompts need no padding for long ones."""
        kind = self._rng.choices(self._kinds, self._kind_shares)[0]
        return [self._document(kind, schooling) for _ in range(num_documents)]

    def _document(self, kind: Kind, schooling: bool) -> Document:
        rng, recipe = self._rng, self.recipe
        index = rng.choices(range(len(recipe.subjects)), self._shares)[0]
        subject = recipe.subjects[index]
        task, row = subject.task, rng.choice(self._rows[index])
        skilled = rng.random() < (recipe.schooling_skill if schooling else subject.skill)
        completion = task.solution(row, rng) if skilled else task.attempt(row, rng)
        if kind == "plain":
            return Document(row["prompt"], completion)
        demonstration = task.demonstration(row, rng) if kind == "verified" else task.attempt(row, rng)
        if kind == "verified" and rng.random() < recipe.follow:
            strays = recipe.recover > 0 and rng.random() < recipe.recover
            completion = task.recovery(row, demonstration, rng) if strays else task.followed(demonstration, rng)
        return Document(conditioned(row, kind, demonstration), completion)
