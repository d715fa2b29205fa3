"""Whether a task does what it promises: its verdicts on answers that are known, and its rows."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from scgrpo.errors import DataError, ScgrpoError
from scgrpo.tasks.base import Completion, Row, Split, Task, Verdict
from scgrpo.tasks.data import is_chat

# Characters of a completion or prompt that are shown, and of each message of a conversation.
_SHOWN = 2000
_SHOWN_OF_MESSAGE = 40
_LONG = 5_000_000
Print = Callable[[str], None]


class Graded(NamedTuple):
    """A completion whose verdict is known, and the verdict it got. `right` None: anything but solved is fine."""

    what: str
    completion: Completion
    right: bool
    verdict: Verdict
    as_wanted: bool


def grade_canned(task: Task) -> list[Graded]:
    """The verdicts on the task's canned answers; no verdict is not the right one."""
    canned = task.canned()
    graded = []
    for right, completions in ((True, canned.right), (False, canned.wrong)):
        verdicts = task.verify(completions, [canned.row] * len(completions))
        for completion, verdict in zip(completions, verdicts, strict=True):
            what = "right answer" if right else "wrong answer"
            graded.append(Graded(what, completion, right, verdict, _solved(task, verdict) is right))
    return graded


def grade_hostile(task: Task) -> list[Graded]:
    """Answers that no verifier may fall over, nor call solved: nothing at all, a flood, characters out of place."""
    row = task.canned().row
    answers = {
        "empty answer": "",
        f"answer of {_LONG // 1_000_000} MB": "7 " * (_LONG // 2),
        "null byte and lone surrogate": "\x00 \ud800 ```python\n\\boxed{",
    }
    graded = []
    for what, answer in answers.items():
        (verdict,) = task.verify([answer], [row])
        graded.append(Graded(what, answer, False, verdict, not _solved(task, verdict)))
    return graded


def show_graded(graded: Sequence[Graded], emit: Print) -> int:
    """Print them; how many verdicts are not as they should be."""
    for one in graded:
        score = "none" if math.isnan(one.verdict.score) else f"{one.verdict.score:g}"
        detail = f" ({one.verdict.detail})" if one.verdict.detail and not one.as_wanted else ""
        emit(
            f"{'ok ' if one.as_wanted else 'BAD'} {one.what} -> {one.verdict.status}, score {score}{detail}: "
            f"{completion_text(one.completion)}"
        )
    return sum(not one.as_wanted for one in graded)


def check_rows(task: Task, split: Split) -> tuple[list[Row], list[str]]:
    """Rows of a split, and what is wrong with them, in words.

    Raises:
        ScgrpoError, OSError: they cannot be had here.
    """
    rows = task.rows(split)
    problems = []
    if not rows:
        problems.append(f"{split}: there are no rows")
    for index, row in enumerate(rows):
        found = _row_problem(row)
        if found:
            problems.append(f"{split}, row {index}: {found}")
            break
    if task.rows(split, 3) != task.rows(split, 3):
        problems.append(f"{split}: the rows are not the same at every call")
    ids = [row.get("problem_id") for row in rows]
    if split == "eval" and len(set(ids)) < len(ids):
        problems.append(f"eval: {len(ids) - len(set(ids))} rows repeat a problem_id")
    return rows, problems


def _row_problem(row: Row) -> str | None:
    if not isinstance(row.get("problem_id"), str):
        return f"problem_id is {row.get('problem_id')!r}, not text"
    try:
        is_chat(row.get("prompt"))
        json.dumps(row)
    except DataError as error:
        return error.problem
    except (TypeError, ValueError) as error:
        return f"not JSON values: {error}"
    return None


def shared_problems(train: Sequence[Row], held_out: Sequence[Row]) -> int:
    """How many problems are in both splits; with the same tests, where rows name them (`tests`)."""
    keys = [{(row.get("problem_id"), str(row.get("tests"))) for row in rows} for rows in (train, held_out)]
    return len(keys[0] & keys[1])


def prompt_text(prompt: Any) -> str:
    """A prompt as text: a chat with a line in front of each message."""
    return prompt if isinstance(prompt, str) else "\n".join(f"[{m['role']}] {m['content']}" for m in prompt)


def completion_text(completion: Completion) -> str:
    """A completion on one line; of a conversation the ends of the model's messages, where actions are, in quotes, and
    the beginnings of the others."""
    if isinstance(completion, str):
        return shortened(repr(completion if len(completion) < _LONG else completion[:20]))
    said = []
    for message in completion:
        text = " ".join(str(message["content"]).split())
        if message["role"] == "assistant":
            said.append(repr(text if len(text) <= _SHOWN_OF_MESSAGE else f"...{text[-_SHOWN_OF_MESSAGE:]}"))
        else:
            said.append(textwrap.shorten(text, _SHOWN_OF_MESSAGE, placeholder="..."))
    turns = sum(message["role"] == "assistant" for message in completion)
    return f"{turns} turns: {' | '.join(said)}"


def shortened(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def first_line(error: BaseException) -> str:
    """Of its message."""
    text = error.problem if isinstance(error, ScgrpoError) else str(error)
    return (text.splitlines() or [type(error).__name__])[0][:300]


def _solved(task: Task, verdict: Verdict) -> bool | None:
    return None if math.isnan(verdict.score) else verdict.score >= task.success_threshold
