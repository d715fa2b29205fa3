r"""Rows with a short answer, compared as text: labels, names, dates, multiple choice. No algebra: that is `math`.

What is compared is the answer a completion ends with: what stands after its last `Answer:`, or else all of it, but
nothing before a closing `</think>`.
"""

from __future__ import annotations

import hashlib
import re
import string
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from scgrpo.errors import ConfigError, DataError, ShapeError
from scgrpo.tasks.base import Canned, Row, Split, Task, Verdict
from scgrpo.tasks.data import (
    Where,
    checked_columns,
    deduplicated,
    is_chat,
    read_rows,
    select_columns,
    split_names,
    train_eval_split,
)
from scgrpo.tasks.pool import VerifierPool, check_limits

Match = Literal["text", "choice", "regex"]
INSTRUCTION = 'End with a last line "Answer: ..." that holds your answer and nothing else.'
_ANSWER = re.compile(r"answer\W{0,4}[:：][\s*]*([^\n]+)", re.IGNORECASE)
_DRESSING = "*`_\"'“”‘’$"  # what models put around an answer
_DRESS = str.maketrans("", "", _DRESSING)
_LETTER = re.compile(r"\b[A-Z]\b")
_MARKED_LETTER = re.compile(r"\(?([A-Z])(?:[).:,]|$)")  # "B", "B.", "(B) Paris", but not "A better one"
# The tail in which an answer is looked for.
_TAIL_CHARS = 5000


