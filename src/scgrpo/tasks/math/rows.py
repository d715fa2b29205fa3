"""From the rows of a data set to problems: columns, prompts, reference answers, what is left out and why."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from scgrpo.errors import DataError
from scgrpo.tasks.base import Row
from scgrpo.tasks.data import Where, find_column, is_chat, read_rows, select_columns, split_names
from scgrpo.tasks.math.answers import clean_gold

logger = logging.getLogger(__name__)

BadRows = Literal["error", "drop"]
PROMPT_COLUMNS = ("problem", "question", "prompt", "Problem")
ANSWER_COLUMNS = ("answer", "Answer", "final_answer", "solution", "ground_truth", "reward_model.ground_truth")
_COLUMN_ROWS = 100  # columns are looked for in so many rows: the first may be the one without an answer
_SHOWN_ROWS = 3  # dropped rows that are named in the log
# DAPO's prompts say how to answer, before and after the problem.
_DAPO_PROMPT = re.compile(
    r"Solve the following math problem step by step\.[^\n]*\n\n(.*)\n\nRemember to put your answer[^\n]*", re.DOTALL
)


class Source(NamedTuple):
    """Where rows come from. `keep`: column -> the value, or list of values, that rows must have there."""

    name: str | None
    config: str | None = None
    split: str | None = None
    columns: Mapping[str, str] = {}
    keep: Mapping[str, Any] = {}
    label: str = ""  # the name of a known set; else the source's own

    def has_split(self) -> bool:
        """Whether there is such a split to read: files have none."""
        return self.name is not None and self.split in (split_names(self.name, self.config) or ())


@dataclass(frozen=True)
class PromptStyle:
    """How prompts are written.

    Attributes:
        instruction: appended to the last user turn; with `{problem}` in it, the turn is put there.
        marks: a prompt with one of these already says how to answer, and is left as it is.
        system_prompt: put in front of prompts that have no system message.
    """

    instruction: str
    marks: tuple[str, ...]
    system_prompt: str | None = None

    def messages(self, prompt: Any) -> list[dict[str, Any]]:
        """Chat messages for a prompt that is a string or such messages."""
        messages = _messages(prompt)
        if self.instruction and not any(mark in _text(m) for m in messages for mark in self.marks):
            last = max(i for i, m in enumerate(messages) if m["role"] == "user" or i == 0)
            messages[last]["content"] = _instructed(messages[last]["content"], self.instruction)
        if self.system_prompt and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        return messages


@dataclass
class Problems:
    """Rows of a source.

    Attributes:
        rows: each problem once.
        solutions: by `problem_id`, the data's own text of the solution.
        spellings: by `problem_id`, a hash without any white space: copies of a problem differ in that most.
    """

    rows: list[Row]
    solutions: dict[str, str] = field(default_factory=dict)
    spellings: dict[str, str] = field(default_factory=dict)


def make_row(prompt: Any, answer: Any, style: PromptStyle, dataset: str = "") -> Row:
    """A row of `MathTask`.

    Raises:
        DataError: the prompt is neither text nor chat messages, or is empty.
        ValueError: there is no one reference answer (`clean_gold`).
    """
    if not any(_text(message).strip() for message in _messages(prompt) if message["role"] != "system"):
        raise DataError("The prompt is empty.", "Fix the row.")
    row = {"problem_id": problem_id(prompt), "prompt": style.messages(prompt), "answer": clean_gold(answer)}
    return {**row, "dataset": dataset}


def problem_id(prompt: Any) -> str:
    """A hash of the problem: the same for a string, a lone user message and DAPO's wording around it, and however
    much white space there is."""
    return _short_hash(" ".join(_words(prompt)))


def _words(prompt: Any) -> list[str]:
    messages = _messages(prompt)
    parts = [_text(m) if len(messages) == 1 else f"{m['role']}: {_text(m)}" for m in messages]
    wrapped = _DAPO_PROMPT.fullmatch(parts[0].strip()) if len(parts) == 1 else None
    return (wrapped[1] if wrapped else " ".join(parts)).split()


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]


def read_problems(source: Source, style: PromptStyle, on_bad_row: BadRows, task: str) -> Problems:
    """Problems of a source, each once: the first row of those with the same problem is kept. What is left out is
    logged.

    Raises:
        DataError: the data cannot be read, has no rows, or lacks a column; or a row that cannot be used, unless
            on_bad_row is "drop" and others can. Names the row.
        MissingExtraError: a package that reads this kind of source is not installed.
    """
    raw, where = read_rows(source.name or "", source.config, source.split or "train")
    if not raw:
        raise DataError(f"{where(0)}: there are no rows.", "Check the file, the configuration and the split.")
    columns = _columns(raw, source.columns, where(0))
    wanted = [index for index, row in enumerate(raw) if _is_kept(row, source.keep)]
    _check_kept(raw, wanted, source, where(0))
    problems = Problems([])
    firsts: dict[str, Row] = {}
    bad: list[DataError] = []
    conflicts = 0
    for index in wanted:
        try:
            found = select_columns(raw[index], columns, where(index))
            row = _row(found, style, source, where, index)
        except DataError as error:
            if on_bad_row == "error":
                raise
            bad.append(error)
            continue
        first = firsts.setdefault(row["problem_id"], row)
        conflicts += first["answer"] != row["answer"]
        if first is row:
            problems.rows.append(row)
            problems.solutions[row["problem_id"]] = _solution(raw[index], found["answer"])
            problems.spellings[row["problem_id"]] = _short_hash("".join(_words(found["prompt"])))
    _report(task, source, len(raw), len(wanted), len(firsts), conflicts, bad)
    if not problems.rows:
        raise DataError(
            f"{source.name}: none of its {len(raw)} rows can be used; the first: {bad[0].problem}",
            "Check the columns, or fix the data.",
        )
    return problems


def _row(found: Mapping[str, Any], style: PromptStyle, source: Source, where: Where, index: int) -> Row:
    try:
        return make_row(found["prompt"], found["answer"], style, source.label or str(source.name))
    except DataError as error:
        raise DataError(f"{where(index)}: {error.problem}", error.remedy) from error
    except ValueError as error:
        raise DataError(
            f"{where(index)}: the answer {str(found['answer'])[:60]!r} cannot be graded against: {error}.",
            'Fix the row, name another column, or set on_bad_row: "drop" to go without such rows.',
        ) from error


def _columns(raw: Sequence[Mapping[str, Any]], named: Mapping[str, str], where: str) -> dict[str, str]:
    filled: dict[str, Any] = {}
    for row in raw[:_COLUMN_ROWS]:
        for name, value in row.items():
            if filled.get(name) is None:
                filled[name] = value
    return {
        what: named.get(what) or find_column(filled, candidates, what, where)
        for what, candidates in (("prompt", PROMPT_COLUMNS), ("answer", ANSWER_COLUMNS))
    }


def _is_kept(row: Mapping[str, Any], keep: Mapping[str, Any]) -> bool:
    return all(row.get(column) in _values(value) for column, value in keep.items())


def _values(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)


def _check_kept(raw: Sequence[Mapping[str, Any]], wanted: Sequence[int], source: Source, where: str) -> None:
    for column in source.keep:
        if all(row.get(column) is None for row in raw):
            raise DataError(
                f"{where}: no row has the column {column!r} of keep; found {', '.join(raw[0])}.",
                "Correct keep, or set keep: {} to take every row.",
            )
    if not wanted:
        raise DataError(f"{where}: no row is like keep={dict(source.keep)}.", "Correct keep.")


def _solution(raw: Mapping[str, Any], answer: Any) -> str:
    value = raw.get("solution") or answer
    return str(value[0] if isinstance(value, (list, tuple)) else value)


def _report(
    task: str, source: Source, total: int, wanted: int, unique: int, conflicts: int, bad: Sequence[DataError]
) -> None:
    if wanted < total:
        logger.info("%s: %d of %d rows of %s are like %s.", task, wanted, total, source.name, dict(source.keep))
    if bad:
        shown = "; ".join(error.problem for error in bad[:_SHOWN_ROWS])
        logger.warning(
            "%s: %d of %d rows of %s cannot be used and are dropped: %s%s",
            *(task, len(bad), wanted, source.name, shown, " ..." if len(bad) > _SHOWN_ROWS else ""),
        )
    repeated = wanted - len(bad) - unique
    if repeated:
        logger.warning(
            "%s: %d of %d rows of %s repeat an earlier problem (%d with another answer); the first is kept.",
            *(task, repeated, wanted, source.name, conflicts),
        )


def _messages(prompt: Any) -> list[dict[str, Any]]:
    return [dict(m) for m in prompt] if is_chat(prompt) else [{"role": "user", "content": prompt}]


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(str(part.get("text", "")) for part in content)


def _instructed(content: Any, instruction: str) -> Any:
    before, mark, after = instruction.partition("{problem}")
    if not mark:
        before, after = "", f"\n\n{instruction}"
    if isinstance(content, str):
        return before + content + after
    return [*_parts(before), *content, *_parts(after)]


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}] if text else []
