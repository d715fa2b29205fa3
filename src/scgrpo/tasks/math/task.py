r"""Mathematics with a short final answer: GSM8K, MATH, DAPO-Math, AIME and data sets like them.

Rows come from the hub or a local file. A completion is graded by its last `\boxed{}` (or its end), first as text and,
where that does not decide, by math-verify in worker processes that can be killed; or, strictly, by its last `Answer:`
line as text alone. A comparison that takes too long or crashes is no verdict, never "wrong".
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from scgrpo.errors import ConfigError, MissingExtraError, ShapeError
from scgrpo.tasks.base import Canned, Row, Split, Task, Verdict
from scgrpo.tasks.data import train_eval_split
from scgrpo.tasks.math.answers import FinalAnswer, final_answer, text_score
from scgrpo.tasks.math.dapo import dapo_score
from scgrpo.tasks.math.rows import BadRows, Problems, PromptStyle, Source, make_row, read_problems
from scgrpo.tasks.math.sets import SETS, find_source
from scgrpo.tasks.pool import VerifierPool, check_limits

logger = logging.getLogger(__name__)

Grader = Literal["math_verify", "dapo"]
INSTRUCTION = "Reason step by step, and put your final answer within \\boxed{}."
DAPO_INSTRUCTION = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{problem}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)
# What the grader reads has to be asked for; a prompt with one of these marks does so already.
_INSTRUCTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "math_verify": (INSTRUCTION, ("\\boxed", "Answer:")),
    "dapo": (DAPO_INSTRUCTION, ("Answer:",)),
}


class MathTask(Task):
    r"""Problems with a final answer, graded by text and algebra.

    Rows have `problem_id` (hash of the problem), `prompt` (chat messages), `answer`, and `dataset`, the name of what
    they are from. Rows with the same problem are kept once, and no training row has a problem of the evaluation rows;
    what is dropped is logged.

    Args:
        name: name of the task and its reward function.
        dataset_name: training data: hub id, folder, or `.jsonl`, `.json`, `.parquet` file (`scgrpo.tasks.data`), or
            one of the known sets (`scgrpo.tasks.math.SETS`: `math500`, `aime24`, ...), which bring their
            configuration, split and columns.
        dataset_config: configuration on the hub.
        dataset_train_split: split that is trained on.
        dataset_test_split: split of the evaluation rows, if the data has it.
        columns: names of the `prompt` and `answer` columns, dotted for a field in a column. Default: the first of
            problem, question, prompt, and of answer, final_answer, solution, ground_truth, reward_model.ground_truth.
        keep: only rows with these values, for example `{"level": ["Level 4", "Level 5"]}`.
        eval_dataset_name: other data to take the evaluation rows from, or a list of such; `dataset_test_split` is
            then a split of it.
        eval_dataset_config, eval_columns, eval_keep: as above, for `eval_dataset_name`.
        eval_fraction: share of the training data that is held out if there are no other evaluation rows; 1: all of
            the data is for evaluation.
        split_seed: which rows these are.
        on_bad_row: a row without a prompt or a single reference answer: "error", or "drop" (logged with its number).
        grader: "math_verify", or "dapo" (`scgrpo.tasks.math.dapo`): the last `Answer:` line, compared as text.
        instruction: appended to the last user turn, or put around it where it has `{problem}`, unless the prompt
            already says how to answer; "" for none. Default: what the grader reads.
        system_prompt: put in front of prompts that have no system message.
        num_workers, timeout_s, memory_mb: of the `VerifierPool` behind the comparisons that need algebra, which take
            about 90 MB each.

    Raises:
        ConfigError: a setting out of range.
        MissingExtraError: math-verify is not installed, and the grader needs it.
    """

    template = "math"
    needs = "extra math"

    def __init__(
        self,
        *,
        name: str = "math",
        dataset_name: str | None = None,
        dataset_config: str | None = None,
        dataset_train_split: str = "train",
        dataset_test_split: str | None = "test",
        columns: Mapping[str, str] | None = None,
        keep: Mapping[str, Any] | None = None,
        eval_dataset_name: str | Sequence[str] | None = None,
        eval_dataset_config: str | None = None,
        eval_columns: Mapping[str, str] | None = None,
        eval_keep: Mapping[str, Any] | None = None,
        eval_fraction: float = 0.1,
        split_seed: int = 0,
        on_bad_row: BadRows = "error",
        grader: Grader = "math_verify",
        instruction: str | None = None,
        system_prompt: str | None = None,
        num_workers: int = 2,
        timeout_s: float = 10.0,
        memory_mb: int | None = 1024,
    ) -> None:
        _check_settings(name, eval_fraction, on_bad_row, grader)
        check_limits(num_workers, timeout_s, memory_mb)
        self.name, self.grader = name, grader
        default, marks = _INSTRUCTIONS[grader]
        self._style = PromptStyle(default if instruction is None else instruction, marks, system_prompt)
        self._train = find_source(dataset_name, dataset_config, dataset_train_split, columns, keep)
        known = SETS.get(dataset_name or "")
        self._eval = [self._train._replace(split=known.test_split if known else dataset_test_split)]
        if eval_dataset_name is not None:
            names = [eval_dataset_name] if isinstance(eval_dataset_name, str) else list(eval_dataset_name)
            if not names:
                raise ConfigError("eval_dataset_name is an empty list.", "Name a data set, or leave it out.")
            other = (eval_dataset_config, dataset_test_split, eval_columns, eval_keep)
            self._eval = [find_source(each, *other, evaluation=True) for each in names]
        self._own_eval = eval_dataset_name is None
        self._eval_fraction, self._split_seed, self._on_bad_row = eval_fraction, split_seed, on_bad_row
        self._new_pool = functools.partial(
            VerifierPool,
            "scgrpo.tasks.math.grading:grade",
            num_workers=num_workers,
            timeout_s=timeout_s,
            memory_mb=memory_mb,
        )
        self._solutions: dict[str, str] = {}
        self._pool: VerifierPool | None = None
        self._lock = threading.Lock()

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        """Rows of a split, the first `limit` of them.

        Raises:
            ConfigError: no data source is set, no such split, or training rows of data that is for evaluation.
            DataError, MissingExtraError: the data cannot be read.
        """
        if split not in ("train", "eval"):
            raise ConfigError(f"There is no split {split!r}.", "Choose train or eval.")
        if (self._train if split == "train" else self._eval[0]).name in (None, ""):
            raise ConfigError(f"Task {self.name!r} has no data.", "Set dataset_name to a hub id or a local file.")
        if split == "train" and self._own_eval and self._eval_fraction == 1:
            raise ConfigError(
                f"Task {self.name!r} is for evaluation: it has no training rows.",
                f'Train on another task, for example dapo_math with eval_dataset_name: "{self.name}".',
            )
        return self._splits[split][:limit]

    def verify(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """Verdicts with score 1.0 (equal to the row's `answer`) or 0.0.

        Raises:
            ShapeError: different numbers of completions and rows.
            VerifierError: math-verify cannot be imported by a worker process.
        """
        if len(completions) != len(rows):
            raise ShapeError(f"{len(completions)} completions for {len(rows)} rows.", "Give one row per completion.")
        golds = ["" if row.get("answer") is None else str(row["answer"]) for row in rows]
        if self.grader == "dapo":
            return [_dapo_verdict(c, gold) for c, gold in zip(completions, golds, strict=True)]
        pairs = [(final_answer(c), gold) for c, gold in zip(completions, golds, strict=True)]
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
        problem = "What is the probability that two fair coins do not both show heads?"
        row = make_row(problem, "\\frac{3}{4}", self._style)
        if self.grader == "dapo":
            right = ("Both show heads with probability 1/4.\nAnswer: $\\frac{3}{4}$", "Answer: p = \\frac34")
            return Canned(row=row, right=right, wrong=("Answer: $\\frac{1}{4}$", "It is \\boxed{\\frac{3}{4}}."))
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
                self._pool = self._new_pool()
            pool = self._pool
        # A comparison has several timed steps; the pool's deadline is above a few of them.
        step_s = max(1, int(pool.timeout_s / 4))
        return pool.grade([{"answer": answer, "gold": gold, "timeout_s": step_s} for answer, gold in pairs])

    @functools.cached_property
    def _splits(self) -> dict[Split, list[Row]]:
        if self._own_eval and not self._eval[0].has_split():
            rows = self._read(self._train).rows
            if self._eval_fraction == 1:
                return {"train": [], "eval": rows}
            kept, held_out = train_eval_split(rows, self._eval_fraction, self._split_seed)
            return {"train": kept, "eval": held_out}
        evaluation: dict[str, Row] = {}
        spellings: set[str] = set()
        for source in self._eval:
            problems = self._read(source)
            spellings.update(problems.spellings.values())
            for row in problems.rows:
                evaluation.setdefault(row["problem_id"], row)
        train: list[Row] = []
        if self._train.name is not None and not (self._own_eval and self._eval_fraction == 1):
            problems = self._read(self._train)
            train = [row for row in problems.rows if problems.spellings[row["problem_id"]] not in spellings]
            if len(train) < len(problems.rows):
                dropped = len(problems.rows) - len(train)
                logger.warning("%s: %d training rows are evaluation problems; dropped.", self.name, dropped)
        return {"train": train, "eval": list(evaluation.values())}

    def _read(self, source: Source) -> Problems:
        problems = read_problems(source, self._style, self._on_bad_row, self.name)
        self._solutions = problems.solutions | self._solutions
        return problems


def _check_settings(name: str, eval_fraction: float, on_bad_row: str, grader: str) -> None:
    if not 0 <= eval_fraction <= 1:
        raise ConfigError(f"eval_fraction is {eval_fraction}.", "Give a share of the rows, 0 <= eval_fraction <= 1.")
    if on_bad_row not in ("error", "drop"):
        raise ConfigError(f"on_bad_row is {on_bad_row!r}.", "Choose error or drop.")
    if grader not in _INSTRUCTIONS:
        raise ConfigError(f"There is no grader {grader!r}.", f"Choose {' or '.join(_INSTRUCTIONS)}.")
    if grader == "math_verify" and importlib.util.find_spec("math_verify") is None:
        raise MissingExtraError(f"Task {name!r} needs math-verify.", 'Install it: pip install "scgrpo[math]".')


def _verdict_without_algebra(answer: FinalAnswer, gold: str) -> Verdict | None:
    if not gold.strip():
        return _NO_REFERENCE
    score = text_score(answer, gold)
    return None if score is None else Verdict(score)


def _dapo_verdict(completion: str, gold: str) -> Verdict:
    return Verdict(dapo_score(completion, gold)) if gold.strip() else _NO_REFERENCE


_NO_REFERENCE = Verdict.error("the row has no reference answer")
