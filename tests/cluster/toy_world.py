"""A world for the toy model: say a letter, hear one, and so on; right about half of the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toy import prompts

from scgrpo.tasks.base import Canned, Message, Row, Split, Verdict
from scgrpo.tasks.environment import EnvironmentTask, Prompting, Step


class Letters:
    """Over after so many turns; right if the first thing said begins with an even character."""

    def __init__(self, turns: int, letters: str) -> None:
        self.left, self.letters, self.said = turns, letters, list[str]()

    def step(self, action: str) -> Step:
        self.said.append(action)
        self.left -= 1
        return Step(self.letters[self.left % len(self.letters)], done=self.left == 0)

    def verdict(self) -> Verdict:
        first = self.said[0].strip() if self.said else ""
        return Verdict(float(first != "" and ord(first[0]) % 2 == 0), detail=f"{len(self.said)} turns")


class LettersTask(EnvironmentTask):
    name = "letters"
    max_turns = 3
    max_action_tokens = 6

    def __init__(self, prompting: Prompting = "concat") -> None:
        self.prompting = prompting

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        return [
            {"problem_id": str(n), "prompt": [{"role": "user", "content": text}], "turns": 2 + n % 2}
            for n, text in enumerate(prompts(16))
        ][:limit]

    def environment(self, row: Mapping[str, Any]) -> Letters:
        return Letters(row["turns"], row["prompt"][0]["content"].replace(" ", ""))

    def step_prompt(
        self, row: Mapping[str, Any], history: Sequence[tuple[str, str]], observation: str
    ) -> list[Message]:
        return [{"role": "user", "content": f"{observation} {len(history)}"}]

    def canned(self) -> Canned:
        return Canned(self.rows("train")[0], ("b",), ("a",))
