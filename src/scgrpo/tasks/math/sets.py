"""Public data sets by name: where they are on the hub, which columns are read, which rows are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from scgrpo.tasks.data import checked_columns
from scgrpo.tasks.math.rows import Source


class KnownSet(NamedTuple):
    """A data set on the hub.

    Attributes:
        hub_id, config: what `datasets.load_dataset` is given.
        prompt, answer: columns.
        split: the split that is read: the training one, where there is something to train on.
        test_split: the split of its evaluation rows, where it has one beside `split`.
        keep: column -> value, or list of values, of the rows that are kept.
        benchmark: whether all of it is for evaluation.
        about: what it is, in a line.
    """

    hub_id: str
    prompt: str
    answer: str
    config: str | None = None
    split: str = "train"
    test_split: str | None = None
    keep: Mapping[str, Any] = {}
    benchmark: bool = True
    about: str = ""


SETS: Mapping[str, KnownSet] = {
    "gsm8k": KnownSet(
        "openai/gsm8k",
        *("question", "answer", "main"),
        test_split="test",
        benchmark=False,
        about="GSM8K: word problems of grade school with integer answers, 7473 and 1319.",
    ),
    "hendrycks_math": KnownSet(
        "DigitalLearningGmbH/MATH-lighteval",
        *("problem", "solution", "default"),
        test_split="test",
        benchmark=False,
        about="MATH: problems of contests in five levels, 7500 and 5000.",
    ),
    "dapo_math": KnownSet(
        "open-r1/DAPO-Math-17k-Processed",
        *("prompt", "solution", "all"),
        benchmark=False,
        about="DAPO-Math-17k, each of its 17 398 problems once.",
    ),
    "dapo_math_raw": KnownSet(
        "BytedTsinghua-SIA/DAPO-Math-17k",
        *("prompt", "reward_model.ground_truth"),
        benchmark=False,
        about="DAPO-Math-17k as published, each problem about 100 times.",
    ),
    "aime24": KnownSet("HuggingFaceH4/aime_2024", "problem", "answer", about="AIME 2024: 30 problems."),
    "aime25": KnownSet("math-ai/aime25", "problem", "answer", split="test", about="AIME 2025: 30 problems."),
    "math500": KnownSet(
        "HuggingFaceH4/MATH-500", "problem", "answer", split="test", about="MATH-500: 500 test problems of MATH."
    ),
    "amc23": KnownSet("math-ai/amc23", "question", "answer", split="test", about="AMC 2023: 40 problems."),
    "minerva": KnownSet(
        "math-ai/minervamath",
        *("question", "answer"),
        split="test",
        about="Minerva: 272 problems of science for undergraduates.",
    ),
    # The configuration is open-ended, text only, mathematics, English.
    "olympiadbench": KnownSet(
        "Hothan/OlympiadBench",
        *("question", "final_answer", "OE_TO_maths_en_COMP"),
        keep={"is_multiple_answer": False},
        about="OlympiadBench: problems of olympiads in English, without pictures, with one answer.",
    ),
}


def find_source(
    name: str | None,
    config: str | None,
    split: str | None,
    columns: Mapping[str, str] | None,
    keep: Mapping[str, Any] | None,
    *,
    evaluation: bool = False,
) -> Source:
    """The source that a task's options name.

    A known set named as in `SETS` is read as the table says: `split` is then not looked at (`evaluation`: its
    evaluation rows are meant). A known set named by its hub id has the table's configuration, columns and `keep`
    unless others are given, and the given split.

    Raises:
        ConfigError: columns that are not `prompt` and `answer`.
    """
    columns = checked_columns(columns, ("prompt", "answer"))
    known = SETS.get(name or "")
    if known is not None:
        split = (known.test_split or known.split) if evaluation else known.split
    label = name or ""
    for each, entry in SETS.items():
        if known is None and entry.hub_id == name:
            known, label = entry, each
    if known is None:
        return Source(name, config, split, columns, dict(keep or {}), label)
    return Source(
        known.hub_id,
        config or known.config,
        split,
        {"prompt": known.prompt, "answer": known.answer} | columns,
        dict(known.keep if keep is None else keep),
        label,
    )
