"""What the model is told, and what its answers mean. The wording is ours.

action         <think>...</think><code>...</code>
observation    what the code printed, or its error, cut to a number of characters
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from scgrpo.tasks.base import Message

# Of an observation, and of the history in a prompt of its own for each step.
MAX_OBSERVATION_CHARS = 10_000
MAX_HISTORY_CHARS = 10_000

_CODE = re.compile(r"<code>(.*?)</code>", re.DOTALL)
_FENCE = re.compile(r"\A\s*```[\w+-]*[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)

SYSTEM = """\
You act for a person in apps such as mail, music, notes, payments and phone. You do so by writing Python code, which \
is run for you in one lasting session, and you read what it prints. Nobody will answer questions: decide by yourself.

The object `apis` has all you may use, as apis.<app>.<api>(...), with keyword arguments:
- print(apis.api_docs.show_app_descriptions()) lists the apps.
- print(apis.api_docs.show_api_descriptions(app_name="...")) lists the APIs of an app.
- print(apis.api_docs.show_api_doc(app_name="...", api_name="...")) explains one API: parameters, results, errors.
- apis.supervisor has what you may know of the person: profile, addresses, payment cards, and with \
show_account_passwords() the passwords of their accounts. Most APIs of an app want the access token that its login \
returns.
- apis.supervisor.complete_task(answer=...) ends the work. Give an answer only if the request asks for information: \
as short as possible, a number or a name. Otherwise call it without one. If it cannot be done, pass status="fail".

Rules:
- In each turn think first, then write one block of code: <think>your thoughts</think><code>your code</code>
- Read the documentation of an API before you call it. Work in small steps, and print what you need to see.
- Results come in pages: go through all of them.
- Do exactly what is asked: change nothing else. "I", "my" in the request are the person's.
- Variables stay from turn to turn. Files, other programs and the network are closed to you."""

NO_CODE = "No code was run. Write your thoughts, then one block of code: <think>...</think><code>...</code>"


def first_prompt(specs: Mapping[str, Any]) -> list[Message]:
    """The messages before the first action.

    Args:
        specs: a task's: `instruction`, and `supervisor` with names, email and phone number.

    Raises:
        KeyError: one is missing.
    """
    person = specs["supervisor"]
    user = (
        f"You act for {person['first_name']} {person['last_name']} (email {person['email']}, phone number "
        f"{person['phone_number']}).\n\nTheir request: {specs['instruction']}"
    )
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


def code_of(action: str) -> str | None:
    """The first block of code after the last thought, without a Markdown fence; None: there is none."""
    found = _CODE.search(action.rpartition("</think>")[2])
    if found is None:
        return None
    fenced = _FENCE.match(found[1])
    return (fenced[1] if fenced else found[1]).strip() or None


def action_of(code: str, thought: str = "") -> str:
    """An action that runs the code."""
    return f"<think>{thought}</think><code>{code}</code>"


def cut(text: str, limit: int) -> str:
    """The first `limit` characters, with a note of how many are missing."""
    return text if len(text) <= limit else f"{text[:limit]}\n[{len(text) - limit} more characters were cut off]"


def step_prompt(prompt: Sequence[Message], history: Sequence[tuple[str, str]], observation: str) -> list[Message]:
    """The messages of one step where each step is a prompt of its own: the first ones, the last `MAX_HISTORY_CHARS`
    characters of what was done so far, and what it led to. Thoughts are left out.

    Args:
        prompt: the task's first messages.
        history: (observation, action) of every step before, in turn; the first observation is empty.
        observation: after the last action; empty at the first step.
    """
    if not history:
        return list(prompt)
    results = [*(seen for seen, _ in history[1:]), observation]
    steps = [
        f"Code {number}:\n{code_of(action) or '(none)'}\nResult {number}:\n{result}"
        for number, ((_, action), result) in enumerate(zip(history, results, strict=True), 1)
    ]
    told = "\n\n".join(steps)
    if len(told) > MAX_HISTORY_CHARS:
        told = f"[earlier steps were cut off]\n{told[-MAX_HISTORY_CHARS:]}"
    *before, last = prompt
    asked = f"{last['content']}\n\nWhat you have done so far:\n\n{told}\n\nNow take step {len(history) + 1}."
    return [*before, {**last, "content": asked}]
