"""A model that plays mazes badly, for tests of conversations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from scgrpo.tasks.maze import MazeTask
from scgrpo.tasks.procedural import Problem
from scgrpo.tiny.build import build
from scgrpo.tiny.recipe import Shape, Subject
from scgrpo.tiny.testbeds import get_testbed


class EasyMaze(MazeTask):
    """Key and goal are next to the start, and lava is far: who wanders wins now and then."""

    def problems(self) -> list[Problem]:
        return [(start, start + 1, start + 6, 0, 4, 20, 23, 24) for start in (6, 7, 11, 12)]

    def held_out(self, problem: Problem) -> bool:
        return problem[0] > 7


class PerStepMaze(EasyMaze):
    """Each turn sees the last observation alone."""

    prompting = "per_step"

    def step_prompt(self, row: Any, history: Any, observation: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": observation}]


def build_walker(folder: Path) -> Path:
    """A model that has seen the form of the game, and hardly more."""
    small = Shape(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    recipe = replace(get_testbed("maze").recipe, subjects=(Subject(EasyMaze(), skill=0.3),), steps=70, shape=small)
    build(recipe, folder, seed=0, num_samples=1, progress=lambda _: None)
    return folder
