"""Mathematics with a short final answer, and the public data sets of it by name (docs/benchmarks/math.md)."""

from __future__ import annotations

import functools
from typing import Any

from scgrpo.tasks.math.sets import SETS
from scgrpo.tasks.math.task import DAPO_INSTRUCTION, INSTRUCTION, MathTask

__all__ = ["DAPO_INSTRUCTION", "INSTRUCTION", "SETS", "MathTask"]


def _named(name: str, **more: Any) -> functools.partial[MathTask]:
    """The task of a known set; `dataset_name` reads a copy of it."""
    known = SETS[name]
    share = 1.0 if known.benchmark else 0.1
    made = functools.partial(
        MathTask, name=name, dataset_name=name, dataset_config=known.config, eval_fraction=share, **more
    )
    made.__doc__ = known.about
    return made


gsm8k = _named("gsm8k")
hendrycks_math = _named("hendrycks_math")
dapo_math = _named("dapo_math")
dapo_math_raw = _named("dapo_math_raw")
aime24 = _named("aime24")
aime25 = _named("aime25")
math500 = _named("math500")
amc23 = _named("amc23")
minerva = _named("minerva")
olympiadbench = _named("olympiadbench", keep=SETS["olympiadbench"].keep)
