"""Countdown: combine three numbers into a target, each used once, one step after the other.

    prompt      countdown 3 5 7 > 26
    completion  3 * 7 = 21 ; 21 + 5 = 26 ;

A step takes two of the numbers left and puts their result back. Results stay between 0 and `MAX_VALUE`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations_with_replacement, permutations
from typing import Any

from scgrpo.tasks.base import Canned, Row
from scgrpo.tasks.procedural import Problem, ProceduralTask, user_prompt

NUM_NUMBERS = 3
MAX_NUMBER = 9
MAX_VALUE = 40
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}
WORDS_PER_STEP = 6
NUM_WORDS = WORDS_PER_STEP * (NUM_NUMBERS - 1)


def _derivations(numbers: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """Every way to combine the numbers into one: the steps as text, and the result. May repeat itself."""
    if len(numbers) == 1:
        yield "", numbers[0]
        return
    for a, b, *rest in permutations(numbers):
        if rest != sorted(rest):  # the order of the numbers that wait does not matter
            continue
        for sign, operation in OPERATIONS.items():
            result = operation(a, b)
            if 0 <= result <= MAX_VALUE:
                step = f"{a} {sign} {b} = {result} ;"
                for later, value in _derivations((*rest, result)):
                    yield f"{step} {later}".rstrip(), value


@cache
def solutions(numbers: tuple[int, ...]) -> dict[int, tuple[str, ...]]:
    """For every target the numbers can make, its distinct solutions."""
    by_target: dict[int, set[str]] = {}
    for text, value in _derivations(numbers):
        by_target.setdefault(value, set()).add(text)
    return {target: tuple(sorted(texts)) for target, texts in sorted(by_target.items())}


def after_step(numbers: Sequence[int], step: Sequence[str], end: str = ";") -> list[int] | None:
    """The numbers left after a step of six words, None if the step is not allowed."""
    if len(step) != WORDS_PER_STEP or step[1] not in OPERATIONS or (step[3], step[5]) != ("=", end):
        return None
    left = {str(number): number for number in numbers}
    a, b = left.get(step[0]), left.get(step[2])
    if a is None or b is None:
        return None
    result = OPERATIONS[step[1]](a, b)
    rest = Counter(numbers)
    rest.subtract((a, b))
    if step[4] != str(result) or not 0 <= result <= MAX_VALUE or min(rest.values()) < 0:
        return None
    return [*rest.elements(), result]


class CountdownTask(ProceduralTask):
    """Three numbers from 1 to 9 in ascending order and any target they can make. Columns: `numbers`, `target`."""

    name = "countdown"
    words = ("countdown", ">", "=", ";", *OPERATIONS, *(str(value) for value in range(MAX_VALUE + 1)))
    max_completion_length = NUM_WORDS + 4

    def problems(self) -> list[Problem]:
        return [
            (*numbers, target)
            for numbers in combinations_with_replacement(range(1, MAX_NUMBER + 1), NUM_NUMBERS)
            for target in solutions(numbers)
        ]

    def row(self, problem: Problem) -> Row:
        *numbers, target = problem
        return {
            "problem_id": "-".join(["countdown", *map(str, problem)]),
            "prompt": user_prompt(f"countdown {' '.join(map(str, numbers))} > {target}"),
            "numbers": numbers,
            "target": target,
        }

    def is_correct(self, completion: str, row: Mapping[str, Any]) -> bool:
        words = completion.split(" ")
        left: list[int] | None = list(row["numbers"])
        for index in range(0, len(words), WORDS_PER_STEP):
            left = after_step(left, words[index : index + WORDS_PER_STEP]) if left else None
        return left == [row["target"]]

    def is_solvable(self, words: Sequence[str], row: Mapping[str, Any]) -> bool:
        start = " ".join([*words, ""])
        return any(f"{text} ".startswith(start) for text in solutions(tuple(row["numbers"]))[row["target"]])

    def attempt(self, row: Mapping[str, Any], rng: random.Random) -> str:
        """Right steps to a target of its own choice."""
        return rng.choice(rng.choice(tuple(solutions(tuple(row["numbers"])).values())))

    def solution(self, row: Mapping[str, Any], rng: random.Random) -> str:
        return rng.choice(solutions(tuple(row["numbers"]))[row["target"]])

    def canned(self) -> Canned:
        return Canned(
            row=self.row((3, 5, 7, 26)),
            right=("3 * 7 = 21 ; 21 + 5 = 26 ;", "7 * 3 = 21 ; 5 + 21 = 26 ;"),
            wrong=(
                "3 * 7 = 21 ; 21 - 5 = 16 ;",
                "3 * 7 = 22 ; 22 + 5 = 27 ;",
                "3 * 7 = 21 ; 21 + 5 = 26",
                "5 * 5 = 25 ; 25 + 1 = 26 ;",
            ),
        )
