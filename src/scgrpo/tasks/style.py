"""Style: sort three numbers into three bins, amid words that mean nothing.

    prompt      style 2 7 9 > 4
    completion  so ok 7 red now then so so 2 green ok yes now ok 9 red so so

Which bin a number belongs into depends on the key, the prompt's last number, by an arbitrary table. Numbers may come
in any order. Two free words stand before each number and two behind its bin, of three styles: which ones does not
matter to the verifier. Six words decide, twelve do not, and no demonstration can tell which free word is next. Their
number is fixed, as a decision could otherwise be put off for ever.

An attempt follows habits: for every entry of the table it has a wrong bin of its own, and how often it takes that one
differs from entry to entry. So there is no rule that a model could remember: each habit has to be unlearnt by itself.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Container, Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any

from scgrpo.tasks.base import Canned, Row
from scgrpo.tasks.procedural import Problem, ProceduralTask, user_prompt

NUM_NUMBERS = 3
MAX_NUMBER = 11
MAX_KEY = 5
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
# How often an attempt takes the right bin: least and most, by entry.
_CARE = (0.4, 1.0)


def bin_of(number: int, key: int) -> str:
    """Where a number belongs."""
    return BINS[_entry(number, key)[0] % len(BINS)]


def habit(number: int, key: int) -> tuple[str, float]:
    """The wrong bin that attempts take, and how often they take the right one instead."""
    entry = _entry(number, key)
    wrong = [name for name in BINS if name != bin_of(number, key)]
    least, most = _CARE
    return wrong[entry[1] % len(wrong)], least + (most - least) * entry[2] / 255


@cache
def _entry(number: int, key: int) -> bytes:
    return hashlib.sha256(f"style {number} {key}".encode()).digest()


class StyleTask(ProceduralTask):
    """Three numbers up to 11 in ascending order and a key up to 5: 1320 problems. Columns: `numbers`, `key`."""

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
        """The right form with bins by habit, each for itself."""
        bins = {}
        for number in row["numbers"]:
            wrong, care = habit(number, row["key"])
            bins[number] = bin_of(number, row["key"]) if rng.random() < care else wrong
        return _written(bins, rng)

    def solution(self, row: Mapping[str, Any], rng: random.Random) -> str:
        return _written({number: bin_of(number, row["key"]) for number in row["numbers"]}, rng)

    def followed(self, demonstration: str, rng: random.Random) -> str:
        """What the demonstration says, in an order and a style of its own."""
        decisive = [word for word in demonstration.split(" ") if word not in self.free_words]
        return _written(dict(zip(map(int, decisive[::2]), decisive[1::2], strict=True)), rng)

    def canned(self) -> Canned:
        right = "so ok 7 red now then so so 2 green ok yes now ok 9 red so so"
        return Canned(
            row=self.row((2, 7, 9, 4)),
            right=(right, "qed ok 9 red now thus let so 2 green ok ok now ok 7 red so gladly"),
            wrong=(
                right.replace("green", "blue"),
                right.replace("2 green", "green 2"),
                right.removesuffix(" so"),
                f"{right} so",
                "7 red 2 green 9 red",
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