class ExactTask(Task):
    """Questions whose answers are compared as text.

    Rows have `problem_id` (hash of the question), `prompt` (chat messages), `answers` (all that are right) and, for
    multiple choice, `choices`. A question that is repeated is kept once.

    Args:
        name: name of the task and its reward function.
        dataset_name: hub id, folder, or `.jsonl`, `.json`, `.parquet` file (`scgrpo.tasks.data`).
        dataset_config: configuration on the hub.
        dataset_train_split: split that is trained on.
        dataset_test_split: split of the evaluation rows, if the data has it.
        columns: names of the columns `prompt`, `answer` (text, a number, or a list of all that are right) and
            `choices` (a list of texts), where they are called otherwise; dotted for a field in a column.
        eval_fraction: share of the rows that is held out if there is no split of evaluation rows; 1: all of them are
            for evaluation.
        split_seed: which rows these are.
        match: `text`: equal but for case, spaces and what models put around an answer (quotes, stars, a full stop);
            `choice`: the letter of the right choice, or its text; `answer` is a letter, a text, or a number from 0;
            `regex`: `answer` is a regular expression that the whole answer must match.
        pattern: regular expression that finds the answer in a completion, the last match counts, its first group if
            it has one; in place of `Answer:`.
        instruction: appended to the last user turn; "" for none.
        system_prompt: put in front of prompts that have no system message.
        num_workers, timeout_s: of the `VerifierPool` behind regular expressions, which can take for ever.

    Raises:
        ConfigError: a setting out of range, or a pattern that is none.
    """

    def __init__(
        self,
        *,
        name: str = "exact",
        dataset_name: str | None = None,
        dataset_config: str | None = None,
        dataset_train_split: str = "train",
        dataset_test_split: str | None = "test",
        columns: Mapping[str, str] | None = None,
        eval_fraction: float = 0.1,
        split_seed: int = 0,
        match: Match = "text",
        pattern: str | None = None,
        instruction: str = INSTRUCTION,
        system_prompt: str | None = None,
        num_workers: int = 2,
        timeout_s: float = 5.0,
    ) -> None:
        if match not in get_args(Match):
            raise ConfigError(f"match is {match!r}.", f"Choose one of {', '.join(get_args(Match))}.")
        if pattern is not None:
            _compiled(pattern, "pattern")
        self.name, self.match, self.pattern = name, match, pattern
        self.instruction, self.system_prompt = instruction, system_prompt
        self._source = (dataset_name, dataset_config, dataset_train_split, dataset_test_split)
        names = ("prompt", "answer", "choices") if match == "choice" else ("prompt", "answer")
        self._columns = {name: name for name in names} | checked_columns(columns, names)
        check_limits(num_workers, timeout_s, None)
        self._eval_fraction, self._split_seed = eval_fraction, split_seed
        self._num_workers, self._timeout_s = num_workers, timeout_s
        self._pool: VerifierPool | None = None
        self._lock = threading.Lock()
        self._splits: dict[Split, list[Row]] = {}

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        """Rows of a split, the first `limit` of them.

        Raises:
            ConfigError: no data source is set, or no such split.
            DataError, MissingExtraError: the data cannot be read, or a row is malformed.
        """
        if split not in ("train", "eval"):
            raise ConfigError(f"There is no split {split!r}.", "Choose train or eval.")
        if not self._splits:
            self._splits = self._read()
        return self._splits[split][:limit]

    def verify(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """Verdicts with score 1.0 (one of the row's `answers`) or 0.0.

        Raises:
            ShapeError: different numbers of completions and rows.
        """
        if len(completions) != len(rows):
            raise ShapeError(f"{len(completions)} completions for {len(rows)} rows.", "Give one row per completion.")
        items: list[dict[str, Any]] = [
            {
                "completion": completion.rpartition("</think>")[2][-_TAIL_CHARS:],
                "answers": list(row["answers"]),
                "choices": list(row.get("choices") or []),
                "match": self.match,
                "pattern": self.pattern,
            }
            for completion, row in zip(completions, rows, strict=True)
        ]
        if self.match == "regex" or self.pattern is not None:
            return self._workers().grade(items)
        return [Verdict(grade(**item)) for item in items]

    def canned(self) -> Canned:
        answer = {"text": "Paris", "choice": "B", "regex": "[Pp]aris"}[self.match]
        choices = ["Rome", "Paris", "Oslo"] if self.match == "choice" else None
        row = self._row(
            {"prompt": "What is the capital of France?", "answer": answer, "choices": choices}, "the example"
        )
        if self.pattern is not None:  # what it finds is the user's to say
            return Canned(row, (), ("",))
        said = "B" if choices else "Paris"
        return Canned(
            row, (f"It lies on the Seine.\nAnswer: {said}", f"**Answer:** {said}."), ("Answer: Rome", "", "Well")
        )

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _workers(self) -> VerifierPool:
        with self._lock:
            if self._pool is None:
                self._pool = VerifierPool(
                    "scgrpo.tasks.exact:grade", num_workers=self._num_workers, timeout_s=self._timeout_s
                )
            return self._pool

    def _read(self) -> dict[Split, list[Row]]:
        source, config, train, test = self._source
        if not source:
            raise ConfigError(f"Task {self.name!r} has no data.", "Set dataset_name to a hub id or a local file.")
        rows = self._converted(*read_rows(source, config, train), source)
        if test is None or test not in (split_names(source, config) or ()):
            if self._eval_fraction == 1:
                return {"train": [], "eval": rows}
            kept, held_out = train_eval_split(rows, self._eval_fraction, self._split_seed)
            return {"train": kept, "eval": held_out}
        held_out = self._converted(*read_rows(source, config, test), source)
        ids = {row["problem_id"] for row in held_out}
        return {"train": [row for row in rows if row["problem_id"] not in ids], "eval": held_out}

    def _converted(self, raw: Sequence[Mapping[str, Any]], where: Where, source: str) -> list[Row]:
        rows = [self._row(select_columns(row, self._columns, where(at)), where(at)) for at, row in enumerate(raw)]
        return deduplicated(rows, lambda row: row["problem_id"], str(source))

    def _row(self, given: Mapping[str, Any], where: str) -> Row:
        messages = _messages(given["prompt"], where)
        answers = _answers(given["answer"], where)
        choices = [str(choice) for choice in given.get("choices") or []]
        if len(choices) > len(string.ascii_uppercase):
            raise DataError(f"{where}: {len(choices)} choices, more than letters.", "Leave the row out.")
        problem_id = hashlib.sha256(repr((messages, choices)).encode("utf-8", "backslashreplace")).hexdigest()[:12]
        added = [f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, choices, strict=False)]
        if self.match == "choice":
            answers = [_letter(one, choices, where) for one in answers]
        if self.match == "regex":
            for one in answers:
                _compiled(one, f"{where}: the answer")
        elif not any(normalised(one) for one in answers):
            raise DataError(f"{where}: the answer is empty.", "Fix the row, or leave it out.")
        last = max(i for i, m in enumerate(messages) if m["role"] == "user" or i == 0)
        parts = [messages[last]["content"], "\n".join(added), self.instruction]
        messages[last]["content"] = "\n\n".join(part for part in parts if part)
        if self.system_prompt and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        return {"problem_id": problem_id, "prompt": messages, "answers": answers, "choices": choices}


