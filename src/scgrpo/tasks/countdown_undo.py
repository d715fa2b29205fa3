"""Countdown with second thoughts: a step that ends with `undo` in place of `;` is taken back.

    prompt      countdown-undo 3 5 7 > 26
    completion  3 + 7 = 10 undo 3 * 7 = 21 ; 21 - 5 = 16 undo 21 + 5 = 26 ;

At most `MAX_UNDOS` steps may be taken back. A wrong step is not fatal yet, keeping it is.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from scgrpo.tasks.base import Canned, Row
from scgrpo.tasks.countdown import (
    MAX_VALUE,
    NUM_WORDS,
    OPERATIONS,
    WORDS_PER_STEP,
    CountdownTask,
    after_step,
    solutions,
)
from scgrpo.tasks.procedural import Problem, user_prompt

MAX_UNDOS = 2
UNDO = "undo"
# Generated completions: how often a step is preceded by one that is taken back, in solutions and in attempts.
_SOLUTION_STRAYS, _ATTEMPT_STRAYS = 0.3, 0.15


class CountdownUndoTask(CountdownTask):
    """The problems of `countdown`. Columns: `numbers`, `target`."""

    name = "countdown-undo"
    words = ("countdown-undo", UNDO, *CountdownTask.words[1:])
    max_completion_length = NUM_WORDS + MAX_UNDOS * WORDS_PER_STEP + 4

    def row(self, problem: Problem) -> Row:
        *numbers, target = problem
        return {
            "problem_id": "-".join([self.name, *map(str, problem)]),
            "prompt": user_prompt(f"{self.name} {' '.join(map(str, numbers))} > {target}"),
            "numbers": numbers,
            "target": target,
        }

    def is_correct(self, completion: str, row: Mapping[str, Any]) -> bool:
        words = completion.split(" ")
        state = _state(words, row["numbers"])
        return state is not None and len(words) % WORDS_PER_STEP == 0 and state[0] == [row["target"]]

    def is_solvable(self, words: Sequence[str], row: Mapping[str, Any]) -> bool:
        state = _state(words, row["numbers"])
        if state is None:
            return False
        left, undos = state
        begun = words[len(words) - len(words) % WORDS_PER_STEP :]
        if not begun:
            return row["target"] in solutions(tuple(sorted(left)))
        for step in _steps(left):
            if step[: len(begun)] == [*begun]:
                kept = after_step(left, [*step, ";"])
                if kept and row["target"] in solutions(tuple(sorted(kept))):
                    return True
                if undos < MAX_UNDOS and row["target"] in solutions(tuple(sorted(left))):
                    return True
        return False

    def attempt(self, row: Mapping[str, Any], rng: random.Random) -> str:
        """Right steps to a target of its own choice, some of them taken back for no reason."""
        return _strayed(super().attempt(row, rng), row["numbers"], _ATTEMPT_STRAYS, rng)

    def solution(self, row: Mapping[str, Any], rng: random.Random) -> str:
        """A solution of `countdown`, some of its steps after one that is taken back."""
        return _strayed(super().solution(row, rng), row["numbers"], _SOLUTION_STRAYS, rng)

    def recovery(self, row: Mapping[str, Any], demonstration: str, rng: random.Random) -> str:
        """The demonstration's own way, each step after a stray one that is taken back."""
        return _strayed(_kept(demonstration), row["numbers"], 1.0, rng)

    def canned(self) -> Canned:
        return Canned(
            row=self.row((3, 5, 7, 26)),
            right=(
                "3 * 7 = 21 ; 21 + 5 = 26 ;",
                "3 + 7 = 10 undo 3 * 7 = 21 ; 21 - 5 = 16 undo 21 + 5 = 26 ;",
            ),
            wrong=(
                "3 * 7 = 21 ; 21 - 5 = 16 ;",
                "3 * 7 = 21 ; 21 - 5 = 16 ; undo",
                "3 * 7 = 21 ; 21 + 5 = 26 undo",
                "3 + 7 = 10 undo 3 + 7 = 10 undo 3 + 7 = 10 undo 3 * 7 = 21 ; 21 + 5 = 26 ;",
                "3 + 7 = 11 undo 3 * 7 = 21 ; 21 + 5 = 26 ;",
            ),
        )


def _state(words: Sequence[str], numbers: Sequence[int]) -> tuple[list[int], int] | None:
    """The numbers left after the whole steps among the words, and how many were taken back; None if one of the steps
    is not allowed."""
    left, undos = list(numbers), 0
    for index in range(0, len(words) - len(words) % WORDS_PER_STEP, WORDS_PER_STEP):
        step = words[index : index + WORDS_PER_STEP]
        after = after_step(left, step, end=step[-1])
        if after is None or step[-1] not in (";", UNDO):
            return None
        if step[-1] == UNDO:
            undos += 1
        else:
            left = after
    return (left, undos) if undos <= MAX_UNDOS else None


def _steps(numbers: Sequence[int]) -> list[list[str]]:
    """Every allowed step, without its end."""
    steps = []
    for place, a in enumerate(numbers):
        for b in [*numbers[:place], *numbers[place + 1 :]]:
            for sign, operation in OPERATIONS.items():
                if 0 <= operation(a, b) <= MAX_VALUE:
                    steps.append([str(a), sign, str(b), "=", str(operation(a, b))])
    return steps


def _kept(completion: str) -> str:
    """The steps that were not taken back."""
    words = completion.split(" ")
    steps = [words[index : index + WORDS_PER_STEP] for index in range(0, len(words), WORDS_PER_STEP)]
    return " ".join(word for step in steps if step[-1] != UNDO for word in step)


def _strayed(completion: str, numbers: Sequence[int], probability: float, rng: random.Random) -> str:
    """Steps of `countdown`, each with this probability after another one that is taken back."""
    words, left = [], list(numbers)
    steps = completion.split(" ")
    for index in range(0, len(steps), WORDS_PER_STEP):
        step = steps[index : index + WORDS_PER_STEP]
        if rng.random() < probability:
            words += [*rng.choice(_steps(left)), UNDO]
        words += step
        left = after_step(left, step) or []
    assert len(words) <= NUM_WORDS + MAX_UNDOS * WORDS_PER_STEP
    return " ".join(words)
