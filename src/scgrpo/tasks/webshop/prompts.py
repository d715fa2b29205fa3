"""What the agent reads and how it answers, in the manner of verl-agent: the task, the page, the admissible actions;
thoughts in `<think>`, the action in `<action>`.

In a growing conversation the first message explains everything and each observation is a message with the page and
the actions. With per-step prompts, every step has a prompt of its own, with the last few pages and actions in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from scgrpo.tasks.base import Message
from scgrpo.tasks.webshop.pages import SEPARATOR, ObservationMode, Page, search_page

_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL | re.IGNORECASE)
_ACTIONS_HEAD = "\nAdmissible actions:\n"
# Of an answer without an action, what a history shows.
_SHOWN_OF_NONE = 20

_ROLE = "You are shopping in WebShop, a shop on the web that you see as text and use by actions."
_HOW = (
    "Take one action now. First reason step by step about where you are and which admissible action brings you "
    "closer to the purchase, inside <{think}> </{think}> tags. Then write that one action, as it stands in the list "
    "(with words of your own in a search), inside <action> </action> tags."
)
_FIRST = (
    "{role}\nYour task: {instruction}\n\n"
    "Each of my messages shows the page that you see and its admissible actions. You have {max_steps} actions, and "
    "the visit ends when you buy. {how}\n\n{observation}"
)
_STEP = (
    "{role}\nYour task: {instruction}\n\n{history}{observation}\n\n{how} You have {left} of {max_steps} actions left."
)
_HISTORY = (
    "You have taken {taken} actions. The last {shown} pages and what you did there:\n{lines}\nNow you see this.\n"
)


def parse_action(text: str) -> str | None:
    """The first `<action>` of an answer, in lower case; None if there is none."""
    match = _ACTION.search(text)
    return match[1].strip().lower() if match else None


def admissible_actions(page: Page) -> list[str]:
    """What may be done on a page. `click[search]`, which does nothing, is left out."""
    searching = ["search[<your query>]"] if page.kind == "search" else []
    return searching + [f"click[{name}]" for name in page.clickables() if name != "search"]


def observation(page: Page, visited: Sequence[str] = (), mode: ObservationMode = "text") -> str:
    """A message with the page, without its instruction, and the admissible actions."""
    start = 3 if page.kind == "search" else 2  # after the title, "Instruction:" and the instruction
    body = Page(page.kind, page.parts[start:], page.address)
    if mode == "text":
        shown = SEPARATOR.join(f"'{part}'" for part in body.texts())
    else:
        shown = body.rich_text(visited).strip()
    actions = "\n".join(f"'{action}'," for action in admissible_actions(page))
    return f"Page: {shown}{_ACTIONS_HEAD}[\n{actions}\n]"


def page_of(message: str) -> str:
    """The page in a message of `observation`."""
    return message.rpartition(_ACTIONS_HEAD)[0].removeprefix("Page: ") or message


def first_observation(mode: ObservationMode) -> str:
    """The search page, where every visit starts."""
    return observation(search_page(""), mode=mode)


def first_prompt(instruction: str, mode: ObservationMode, max_steps: int, think_tag: str) -> list[Message]:
    """What a growing conversation starts with."""
    content = _FIRST.format(
        role=_ROLE,
        instruction=instruction,
        max_steps=max_steps,
        how=_HOW.format(think=think_tag),
        observation=first_observation(mode),
    )
    return [{"role": "user", "content": content}]


def step_prompt(
    instruction: str,
    history: Sequence[tuple[str, str]],
    seen: str,
    *,
    history_length: int,
    max_steps: int,
    max_chars: int,
    think_tag: str,
) -> list[Message]:
    """The prompt of one step.

    Args:
        history: observation and answer of every step so far.
        seen: the observation to answer.
        history_length: how many of the last steps are told; none where the prompt would have more than `max_chars`
            characters with them.
    """
    told = _history(history, history_length)
    contents = [
        _STEP.format(
            role=_ROLE,
            instruction=instruction,
            history=part,
            observation=seen,
            how=_HOW.format(think=think_tag),
            left=max_steps - len(history),
            max_steps=max_steps,
        )
        for part in (told, "")
    ]
    return [{"role": "user", "content": contents[0] if len(contents[0]) <= max_chars else contents[1]}]


def _history(history: Sequence[tuple[str, str]], length: int) -> str:
    recent = list(enumerate(history, start=1))[-length:] if length > 0 else []
    if not recent:
        return ""
    lines = []
    for number, (message, answer) in recent:
        action = parse_action(answer)
        action = answer.lower()[-_SHOWN_OF_NONE:] if action is None else action
        lines.append(f"[Observation {number}: '{page_of(message)}', Action {number}: '{action}']")
    return _HISTORY.format(taken=len(history), shown=len(recent), lines="\n".join(lines))
