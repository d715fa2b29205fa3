"""Style: sort three numbers into three bins, amid words that mean nothing.

    prompt      style 2 7 9 > 4
    completion  so ok 7 now then blue next 2 so so red ok ok now 9 next green then

A number belongs into the bin (number + key) modulo 3, the key being the prompt's last number. Numbers may come in any
order. Before, between and behind them stand free words, of three styles, in any number up to `MAX_WORDS` words in
all: the verifier does not read them. Six words decide, some fifteen do not, and no demonstration can tell which free
word is next.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from scgrpo.tasks.base import Canned, Row
from scgrpo.tasks.procedural import Problem, ProceduralTask, user_prompt

NUM_NUMBERS = 3
MAX_NUMBER = 11
MAX_KEY = 8
MAX_WORDS = 30
BINS = ("red", "green", "blue")
STYLES: tuple[tuple[str, ...], ...] = (
    ("so", "ok", "now", "then", "next", "yes"),
    ("please", "kindly", "surely", "perhaps", "indeed", "gladly"),
    ("hence", "thus", "let", "given", "note", "qed"),
)
_NUMBERS = tuple(str(number) for number in range(MAX_NUMBER + 1))
# Free words before a number, between it and its bin, and behind the bin: fewest and most.
_BEFORE, _BETWEEN, _BEHIND = (1, 3), (1, 2), (1, 2)
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
    max_completion_length = MAX_WORDS + 2

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
        return len(words) <= MAX_WORDS and self._words_missing(words, row) == 0

    def is_solvable(self, words: Sequence[str], row: Mapping[str, Any]) -> bool:
        missing = self._words_missing(words, row)
        return missing is not None and len(words) + missing <= MAX_WORDS

    def _words_missing(self, words: Sequence[str], row: Mapping[str, Any]) -> int | None:
        """Numbers and bins still to come, None if one of them is wrong."""
        left = {str(number): bin_of(number, row["key"]) for number in row["numbers"]}
        bin_due = ""
        for word in words:
            if word in self.free_words:
                continue
            if bin_due and word == bin_due:
                bin_due = ""
            elif not bin_due and word in left:
                bin_due = left.pop(word)
            else:
                return None
        return 2 * len(left) + bool(bin_due)

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
        return Canned(
            row=self.row((2, 7, 9, 4)),
            right=("2 red 7 blue 9 green", "so ok 7 now then blue please 2 red ok ok now 9 qed green then"),
            wrong=(
                "2 red 7 blue 9 blue",
                "2 red 7 blue",
                "2 red 7 blue 9 green 9 green",
                "so so so so so so so so 2 so so so red so so so 7 so blue so so so 9 so so so green so so so so",
            ),
        )


def _written(bins: Mapping[int, str], rng: random.Random) -> str:
    """The numbers with their bins as text, in a random order and style."""
    style = rng.choice(STYLES)

    def free(least_most: tuple[int, int]) -> list[str]:
        return rng.choices(style, k=rng.randint(*least_most))

    words: list[str] = []
    for number in rng.sample(list(bins), len(bins)):
        words += [*free(_BEFORE), str(number), *free(_BETWEEN), bins[number], *free(_BEHIND)]
    return " ".join(words)
