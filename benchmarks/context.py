"""What a case is given: the device, sizes that fit it, and the measured floor."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.measure import Clock, Floor, PeakMemory
from benchmarks.models import ModelShape, Rollouts

BF16, FP32 = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class HeadShape:
    """Tokens, hidden size, vocabulary."""

    tokens: int
    hidden: int
    words: int

    def __str__(self) -> str:
        return f"N = {self.tokens}, H = {self.hidden}, V = {self.words:,}"


@dataclass(frozen=True)
class Sizes:
    """A profile.

    Attributes:
        heads: shapes of the token KL. wide: the vocabulary of memory and precision.
        models: backbones by name, the first one for the cases that need just one.
        rollouts: of the update. sampled: of the whole step. prefix: (prompt, completion, group) of the teacher pass.
        growth: what each axis takes.
    """

    dtype: torch.dtype
    heads: tuple[HeadShape, ...]
    precision: HeadShape
    memory_tokens: tuple[int, ...]
    models: dict[str, ModelShape]
    rollouts: Rollouts
    sampled: Rollouts
    prefixes: tuple[tuple[int, int, int], ...]
    growth: dict[str, tuple[int, ...]]
    floor_size: int


@dataclass(frozen=True)
class Context:
    """See the module."""

    device: torch.device
    sizes: Sizes
    repetitions: int
    floor: Floor

    @property
    def clock(self) -> Clock:
        return Clock(self.device)

    @property
    def memory(self) -> PeakMemory:
        return PeakMemory(self.device)

    @property
    def model(self) -> ModelShape:
        """The first of the profile's models."""
        return next(iter(self.sizes.models.values()))


SIZES = {
    "cpu": Sizes(
        dtype=FP32,
        heads=(HeadShape(256, 1024, 151_936), HeadShape(128, 2048, 151_936), HeadShape(512, 128, 151_936)),
        precision=HeadShape(128, 1024, 151_936),
        memory_tokens=(256, 1024),
        models={"6 layers x 256": ModelShape()},
        rollouts=Rollouts(),
        sampled=Rollouts(completion=64, groups=2),
        prefixes=((320, 256, 8), (832, 768, 8)),
        growth={
            "vocabulary": (1024, 4096, 32_768, 151_936, 262_144),
            "completion": (64, 256, 768),
            "group": (2, 4, 8, 16),
            "solved": (0, 1, 2, 4, 7, 8),
            "demonstration": (32, 128, 256, 768),
        },
        floor_size=2048,
    ),
    "cuda": Sizes(
        dtype=BF16,
        heads=(HeadShape(8192, 1024, 151_936), HeadShape(8192, 2048, 151_936), HeadShape(4096, 4096, 151_936)),
        precision=HeadShape(512, 1024, 151_936),
        memory_tokens=(2048, 8192),
        models={
            "0.6B": ModelShape(28, 1024, 3072, 16, 8, 128, 151_936, BF16),
            "1.7B": ModelShape(28, 2048, 6144, 16, 8, 128, 151_936, BF16),
        },
        rollouts=Rollouts(prompt=256, completion=1024),
        sampled=Rollouts(prompt=256, completion=128),
        prefixes=((1280, 1024, 8), (4352, 4096, 8)),
        growth={
            "vocabulary": (4096, 32_768, 151_936, 262_144),
            "completion": (256, 1024, 3072),
            "group": (2, 4, 8, 16),
            "solved": (0, 1, 2, 4, 7, 8),
            "demonstration": (128, 512, 1024, 3072),
        },
        floor_size=8192,
    ),
    "smoke": Sizes(
        dtype=FP32,
        heads=(HeadShape(8, 16, 1000),),
        precision=HeadShape(8, 16, 1000),
        memory_tokens=(8,),
        models={"tiny": ModelShape(1, 16, 32, 2, 1, 8, 64)},
        rollouts=Rollouts(prompt=8, completion=8),
        sampled=Rollouts(prompt=8, completion=8),
        prefixes=((16, 8, 4),),
        growth={
            "vocabulary": (32, 64),
            "completion": (8,),
            "group": (4,),
            "solved": (0, 4),
            "demonstration": (4, 16),
        },
        floor_size=128,
    ),
}
