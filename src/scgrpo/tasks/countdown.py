"""Countdown: combine three numbers into a target, each used once, one step after the other.

    prompt      countdown 3 5 7 > 26
    completion  3 * 7 = 21 ; 21 + 5 = 26 ;

A step takes two of the numbers left and puts their result back. Results stay between 0 and `MAX_VALUE`.
"""

from __future__ import annotations

import random
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
_WORDS_PER_STEP = 6
_NUM_WORDS = _WORDS_PER_STEP * (NUM_NUMBERS - 1)


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
def _solutions(numbers: tuple[int, ...]) -> dict[int, tuple[str, ...]]:
    """For every target the numbers can make, its distinct solutions."""
    by_target: dict[int, set[str]] = {}
    for text, value in _derivations(numbers):
        by_target.setdefault(value, set()).add(text)
    return {target: tuple(sorted(texts)) for target, texts in sorted(by_target.items())}


class CountdownTask(ProceduralTask):
    """Three numbers from 1 to 9 in ascending order and any target they can make. Columns: `numbers`, `target`."""

    name = "countdown"
    words = ("countdown", ">", "=", ";", *OPERATIONS, *(str(value) for value in range(MAX_VALUE + 1)))
    max_completion_length = _NUM_WORDS + 4

    def problems(self) -> list[Problem]:
        return [
            (*numbers, target)
            for numbers in combinations_with_replacement(range(1, MAX_NUMBER + 1), NUM_NUMBERS)
            for target in _solutions(numbers)
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
        left, target = [str(number) for number in row["numbers"]], str(row["target"])
        words = completion.split(" ")
        if len(words) != _NUM_WORDS:
            return False
        for index in range(0, _NUM_WORDS, _WORDS_PER_STEP):
            a, sign, b, equals, result, end = words[index : index + _WORDS_PER_STEP]
            if sign not in OPERATIONS or (equals, end) != ("=", ";") or a not in left:
                return False
            left.remove(a)
            if b not in left:
                return False
            left.remove(b)
            # a and b are numbers: they were put into `left` by the row or by a step already checked.
            value = OPERATIONS[sign](int(a), int(b))
            if result != str(value) or not 0 <= value <= MAX_VALUE:
                return False
            left.append(result)
        return left == [target]

    def is_solvable(self, words: Sequence[str], row: Mapping[str, Any]) -> bool:
        start = " ".join([*words, ""])
        return any(f"{text} ".startswith(start) for text in _solutions(tuple(row["numbers"]))[row["target"]])

    def attempt(self, row: Mapping[str, Any], rng: random.Random) -> str:
        """Right steps to a target of its own choice."""
        return rng.choice(rng.choice(tuple(_solutions(tuple(row["numbers"])).values())))

    def solution(self, row: Mapping[str, Any], rng: random.Random) -> str:
        return rng.choice(_solutions(tuple(row["numbers"]))[row["target"]])

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
