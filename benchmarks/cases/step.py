"""The whole step, sampling included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.cases.update import GRPO
from benchmarks.context import Context
from benchmarks.measure import interleaved
from benchmarks.models import make_steps
from benchmarks.results import Table, timed_rows

METHODS = {GRPO: "grpo", "SC-GRPO (ours)": "sc_grpo", "SDPO (TRL), full logits": "sdpo"}


def run(context: Context) -> Iterator[Table]:
    """GRPO, SC-GRPO and TRL's SDPO, each sampling its own completions of full length."""
    notes: list[str] = []
    candidates: dict[str, Any] = {}
    for name, method in METHODS.items():
        try:
            candidates[name] = make_steps(method, context.model, context.sizes.sampled, context.device, sampled=True)
        except ImportError as error:
            notes.append(f"{name} is left out: {error}")
    seconds = interleaved(candidates, context.clock, context.repetitions)
    peak = {name: context.memory.of(steps, runs=1) for name, steps in candidates.items()}
    yield Table("step", str(context.sizes.sampled), GRPO, timed_rows(seconds, GRPO, peak=peak), notes=notes)
