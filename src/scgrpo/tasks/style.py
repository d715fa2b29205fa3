"""Style: sort three numbers into three bins, amid words that mean nothing.

    prompt      style 2 7 9 > 4
    completion  so ok 7 blue now then so so 2 red ok yes now ok 9 green so so

A number belongs into the bin (number + key) modulo 3, the key being the prompt's last number. Numbers may come in any
order. Two free words stand before each number and two behind its bin, of three styles: which ones, the verifier does
not care. Six words decide, twelve do not, and no demonstration can tell which free word is next. The number of free
words is fixed, as a decision could otherwise be put off for ever.
"""

from __future__ import annotations

import random
from collections.abc import Container, Mapping, Sequence
from itertools import combinations
from typing import Any

from scgrpo.tasks.base import Canned, Row
from scgrpo.tasks.procedural import Problem, ProceduralTask, user_prompt

NUM_NUMBERS = 3
MAX_NUMBER = 11
MAX_KEY = 8
BINS = ("red", "green", "blue")
STYLES: tuple[tuple[str, ...], ...] = (
    ("so", "ok", "now", "then", "next", "yes"),
    ("please", "kindly", "surely", "perhaps", "indeed", "gladly"),
    ("hence", "thus", "let", "given", "note", "qed"),
)
_NUMBERS = tuple(str(number) for number in range(MAX_NUMBER + 1))
# What stands where: free words (.), a number (n), its bin (b).
_CLAUSE = "..nb.."
FORM = _CLAUSE * NUM_NUMBERS
# How often an attempt looks at the rule.
_CARE = 0.5


def bin_of(number: int, key: int) -> str:
    """Where a number belongs."""
    return BINS[(number + key) % len(BINS)]


class StyleTask(ProceduralTask):
    """Three numbers up to 11 in ascending order and a key up to 8: 1980 problems. Columns: `numbers`, `key`."""

    name = "style"
    words = ("style", ">", *BINS, *(word for style in STYLES for word in style), *_NUMBERS)
    free_words = frozenset(word for style in STYLES for word in style)
    max_completion_length = len(FORM) + 2

    def problems(self) -> list[Problem]:
        return [
            (*numbers, key)
            for numbers in combinations(range(MAX_NUMBER + 1), NUM_NUMBERS)
            for key in range(MAX_KEY + 1)
        ]

    def row(self, problem: Problem) -> Row:
        *numbers, key = problem
        return {
            "problem_id": "-".join(["style", *map(str, problem)]),
            "prompt": user_prompt(f"style {' '.join(map(str, numbers))} > {key}"),
            "numbers": numbers,
            "key": key,
        }

    def is_correct(self, completion: str, row: Mapping[str, Any]) -> bool:
        words = completion.split(" ")
        return len(words) == len(FORM) and self.is_solvable(words, row)

    def is_solvable(self, words: Sequence[str], row: Mapping[str, Any]) -> bool:
        if len(words) > len(FORM):
            return False
        left = {str(number): bin_of(number, row["key"]) for number in row["numbers"]}
        allowed: Mapping[str, Container[str]] = {".": self.free_words, "n": left}
        bin_due = ""
        for kind, word in zip(FORM, words, strict=False):
            if word not in ((bin_due,) if kind == "b" else allowed[kind]):
                return False
            if kind == "n":
                bin_due = left.pop(word)
        return True

    def attempt(self, row: Mapping[str, Any], rng: random.Random) -> str:
        """The right form with bins that are often guessed, each for itself."""
        return _written(
            {
                number: bin_of(number, row["key"]) if rng.random() < _CARE else rng.choice(BINS)
                for number in row["numbers"]
            },
            rng,
        )

    def solution(self, row: Mapping[str, Any], rng: random.Random) -> str:
        return _written({number: bin_of(number, row["key"]) for number in row["numbers"]}, rng)

    def followed(self, demonstration: str, rng: random.Random) -> str:
        """What the demonstration says, in an order and a style of its own."""
        decisive = [word for word in demonstration.split(" ") if word not in self.free_words]
        return _written(dict(zip(map(int, decisive[::2]), decisive[1::2], strict=True)), rng)

    def canned(self) -> Canned:
        right = "so ok 7 blue now then so so 2 red ok yes now ok 9 green so so"
        return Canned(
            row=self.row((2, 7, 9, 4)),
            right=(right, "qed ok 9 green now thus let so 2 red ok ok now ok 7 blue so gladly"),
            wrong=(
                right.replace("red", "blue"),
                right.replace("2 red", "red 2"),
                right.removesuffix(" so"),
                f"{right} so",
                "7 blue 2 red 9 green",
            ),
        )


def _written(bins: Mapping[int, str], rng: random.Random) -> str:
    """The numbers with their bins as text, in a random order and style."""
    style = rng.choice(STYLES)
    words = rng.choices(style, k=len(FORM))
    for clause, number in enumerate(rng.sample(list(bins), len(bins))):
        place = FORM.index("n", clause * len(_CLAUSE))
        words[place : place + 2] = str(number), bins[number]
    return " ".join(words)
