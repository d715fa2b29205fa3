"""What a small base model is made from: its tasks, the documents about them, its size and its schooling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from scgrpo.tasks.procedural import ProceduralTask
from scgrpo.tiny.vocabulary import Vocabulary

Kind = Literal["plain", "verified", "attempt"]
KIND_SHARES: dict[Kind, float] = {"plain": 0.56, "verified": 0.35, "attempt": 0.09}


@dataclass(frozen=True)
class Subject:
    """A task in the documents.

    Attributes:
        share: probability that a document is about this task.
        skill: probability that a careless document's imperfect solution is meant to be correct.
        plain_band: lowest and highest plain pass rate that the model is meant to have.
        verified_min: lowest pass rate with a correct demonstration that it is meant to have.
    """

    task: ProceduralTask = field(repr=False)
    skill: float
    plain_band: tuple[float, float] = (0.2, 0.5)
    verified_min: float = field(default=0.75, repr=False)  # it decides no weights
    share: float = 1.0


@dataclass(frozen=True)
class Shape:
    """Size of the Qwen3 model; every head has its own keys and values, embeddings are tied."""

    hidden_size: int = 64
    intermediate_size: int = 192
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    head_dim: int = 16
    context_length: int = 256


# 27 M parameters: for a GPU.
LARGE = Shape(hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8, head_dim=64)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a base model but its seed. See `documents.py` for what the shares mean.

    Attributes:
        steps: optimizer steps, of `BATCH_SIZE` documents each.
        schooling_frac: share of the steps whose documents are skilled, the first ones.
        schooling_skill: probability that a solution in them is meant to be correct.
        kind_shares: of the kinds of documents.
        follow: how often a document with a verified demonstration repeats it.
        recover: how often it strays from the demonstration and finds back (`ProceduralTask.recovery`), of the
            documents that would repeat it.
        task_words: order of the tasks' words in the vocabulary; None: as the tasks name them.
    """

    subjects: tuple[Subject, ...]
    steps: int
    schooling_frac: float = 0.65
    schooling_skill: float = 0.9
    kind_shares: Mapping[Kind, float] = field(default_factory=lambda: dict(KIND_SHARES))
    follow: float = 0.9
    recover: float = 0.0
    shape: Shape = Shape()
    task_words: tuple[str, ...] | None = None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        words = self.task_words or tuple(word for subject in self.subjects for word in subject.task.words)
        return Vocabulary(tuple(dict.fromkeys(words)), self.shape.context_length)
