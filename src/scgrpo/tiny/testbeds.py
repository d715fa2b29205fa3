"""Testbeds: tasks with a known first error, each with a recipe for base models of any seed.

A testbed is what a credit method is tried on: a verifier, an exact oracle of where a completion goes wrong, and fresh
base models that fail often, succeed often enough, and truly use a demonstration. See docs/testbeds.md.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from scgrpo.errors import ConfigError
from scgrpo.tasks.countdown import CountdownTask
from scgrpo.tasks.countdown_undo import CountdownUndoTask
from scgrpo.tasks.games.frozen_lake import FrozenLakeTask
from scgrpo.tasks.maze import MazeTask
from scgrpo.tasks.procedural import ProceduralTask
from scgrpo.tasks.reach import ReachTask
from scgrpo.tasks.style import StyleTask
from scgrpo.tiny.recipe import LARGE, Kind, Recipe, Subject


@dataclass(frozen=True)
class Testbed:
    """A task and the recipe of its base models.

    Attributes:
        name: `testbed:NAME:SEED` is the base model, for `model_name_or_path` and `scgrpo eval --model`.
        about: what it is good for, in one line.
        recipe: of one subject, the task.
    """

    __test__ = False  # its name makes pytest look at it

    name: str
    about: str
    recipe: Recipe

    @property
    def task(self) -> ProceduralTask:
        (subject,) = self.recipe.subjects
        return subject.task


# Looking up what a demonstration says amid free words takes more practice, and so does being careless beside one.
_MORE_SHOWN: dict[Kind, float] = {"plain": 0.42, "verified": 0.42, "attempt": 0.16}

# The options of the task in words that the small model knows; its recipe has the same.
FROZEN_LAKE: dict[str, Any] = {"form": "words", "size": 5, "frozen_probability": 0.7, "max_turns": 12}

TESTBEDS: dict[str, Testbed] = {}


def register_testbed(testbed: Testbed) -> None:
    """Make a testbed known by its name.

    Raises:
        ConfigError: the name is taken.
    """
    if testbed.name in TESTBEDS:
        raise ConfigError(f"There is already a testbed {testbed.name!r}.", "Choose another name.")
    TESTBEDS[testbed.name] = testbed


def get_testbed(name: str) -> Testbed:
    """A testbed by name.

    Raises:
        ConfigError: unknown name; the nearest one is named.
    """
    if name not in TESTBEDS:
        near = difflib.get_close_matches(name, TESTBEDS, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"There is no testbed {name!r}.", f"{hint}Known: {', '.join(TESTBEDS)}.")
    return TESTBEDS[name]


for _testbed in (
    Testbed(
        "reach",
        "programs from one number to another: many solutions, and a wrong turn can be made good until steps run out",
        Recipe((Subject(ReachTask(), skill=0.5),), steps=1200),
    ),
    Testbed(
        "reach-recover",
        "the same, and the base has seen how one finds back to a demonstration",
        Recipe((Subject(ReachTask(), skill=0.5),), steps=1200, recover=0.5),
    ),
    Testbed(
        "countdown",
        "three numbers into a target: a wrong first step is fatal, what follows is arithmetic",
        Recipe((Subject(CountdownTask(), skill=0.65),), steps=800),
    ),
    Testbed(
        "countdown-undo",
        "the same with an `undo`: a wrong step is made good by taking it back, which the base has seen",
        Recipe((Subject(CountdownUndoTask(), skill=0.8),), steps=1200, recover=0.3),
    ),
    Testbed(
        "style",
        "three decisions among much free text, in styles and orders that no demonstration settles",
        Recipe((Subject(StyleTask(), skill=0.1),), steps=1000, schooling_frac=0.55, kind_shares=_MORE_SHOWN),
    ),
    Testbed(
        "maze",
        "a game of many turns: lava is fatal at once, a wrong way only when the moves run out",
        Recipe(
            (Subject(MazeTask(), skill=0.45, plain_band=(0.15, 0.5), verified_min=0.6),),
            steps=400,
            kind_shares={"plain": 0.45, "verified": 0.47, "attempt": 0.08},
            recover=0.15,
        ),
    ),
    Testbed(
        "frozen_lake",
        "gymnasium's game of many turns: holes are fatal at once, a wrong way only when the turns run out",
        Recipe(
            (Subject(FrozenLakeTask(**FROZEN_LAKE), skill=0.2, plain_band=(0.15, 0.5), verified_min=0.6),),
            steps=400,
            kind_shares={"plain": 0.45, "verified": 0.47, "attempt": 0.08},
            recover=0.15,
        ),
    ),
    Testbed(
        "reach-large",
        "reach with a base of 27 M parameters, for a GPU",
        Recipe((Subject(ReachTask(), skill=0.5),), steps=1200, shape=LARGE),
    ),
    Testbed(
        "countdown-large",
        "countdown with a base of 27 M parameters, for a GPU",
        Recipe((Subject(CountdownTask(), skill=0.65),), steps=1200, shape=LARGE),
    ),
):
    register_testbed(_testbed)
