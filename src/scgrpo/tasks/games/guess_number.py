"""Guess the number: after each guess one is told whether the number is higher or lower.

    user         I am thinking of a whole number from 12 to 57 ...
    assistant    <action>30</action>
    user         The number is higher than 30. Guesses left: 5.

Hints and scores are those of textarena's GuessTheNumber; a repeated guess is answered again, and there are no more
guesses than announced. The rules are our own twenty lines: textarena needs the OpenAI client, nltk and chess, and
draws its numbers from the global random state. A game is won with the number, lost after the last guess. What is no
number of the range costs a guess and is told.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from scgrpo.errors import ConfigError
from scgrpo.tasks.base import Canned, Completion, Message, Row, Verdict
from scgrpo.tasks.environment import Prompting, Step, scripted
from scgrpo.tasks.games.actions import Form, TextGame, action_in, as_said, checked, how_to_answer, reciting
from scgrpo.tasks.procedural import EvalPart, Problem, ProceduralTask, user_prompt

# Ranges start somewhere up to here.
_MOST_LOW = 500
_NUMBER = re.compile(r"-?\d{1,9}")
_MAX_DRAWS = 20
_TOKENS_PER_TURN = 200


class GuessNumber:
    """One game over the number of a row.

    Attributes:
        turns, invalid: guesses so far, and how many of them were none.
        last: the last guess; None before the first.
    """

    def __init__(self, row: Mapping[str, Any], form: str, *, partial: bool = False) -> None:
        self.low, self.high, self.secret, self.max_turns = (
            row[name] for name in ("low", "high", "secret", "max_turns")
        )
        self.form, self.partial = form, partial
        self.turns = self.invalid = 0
        self.last: int | None = None

    def step(self, action: str) -> Step:
        said = action_in(action, self.form) or ""
        guess = int(said) if _NUMBER.fullmatch(said) else None
        self.turns += 1
        left = f"Guesses left: {self.max_turns - self.turns}."
        if guess is None or not self.low <= guess <= self.high:
            self.invalid += 1
            told = f"That is no number from {self.low} to {self.high}. {how_to_answer(self.form, str(self.low))}"
            return Step(f"{told} {left}", self.over)
        self.last = guess
        if self.won:
            return Step(f"Yes, it is {guess}.", done=True)
        return Step(f"The number is {'higher' if self.secret > guess else 'lower'} than {guess}. {left}", self.over)

    @property
    def won(self) -> bool:
        return self.last == self.secret

    @property
    def over(self) -> bool:
        return self.won or self.turns >= self.max_turns

    def verdict(self) -> Verdict:
        score = float(self.won)
        if self.partial and self.last is not None:
            score = 1 - abs(self.last - self.secret) / (self.high - self.low)
        how = "guessed" if self.won else "not guessed"
        return Verdict(score, detail=f"{how} after {self.turns} turns; {self.invalid} without a guess")


class GuessNumberTask(TextGame, ProceduralTask):
    """Find a number by guesses that are answered with higher or lower.

    Ranges and numbers are drawn from a seed. Columns: `low`, `high`, `secret`, `max_turns`. The secret is in the row,
    not in the prompt; no range is in both splits.

    Args:
        form: of a guess (`Form`).
        min_numbers, max_numbers: how many numbers a range has.
        max_turns: guesses; default: as many as halving needs, floor(log2(numbers)) + 1, for each row its own.
        num_games: games to draw, about a quarter of which is held out (200 of them are the evaluation rows, unless
            more are asked for); fewer if there are not so many.
        partial: a game that is lost scores 1 - |last guess - number| / (high - low), as in textarena; else 0.
        prompting: "concat": a rollout is one growing conversation; "per_step": each turn has a prompt of its own.
        history_turns: turns before that a prompt per step tells; it forgets those before them.
        eval_part: all held-out games, or one of two halves of them, "tune" and "final".

    Raises:
        ConfigError: a setting out of range.
    """

    name = "guess_number"
    words: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        form: Form = "tagged",
        min_numbers: int = 10,
        max_numbers: int = 100,
        max_turns: int | None = None,
        num_games: int = 2000,
        partial: bool = False,
        prompting: Prompting = "concat",
        history_turns: int = 10,
        eval_part: EvalPart = "all",
    ) -> None:
        super().__init__(eval_part)
        self.form = checked("form", form, Form)
        self.prompting = checked("prompting", prompting, Prompting)
        if not 2 <= min_numbers <= max_numbers <= 10**6 or num_games < 1 or history_turns < 0:
            raise ConfigError(
                f"min_numbers {min_numbers}, max_numbers {max_numbers}, num_games {num_games}, history_turns "
                f"{history_turns}.",
                "2 <= min_numbers <= max_numbers <= 1000000, num_games >= 1, history_turns >= 0.",
            )
        if max_turns is not None and max_turns < 1:
            raise ConfigError(f"max_turns is {max_turns}.", "Allow a guess at least.")
        self.min_numbers, self.max_numbers, self.num_games = min_numbers, max_numbers, num_games
        self.partial, self.history_turns, self._turns = partial, history_turns, max_turns
        self.max_turns = max_numbers.bit_length() if max_turns is None else max_turns
        self.max_completion_length = _TOKENS_PER_TURN * self.max_turns

    def problems(self) -> list[Problem]:
        return list(_problems(self.min_numbers, self.max_numbers, self.num_games))

    def held_out(self, problem: Problem) -> bool:
        return super().held_out(problem[:2])

    def row(self, problem: Problem) -> Row:
        """Args: `problem` is the lowest number, the highest, and the one to guess."""
        low, high, secret = problem
        turns = (high - low + 1).bit_length() if self._turns is None else self._turns
        prompt = (
            f"I am thinking of a whole number from {low} to {high}. Guess it: each turn you name a number, and I "
            f"tell you whether mine is higher or lower. You have {turns} guesses. "
            f"{how_to_answer(self.form, str(low))}"
        )
        return {
            "problem_id": "-".join([self.name, *map(str, problem)]),
            "prompt": user_prompt(prompt),
            "low": low,
            "high": high,
            "secret": secret,
            "max_turns": turns,
        }

    def environment(self, row: Mapping[str, Any]) -> GuessNumber:
        return GuessNumber(row, self.form, partial=self.partial)

    def is_correct(self, completion: Completion, row: Mapping[str, Any]) -> bool:
        return self.verify([completion], [row])[0].score == 1

    def is_solvable(self, words: Sequence[str], row: Mapping[str, Any]) -> bool:
        """Whether the number has been guessed, or there is a guess left."""
        game, done = self.environment(row), False
        for text in words:
            if done:  # nothing comes after the end
                return False
            done = game.step(text).done
        return game.won or not game.over

    def attempt(self, row: Mapping[str, Any], rng: random.Random) -> Completion:
        """Guesses that do not listen."""
        return scripted(
            self.environment(row), lambda _: as_said(str(rng.randint(row["low"], row["high"])), self.form)
        )

    def solution(self, row: Mapping[str, Any], rng: random.Random) -> Completion:
        """Guesses that are sure to find the number in time, whatever it is, if there are enough of them for that;
        else, and when one happens to be the number, those of a player with luck."""
        while True:
            played = self._bisected(row, rng)
            if self.is_correct(played, row):
                return played

    def _bisected(self, row: Mapping[str, Any], rng: random.Random) -> Completion:
        game = self.environment(row)
        low, high = row["low"], row["high"]

        def player(_: str | None) -> str:
            nonlocal low, high
            if game.last is not None:
                low, high = (game.last + 1, high) if game.secret > game.last else (low, game.last - 1)
            # What `after` guesses can tell apart on either side of this one.
            after = 2 ** (game.max_turns - game.turns - 1) - 1
            first, last = max(low, high - after), min(high, low + after)
            return as_said(str(rng.randint(first, last) if first <= last else rng.randint(low, high)), self.form)

        return scripted(game, player)

    def canned(self) -> Canned:
        row = {**self.row((1, 20, 13)), "max_turns": 5}

        def transcript(guesses: str) -> list[Message]:
            said = (as_said(guess, self.form) for guess in guesses.split())
            return scripted(self.environment(row), reciting(said))

        right = transcript("10 15 12 13")
        return Canned(
            row,
            right=(right, transcript("10 21 ten 10 13")),
            wrong=(
                transcript("1 2 3 4 5"),
                transcript("13.0 thirteen 0 99999999999999999999 12"),
                right[:-1],
                [
                    *right[:1],
                    {"role": "user", "content": "The number is lower than 10. Guesses left: 4."},
                    *right[2:],
                ],
                as_said("12", self.form),
            ),
        )


@cache
def _problems(min_numbers: int, max_numbers: int, num_games: int) -> tuple[Problem, ...]:
    rng = random.Random("guess_number")
    found: dict[Problem, None] = {}
    for _ in range(_MAX_DRAWS * num_games):
        low, numbers = rng.randint(1, _MOST_LOW), rng.randint(min_numbers, max_numbers)
        found[(low, low + numbers - 1, rng.randint(low, low + numbers - 1))] = None
        if len(found) == num_games:
            break
    return tuple(found)
