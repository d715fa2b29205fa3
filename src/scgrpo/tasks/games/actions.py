"""How games are spoken: what counts as an action in a model's text, and prompts for single turns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from scgrpo.errors import ConfigError
from scgrpo.tasks.base import Message
from scgrpo.tasks.environment import EnvironmentTask

# tagged: free text with one `<action>...</action>`; plain: the action and nothing else.
Form = Literal["tagged", "plain"]

_TAGGED = re.compile(r"<action>(.*?)</action>", re.DOTALL | re.IGNORECASE)
# Where actions are looked for: an endless text costs no more than this.
_MAX_TAIL = 4000
# What is shown of a turn without an action, in the prompt of a later one.
_MAX_SHOWN = 200


def action_in(text: str, form: str) -> str | None:
    """The action that a turn's text takes, in lower case and with single spaces; None if there is none.

    Tagged: the one action in tags after any `</think>`, in the last 4000 characters; the same one several times is
    one, different ones are none.
    """
    found = [text[:_MAX_TAIL]]
    if form == "tagged":
        found = _TAGGED.findall(text.rpartition("</think>")[2][-_MAX_TAIL:])
    said = {" ".join(action.split()).lower() for action in found}
    return said.pop() or None if len(said) == 1 else None


def as_said(action: str, form: str) -> str:
    """An action as a model would write it."""
    return f"<action>{action}</action>" if form == "tagged" else action


def reciting(said: Iterable[str]) -> Callable[[str | None], str]:
    """A player who says these texts whatever the answers are, and nothing after them."""
    left = iter(said)
    return lambda _: next(left, "")


def how_to_answer(form: str, example: str) -> str:
    """The end of a prompt: the form in which an action is expected."""
    if form == "tagged":
        return (
            "You may think first. End your answer with exactly one action in tags, for example "
            f"{as_said(example, form)}"
        )
    return f"Answer with the action alone, for example: {example}"


def checked(name: str, value: Any, choices: Any) -> Any:
    """An option that is one of the choices of a Literal.

    Raises:
        ConfigError: it is not.
    """
    if value not in get_args(choices):
        known = ", ".join(map(repr, get_args(choices)))
        raise ConfigError(f"{name} is {value!r}.", f"Choose one of {known}.")
    return value


class TextGame(EnvironmentTask):
    """A game whose turns may each have a prompt of their own: the row's, the last few turns, the answer to the last.

    Attributes:
        form: of the actions; see `Form`.
        history_turns: turns that a step's prompt shows.
    """

    template = "agent"
    # What is said of a game that is won, and what is not, must not depend on partial scores.
    success_threshold = 1.0
    form: str
    history_turns: int = 2

    def step_prompt(
        self, row: Mapping[str, Any], history: Sequence[tuple[str, str]], observation: str
    ) -> list[Message]:
        """The prompt of a turn after the first one.

        Args:
            history: for each turn before, the observation it answered ("" for the first) and the action.
            observation: the one to answer.
        """
        answers = [*(seen for seen, _ in history[1:]), observation]
        shown = [
            f"Action {number}: {action_in(text, self.form) or text.strip()[:_MAX_SHOWN]}\nAnswer {number}: {answer}"
            for number, ((_, text), answer) in enumerate(zip(history, answers, strict=True), 1)
        ][-self.history_turns :]
        *before, task = row["prompt"]
        parts = [task["content"], f"You have taken {len(history)} turns. The last of them:", *shown, "What now?"]
        return [*before, {**task, "content": "\n\n".join(parts)}]
