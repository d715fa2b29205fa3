"""Reach: find a register program that turns one number into another, modulo 31, and write its trace.

    prompt      reach 5 > 17
    completion  inc7 12 dbl 24 inc7 0 inc7 7 inc7 14 dec3 11 ...

Each instruction is followed by the register's new value. Every program of at most `MAX_STEPS` instructions whose
trace is right and ends at the target is correct: most problems have hundreds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from scgrpo.tasks.base import Canned, Row
from scgrpo.tasks.procedural import Problem, ProceduralTask, user_prompt

MODULUS = 31
MAX_STEPS = 9
OPERATIONS: dict[str, Callable[[int], int]] = {
    "inc7": lambda value: (value + 7) % MODULUS,
    "dec3": lambda value: (value - 3) % MODULUS,
    "dbl": lambda value: 2 * value % MODULUS,
    "tri": lambda value: 3 * value % MODULUS,
    "neg": lambda value: -value % MODULUS,
}

# Generated solutions: how often an instruction is random, and how many are allowed.
_STRAY_PROBABILITY = 0.4
_MAX_SOLUTION_STEPS = 6


def _append(words: list[str], operation: str, value: int) -> int:
    """Add one instruction and its result to a trace; returns the result."""
    result = OPERATIONS[operation](value)
    words += [operation, str(result)]
    return result


@cache
def _distances(target: int) -> dict[int, int]:
    """Fewest instructions from every value to the target (at most four), breadth first from the target."""
    distances, queue = {target: 0}, [target]
    for reached in queue:
        for value in range(MODULUS):
            if value not in distances and any(operation(value) == reached for operation in OPERATIONS.values()):
                distances[value] = distances[reached] + 1
                queue.append(value)
    return distances


def _closer(value: int, distances: Mapping[int, int]) -> list[str]:
    """Instructions that lead nearer to the target."""
    return [name for name in OPERATIONS if distances[OPERATIONS[name](value)] < distances[value]]


class ReachTask(ProceduralTask):
    """930 problems: every start with every other target. Columns: `start`, `target` (0 to 30)."""

    name = "reach"
    words = ("reach", ">", *OPERATIONS, *(str(value) for value in range(MODULUS)))
    max_completion_length = 2 * MAX_STEPS + 2

    def problems(self) -> list[Problem]:
        return [(start, target) for start in range(MODULUS) for target in range(MODULUS) if start != target]

    def row(self, problem: Problem) -> Row:
        start, target = problem
        return {
            "problem_id": f"reach-{start}-{target}",
            "prompt": user_prompt(f"reach {start} > {target}"),
            "start": start,
            "target": target,
        }

    def is_correct(self, completion: str, row: Mapping[str, Any]) -> bool:
        value, target = row["start"], row["target"]
        words = completion.split(" ")
        if len(words) % 2 or len(words) > 2 * MAX_STEPS:
            return False
        for operation, result in zip(words[::2], words[1::2], strict=True):
            if operation not in OPERATIONS:
                return False
            value = OPERATIONS[operation](value)
            if result != str(value):
                return False
        return bool(value == target)

    def is_solvable(self, words: Sequence[str], row: Mapping[str, Any]) -> bool:
        value = row["start"]
        for index, word in enumerate(words):
            if index % 2:
                if word != str(value):
                    return False
            elif word not in OPERATIONS:
                return False
            else:
                value = OPERATIONS[word](value)
        steps_left = MAX_STEPS - (len(words) + 1) // 2
        return steps_left >= _distances(row["target"])[value]

    def attempt(self, row: Mapping[str, Any], rng: random.Random) -> str:
        """A random program of two to six instructions with a right trace."""
        words: list[str] = []
        value = row["start"]
        for _ in range(rng.randint(2, 6)):
            value = _append(words, rng.choice(tuple(OPERATIONS)), value)
        return " ".join(words)

    def solution(self, row: Mapping[str, Any], rng: random.Random) -> str:
        """A walk that aims at the target, may stray and recover; the first that arrives in time."""
        target, distances = row["target"], _distances(row["target"])
        while True:
            words: list[str] = []
            value = row["start"]
            while value != target and len(words) < 2 * _MAX_SOLUTION_STEPS:
                closer = _closer(value, distances)
                strays = rng.random() < _STRAY_PROBABILITY
                value = _append(words, rng.choice(tuple(OPERATIONS) if strays else closer), value)
            if value == target:
                return " ".join(words)

    def recovery(self, row: Mapping[str, Any], demonstration: str, rng: random.Random) -> str:
        """The demonstration with one other instruction somewhere, and the shortest way back to its further course."""
        words = demonstration.split(" ")
        path = [row["start"], *map(int, words[1::2])]
        while True:
            stray_at = rng.randrange(len(path) - 1)
            kept = words[: 2 * stray_at]
            value = _append(
                kept, rng.choice([name for name in OPERATIONS if name != words[2 * stray_at]]), path[stray_at]
            )
            ways = [
                (_distances(path[back])[value], back)
                for back in range(stray_at, len(path))
                if stray_at + 1 + _distances(path[back])[value] + len(path) - 1 - back <= MAX_STEPS
            ]
            if ways:
                _, back = min(ways, key=lambda way: (way[0], -way[1]))
                distances = _distances(path[back])
                while value != path[back]:
                    value = _append(kept, rng.choice(_closer(value, distances)), value)
                return " ".join([*kept, *words[2 * back :]])

    def canned(self) -> Canned:
        return Canned(
            row=self.row((5, 24)),
            right=("inc7 12 dbl 24", "tri 15 inc7 22 neg 9 tri 27 dec3 24"),
            wrong=("inc7 12", "inc7 12 dbl 25", "inc7 12 dbl 24 neg", "dbl 24"),
        )
