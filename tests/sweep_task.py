"""A task whose held-out problems come in two parts, as sweeps that tune need it."""

from __future__ import annotations

from scgrpo.tasks.base import Row, Split
from scgrpo.tasks.reach import ReachTask


class Parted(ReachTask):
    """`reach`, with every other held-out problem: `part` 0 or 1."""

    def __init__(self, part: int = 0) -> None:
        self.part = part

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        if split == "train":
            return super().rows(split, limit)
        return super().rows(split, 200)[self.part :: 2][:limit]