def _messages(prompt: Any, where: str) -> list[dict[str, Any]]:
    try:
        messages = [dict(m) for m in prompt] if is_chat(prompt) else [{"role": "user", "content": prompt}]
    except DataError as error:
        raise DataError(f"{where}: {error.problem}", error.remedy) from error
    if (
        not all(isinstance(m["content"], str) for m in messages)
        or not "".join(m["content"] for m in messages).strip()
    ):
        raise DataError(f"{where}: the prompt is empty, or holds more than text.", "Fix the row, or leave it out.")
    return messages


def _answers(given: Any, where: str) -> list[str]:
    answers = list(given) if isinstance(given, list | tuple) else [given]
    for one in answers:
        if not isinstance(one, str | int | float) or one != one:
            raise DataError(f"{where}: the answer {one!r} is neither a text nor a number.", "Fix the row.")
    if not any(str(one).strip() for one in answers):
        raise DataError(f"{where}: the answer is empty.", "Fix the row, or leave it out.")
    return [str(one) for one in answers]


def grade(completion: str, answers: list[str], choices: list[str], match: Match, pattern: str | None) -> float:
    """1.0 if the completion's answer is one of those that are right, else 0.0."""
    said = _said(completion, pattern)
    if match == "regex":
        forms = (said.strip(), said.strip(f" .{_DRESSING}"))
        return float(any(re.fullmatch(answer, form) for answer in answers for form in forms))
    if match == "choice":
        return float(_chosen(said, choices) in answers)
    return float(normalised(said) in {normalised(answer) for answer in answers} and normalised(said) != "")


def normalised(text: str) -> str:
    """Without case, and what does not belong to an answer: quotes, stars, a full stop, spaces beyond one."""
    return " ".join(text.translate(_DRESS).split()).rstrip(".").strip().casefold()


def _said(completion: str, pattern: str | None) -> str:
    if pattern is None:
        found = _ANSWER.findall(completion)
        return found[-1] if found else completion
    matches = list(re.finditer(pattern, completion))
    if not matches:
        return ""
    return matches[-1][1 if matches[-1].re.groups else 0] or ""


def _chosen(said: str, choices: Sequence[str]) -> str | None:
    """The letter of the choice: its text, or the only letter that the answer names."""
    texts = [normalised(choice) for choice in choices]
    if normalised(said) in texts:
        return string.ascii_uppercase[texts.index(normalised(said))]
    text = said.translate(_DRESS).strip()
    marked = _MARKED_LETTER.match(text)
    letters = {marked[1]} if marked else set(_LETTER.findall(text)) & set(string.ascii_uppercase[: len(choices)])
    return letters.pop() if len(letters) == 1 else None


def _letter(answer: str, choices: Sequence[str], where: str) -> str:
    letters = string.ascii_uppercase[: len(choices)]
    if answer in choices:
        return letters[choices.index(answer)]
    if answer.strip().upper() in letters and answer.strip():
        return answer.strip().upper()
    if answer.strip().isdecimal() and int(answer) < len(choices):
        return letters[int(answer)]
    raise DataError(
        f"{where}: the answer {answer!r} is none of the {len(choices)} choices.",
        "Give its letter, its text, or its number from 0.",
    )


def _compiled(pattern: str, what: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{what} {pattern!r} is no regular expression: {error}.", "Mend it.") from error
