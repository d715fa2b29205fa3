"""The recipe of the model in the package."""

from __future__ import annotations

from scgrpo.tasks import countdown, reach
from scgrpo.tiny.recipe import Recipe, Subject

SEED = 0
RECIPE = Recipe(
    subjects=(
        Subject(reach.ReachTask(), skill=0.38, plain_band=(0.17, 0.30), share=0.5),
        Subject(countdown.CountdownTask(), skill=0.65, plain_band=(0.15, 0.35), share=0.5),
    ),
    steps=4000,
    task_words=(
        *("reach", "countdown", ">", "=", ";"),
        *countdown.OPERATIONS,
        *reach.OPERATIONS,
        *(str(number) for number in range(max(countdown.MAX_VALUE + 1, reach.MODULUS))),
    ),
)
