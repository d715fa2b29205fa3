r"""Mathematics with a short final answer: GSM8K, MATH, DAPO-Math, AIME and data sets like them.

Rows come from the hub or a local file; a completion is graded by its last `\boxed{}` (or its end), first as text and,
where that does not decide, by math-verify in worker processes that can be killed. A comparison that takes too long or
crashes is no verdict, never "wrong".
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import math
import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scgrpo.errors import ConfigError, DataError, MissingExtraError, ShapeError
from scgrpo.tasks._math_answers import FinalAnswer, clean_gold, final_answer, quick_score
from scgrpo.tasks.base import Canned, Row, Split, Task, Verdict
from scgrpo.tasks.data import find_column, is_chat, read_rows, select_columns, split_names
from scgrpo.tasks.pool import VerifierPool

logger = logging.getLogger(__name__)

INSTRUCTION = "Reason step by step, and put your final answer within \\boxed{}."
# A prompt with one of these already says how to answer (DAPO-Math: "The last line ... Answer: $Answer").
_INSTRUCTED = ("\\boxed", "Answer:")
PROMPT_COLUMNS = ("problem", "question", "prompt", "Problem")
ANSWER_COLUMNS = ("answer", "Answer", "solution", "ground_truth", "reward_model.ground_truth")


class MathTask(Task):
    r"""Problems with a final answer, graded by text and algebra.

    Rows have `problem_id` (hash of the problem), `prompt` (chat messages) and `answer`. Rows with the same problem
    are kept once, and no training row has a problem of the evaluation rows; what is dropped is logged.

    Args:
        name: name of the task and its reward function.
        dataset_name: training data: hub id, folder, or `.jsonl`, `.json`, `.parquet` file (`scgrpo.tasks.data`).
        dataset_config: configuration on the hub.
        dataset_train_split: split that is trained on.
        dataset_test_split: split of the evaluation rows, if the data has it.
        columns: names of the `prompt` and `answer` columns, dotted for a field in a column. Default: the first of
            problem, question, prompt, and of answer, solution, ground_truth, reward_model.ground_truth.
        eval_dataset_name: other data to take the evaluation rows from; `dataset_test_split` is then a split of it.
        eval_dataset_config, eval_columns: as above, for `eval_dataset_name`.
        eval_fraction: share of the training data that is held out if there are no other evaluation rows.
        split_seed: which rows these are.
        instruction: appended to the last user turn, unless the prompt already says how to answer; "" for none.
        system_prompt: put in front of prompts that have no system message.
        num_workers, timeout_s: of the `VerifierPool` behind the comparisons that need algebra.

    Raises:
        ConfigError: a setting out of range.
        MissingExtraError: math-verify is not installed.
    """

    template = "math"

    def __init__(
        self,
        *,
        name: str = "math",
        dataset_name: str | None = None,
        dataset_config: str | None = None,
        dataset_train_split: str = "train",
        dataset_test_split: str | None = "test",
        columns: Mapping[str, str] | None = None,
        eval_dataset_name: str | None = None,
        eval_dataset_config: str | None = None,
        eval_columns: Mapping[str, str] | None = None,
        eval_fraction: float = 0.1,
        split_seed: int = 0,
        instruction: str = INSTRUCTION,
        system_prompt: str | None = None,
        num_workers: int = 2,
        timeout_s: float = 10.0,
    ) -> None:
        if not 0 <= eval_fraction < 1:
            raise ConfigError(
                f"eval_fraction is {eval_fraction}.", "Give a share of the rows, 0 <= eval_fraction < 1."
            )
        if importlib.util.find_spec("math_verify") is None:
            raise MissingExtraError(f"Task {name!r} needs math-verify.", 'Install it: pip install "scgrpo[math]".')
        self.name = name
        self.instruction, self.system_prompt = instruction, system_prompt
        self._train = _Source(dataset_name, dataset_config, dataset_train_split, dict(columns or {}))
        if eval_dataset_name is None:
            self._eval = self._train._replace(split=dataset_test_split)
        else:
            self._eval = _Source(eval_dataset_name, eval_dataset_config, dataset_test_split, dict(eval_columns or {}))
        self._eval_fraction, self._split_seed = eval_fraction, split_seed
        self._num_workers, self._timeout_s = num_workers, timeout_s
        self._solutions: dict[str, str] = {}
        self._pool: VerifierPool | None = None
        self._lock = threading.Lock()

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        """Rows of a split, the first `limit` of them.

        Raises:
            ConfigError: no data source is set, or no such split.
            DataError, MissingExtraError: the data cannot be read.
        """
        if split not in ("train", "eval"):
            raise ConfigError(f"There is no split {split!r}.", "Choose train or eval.")
        if (self._train if split == "train" else self._eval).name is None:
            raise ConfigError(f"Task {self.name!r} has no data.", "Set dataset_name to a hub id or a local file.")
        return self._splits[split][:limit]

    def verify(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """Verdicts with score 1.0 (equal to the row's `answer`) or 0.0.

        Raises:
            ShapeError: different numbers of completions and rows.
            VerifierError: math-verify cannot be imported by a worker process.
        """
        if len(completions) != len(rows):
            raise ShapeError(f"{len(completions)} completions for {len(rows)} rows.", "Give one row per completion.")
        pairs = [_pair(c, row.get("answer")) for c, row in zip(completions, rows, strict=True)]
        known = {pair: _verdict_without_algebra(*pair) for pair in pairs}
        hard = [(answer.text, gold) for (answer, gold), verdict in known.items() if verdict is None]
        hard = list(dict.fromkeys(hard))
        graded = dict(zip(hard, self._compare(hard), strict=True)) if hard else {}
        return [known[pair] or graded[pair[0].text, pair[1]] for pair in pairs]

    def solution(self, row: Mapping[str, Any], rng: random.Random) -> str:
        """The data's own text for a row of this task: its column `solution`, or else the answer as it stands there
        (GSM8K's is worked out)."""
        return self._solutions[row["problem_id"]]

    def canned(self) -> Canned:
        row = self._row("What is the probability that two fair coins do not both show heads?", "\\frac{3}{4}")
        return Canned(
            row=row,
            right=(
                "Both show heads with probability 1/4, so the answer is \\boxed{\\frac{3}{4}}.",
                "That is $1 - 0.25 = \\boxed{0.75}$.",
            ),
            wrong=("Both show heads with probability \\boxed{\\frac{1}{4}}.", "I do not know."),
        )

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        with self._lock:
            if self._pool is None:
                self._pool = VerifierPool(
                    "scgrpo.tasks._math_grading:grade", num_workers=self._num_workers, timeout_s=self._timeout_s
                )
            pool = self._pool
        # A comparison has several timed steps; the pool's deadline is above a few of them.
        step_s = max(1, int(self._timeout_s / 4))
        return pool.grade([{"answer": answer, "gold": gold, "timeout_s": step_s} for answer, gold in pairs])

    @functools.cached_property
    def _splits(self) -> dict[Split, list[Row]]:
        train = [] if self._train.name is None else self._read(self._train)
        if self._eval.name == self._train.name and not self._eval.has_split():
            held_out = _held_out(train, self._eval_fraction, self._split_seed)
            return {
                "train": [row for row in train if row["problem_id"] not in held_out],
                "eval": [row for row in train if row["problem_id"] in held_out],
            }
        evaluation = self._read(self._eval)
        shared = {row["problem_id"] for row in evaluation}
        kept = [row for row in train if row["problem_id"] not in shared]
        if len(kept) < len(train):
            logger.warning(
                "%s: %d training rows are evaluation problems; dropped.", self.name, len(train) - len(kept)
            )
        return {"train": kept, "eval": evaluation}

    def _read(self, source: _Source) -> list[Row]:
        raw, where = read_rows(source.name or "", source.config, source.split or "train")
        if not raw:
            raise DataError(f"{where(0)}: there are no rows.", "Check the file, the configuration and the split.")
        columns = {
            what: source.columns.get(what) or find_column(raw[0], candidates, what, where(0))
            for what, candidates in (("prompt", PROMPT_COLUMNS), ("answer", ANSWER_COLUMNS))
        }
        rows: dict[str, Row] = {}
        conflicts = 0
        for index, raw_row in enumerate(raw):
            found = select_columns(raw_row, columns, where(index))
            row = self._row(found["prompt"], found["answer"])
            self._solutions.setdefault(row["problem_id"], str(raw_row.get("solution") or found["answer"]))
            first = rows.setdefault(row["problem_id"], row)
            conflicts += first["answer"] != row["answer"]
        if len(rows) < len(raw):
            logger.warning(
                "%s: %d of %d rows of %s repeat an earlier problem (%d with another answer); the first is kept.",
                self.name,
                len(raw) - len(rows),
                len(raw),
                source.name,
                conflicts,
            )
        return list(rows.values())

    def _row(self, prompt: Any, answer: Any) -> Row:
        messages = [dict(m) for m in prompt] if is_chat(prompt) else [{"role": "user", "content": prompt}]
        problem_id = _short_hash(messages)
        if self.instruction and not any(mark in _text(m) for m in messages for mark in _INSTRUCTED):
            last = max(i for i, m in enumerate(messages) if m["role"] == "user" or i == 0)
            messages[last]["content"] = _append(messages[last]["content"], f"\n\n{self.instruction}")
        if self.system_prompt and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        return {"problem_id": problem_id, "prompt": messages, "answer": clean_gold(answer)}


gsm8k = functools.partial(MathTask, name="gsm8k", dataset_name="openai/gsm8k", dataset_config="main")
dapo_math = functools.partial(
    MathTask,
    name="dapo_math",
    dataset_name="open-r1/DAPO-Math-17k-Processed",
    dataset_config="all",
    dataset_test_split=None,
)


class _Source(NamedTuple):
    name: str | None
    config: str | None
    split: str | None
    columns: dict[str, str]

    def has_split(self) -> bool:
        """Whether there is such a split to read: files have none."""
        return self.name is not None and self.split in (split_names(self.name, self.config) or ())


def _pair(completion: str, gold: Any) -> tuple[FinalAnswer, str]:
    return final_answer(completion), "" if gold is None else str(gold)


def _verdict_without_algebra(answer: FinalAnswer, gold: str) -> Verdict | None:
    if not gold.strip():
        return Verdict.error("the row has no reference answer")
    score = 0.0 if not answer.text.strip() else None if answer.short is None else quick_score(answer.short, gold)
    return None if score is None else Verdict(score)


def _held_out(rows: Sequence[Row], fraction: float, seed: int) -> set[str]:
    """Ids of the problems that come first when ordered by a seeded hash, whatever the order of the file."""
    ids = sorted((hashlib.sha256(f"{seed}:{row['problem_id']}".encode()).digest(), row["problem_id"]) for row in rows)
    wanted = min(math.ceil(fraction * len(ids)), len(ids) - 1)
    return {problem_id for _, problem_id in ids[:wanted]}


def _short_hash(messages: Sequence[Mapping[str, Any]]) -> str:
    # A lone user message hashes like the same text given as a string; white space is no difference.
    parts = [_text(m) if len(messages) == 1 else f"{m['role']}: {_text(m)}" for m in messages]
    return hashlib.sha256(" ".join(" ".join(parts).split()).encode()).hexdigest()[:12]


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(str(part.get("text", "")) for part in content)


def _append(content: Any, text: str) -> Any:
    return content + text if isinstance(content, str) else [*content, {"type": "text", "text": text}]
