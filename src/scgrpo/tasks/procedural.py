"""Tasks whose problems are enumerated, not downloaded: a stable split, rows in a fixed order, a grading loop."""

from __future__ import annotations

import hashlib
import random
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from scgrpo.errors import ConfigError, DataError, ShapeError
from scgrpo.tasks.base import Row, Split, Task, Verdict
from scgrpo.tasks.environment import EnvironmentTask, actions

# What identifies a problem; two rows with the same key are the same problem.
Problem = tuple[int, ...]
EvalPart = Literal["all", "tune", "final"]


class ProceduralTask(Task):
    """A task over a finite list of problems with several correct solutions each.

    Completions are text. In a task that is an `EnvironmentTask` too, they are transcripts, and actions are its words.

    A quarter of the problems is held out, by a hash of the problem itself: no problem is in both splits, and the
    split depends on no seed. `rows("train", n)` repeats the problems in a new order as often as `n` asks for;
    `rows("eval")` has each held-out problem at most once, `num_eval_rows` of them unless a limit asks for more.

    Args:
        eval_part: which held-out problems `rows("eval")` has: all, or one of two halves (by the same hash): settings
            are chosen on `tune`, and what is reported comes from `final`.

    Attributes:
        words: every word of its prompts and correct completions, in a fixed order; may repeat some.
        free_words: those that never decide whether a completion is correct.
        max_completion_length: tokens to sample. Longer than the longest correct completion and its end token, so a
            completion that was cut off is too long to be correct.
        num_eval_rows: default size of the eval split.

    Raises:
        ConfigError: unknown part.
    """

    template = "tiny"
    words: tuple[str, ...]
    free_words: frozenset[str] = frozenset()
    max_completion_length: int
    num_eval_rows = 200

    def __init__(self, eval_part: EvalPart = "all") -> None:
        if eval_part not in get_args(EvalPart):
            raise ConfigError(f"Unknown eval_part {eval_part!r}.", f"Choose one of {', '.join(get_args(EvalPart))}.")
        self.eval_part = eval_part

    @abstractmethod
    def problems(self) -> list[Problem]:
        """All problems, each once, in a fixed order."""

    @abstractmethod
    def row(self, problem: Problem) -> Row:
        """The row of one problem."""

    @abstractmethod
    def is_correct(self, completion: Any, row: Mapping[str, Any]) -> bool:
        """Whether the completion, word by word, is a correct solution."""

    @abstractmethod
    def attempt(self, row: Mapping[str, Any], rng: random.Random) -> Any:
        """A well-formed solution made without looking at the target: usually wrong."""

    @abstractmethod
    def solution(self, row: Mapping[str, Any], rng: random.Random) -> Any:
        """One of the correct solutions, drawn at random."""

    @abstractmethod
    def is_solvable(self, words: Sequence[str], row: Mapping[str, Any]) -> bool:
        """Whether some correct completion starts with these words (exact). True of the words of a correct one."""

    def words_of(self, completion: Any) -> list[str]:
        """What a completion consists of: words; for a task that is an `EnvironmentTask` too, the actions."""
        return (
            actions(completion) if isinstance(self, EnvironmentTask) else completion.split(" ") if completion else []
        )

    def demonstration(self, row: Mapping[str, Any], rng: random.Random) -> Any:
        """What a document shows as a verified demonstration: a correct solution."""
        return self.solution(row, rng)

    def followed(self, demonstration: Any, rng: random.Random) -> Any:
        """What a document's completion makes of a verified demonstration: it repeats it."""
        return demonstration

    def recovery(self, row: Mapping[str, Any], demonstration: Any, rng: random.Random) -> Any:
        """A correct completion that strays from the demonstration and finds back to it.

        Raises:
            ConfigError: the task knows no such completions.
        """
        raise ConfigError(f"Solutions of {self.name!r} do not find back.", "Set the recipe's recover to 0.")

    def first_errors(self, completions: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[int | None]:
        """Index of the word at which each completion became unsolvable; None for correct ones.

        Exact: a correct completion starts with the words before it, and none with it, too. The number of words, if
        the completion ended too early.
        """
        return [self._first_error(completion, row) for completion, row in zip(completions, rows, strict=True)]

    def _first_error(self, completion: Any, row: Mapping[str, Any]) -> int | None:
        if self.is_correct(completion, row):
            return None
        words = self.words_of(completion)
        # What cannot be saved after some word cannot be saved later.
        return bisect_left(range(len(words)), True, key=lambda last: not self.is_solvable(words[: last + 1], row))

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        """Rows of a split, the same at every call.

        Raises:
            ConfigError: unknown split, negative limit.
        """
        if split not in ("train", "eval"):
            raise ConfigError(f"Unknown split {split!r}.", "Use 'train' or 'eval'.")
        if limit is not None and limit < 0:
            raise ConfigError(f"limit is {limit}.", "Use a limit of at least 0, or None.")
        problems = [problem for problem in self.problems() if self.held_out(problem) == (split == "eval")]
        if split == "eval" and self.eval_part != "all":
            problems = [
                problem for problem in problems if (self._hash(problem)[1] % 2 == 0) == (self.eval_part == "tune")
            ]
        rng = random.Random(f"{self.name} {split}")
        if split == "eval":
            chosen = rng.sample(problems, len(problems))[: self.num_eval_rows if limit is None else limit]
        else:
            num_rows = len(problems) if limit is None else limit
            chosen = []
            while len(chosen) < num_rows:
                chosen += rng.sample(problems, len(problems))
            chosen = chosen[:num_rows]
        return [self.row(problem) for problem in chosen]

    def held_out(self, problem: Problem) -> bool:
        """Whether the problem belongs to the eval split."""
        return self._hash(problem)[0] % 4 == 0

    def _hash(self, problem: Problem) -> bytes:
        return hashlib.sha256(" ".join([self.name, *map(str, problem)]).encode()).digest()

    def verify(self, completions: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """1 for a correct completion, 0 for any other.

        Raises:
            ShapeError: different numbers of completions and rows.
            DataError: a row lacks a column the verifier needs.
        """
        if len(completions) != len(rows):
            raise ShapeError(f"{len(completions)} completions for {len(rows)} rows.", "Give one row per completion.")
        verdicts = []
        for index, (completion, row) in enumerate(zip(completions, rows, strict=True)):
            try:
                verdicts.append(Verdict(float(self.is_correct(completion, row))))
            except KeyError as error:
                raise DataError(
                    f"Row {index} has no column {error}.", f"Take rows from the task {self.name!r} itself."
                ) from error
        return verdicts


def user_prompt(text: str) -> list[dict[str, str]]:
    """A conversation of one user message."""
    return [{"role": "user", "content": text}]
