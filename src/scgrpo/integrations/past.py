"""Solved rollouts of earlier generation batches, by prompt: demonstrations that are not in the batch.

Every process holds the same ones. A prompt comes back with the next epoch; until then there is nothing to recall.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scgrpo.teacher.prompts import Prompt

PER_PROMPT = 4  # the latest ones; older ones are of a policy that has moved on
_FILE = "scgrpo_past_solutions.json"


@dataclass
class PastSolutions:
    """Completions by prompt, latest last."""

    solutions: dict[str, list[Any]] = field(default_factory=dict)

    def recall(self, prompts: Sequence[Prompt]) -> tuple[list[int], list[Any]]:
        """The solutions known for these prompts, one prompt per group: the group each belongs to, and itself."""
        known = [self.solutions.get(_key(prompt), []) for prompt in prompts]
        owners = [group for group, solutions in enumerate(known) for _ in solutions]
        return owners, [solution for solutions in known for solution in solutions]

    def remember(self, prompts: Sequence[Prompt], completions: Sequence[Any], solved: Sequence[bool]) -> None:
        """Add the solved ones of these rollouts, each text once."""
        for prompt, completion, good in zip(prompts, completions, solved, strict=True):
            if good:
                known = self.solutions.setdefault(_key(prompt), [])
                known[:] = [*(past for past in known if past != completion), completion][-PER_PROMPT:]

    def save(self, folder: Path) -> None:
        """Write them beside a checkpoint."""
        (folder / _FILE).write_text(json.dumps(self.solutions, default=str))

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; a checkpoint without them starts empty."""
        if (folder / _FILE).exists():
            self.solutions = json.loads((folder / _FILE).read_text())


def _key(prompt: Prompt) -> str:
    return json.dumps(prompt, sort_keys=True, default=str)
