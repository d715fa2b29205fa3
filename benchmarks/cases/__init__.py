"""One file per question. A case is a generator `Context -> Iterator[Table]`; its docstring says what it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.cases import growth, memory, precision, recipe, sampling, step, teacher_pass, token_kl, update
from benchmarks.context import Context
from benchmarks.results import Table

CASES: dict[str, Callable[[Context], Iterator[Table]]] = {
    "token_kl": token_kl.run,
    "precision": precision.run,
    "memory": memory.run,
    "teacher_pass": teacher_pass.run,
    "update": update.run,
    "step": step.run,
    "growth": growth.run,
    "recipe": recipe.run,
    "sampling": sampling.run,
}
