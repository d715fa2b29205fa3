"""How the overhead grows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.cases.update import GRPO
from benchmarks.context import Context
from benchmarks.measure import interleaved
from benchmarks.models import ModelShape, Rollouts, make_steps
from benchmarks.results import Row, Table, timed_rows

# Everything but the axis in question: small, so that the wide vocabularies and long completions fit in.
BASE = {"completion": 128, "groups": 1}


def run(context: Context) -> Iterator[Table]:
    """Update of SC-GRPO / GRPO's, by vocabulary, completion length, group size, solved rollouts, demonstration."""
    yield from (_axis(context, axis, values) for axis, values in context.sizes.growth.items())


def _axis(context: Context, axis: str, values: tuple[int, ...]) -> Table:
    rows: list[Row] = []
    for value in values:
        shape, rollouts = _sizes(context, axis, value)
        candidates = {
            GRPO: make_steps("grpo", shape, rollouts, context.device),
            "shared": make_steps("sc_grpo", shape, rollouts, context.device, credit_demonstrations="shared"),
            "uniform": make_steps("sc_grpo", shape, rollouts, context.device),
        }
        if axis == "solved":
            candidates["shared, without rows of zero advantage"] = make_steps(
                *("sc_grpo", shape, rollouts, context.device),
                credit_demonstrations="shared",
                drop_zero_advantages=True,
            )
        seconds = interleaved(candidates, context.clock, context.repetitions)
        peak = {name: context.memory.of(steps, runs=1) for name, steps in candidates.items()}
        for row in timed_rows(seconds, GRPO, peak=peak):
            rows.append(replace(row, name=f"{axis} {value:,}: {row.name}"))
    rest = "all else: prompt 64, completion 128, G = 8, half solved" if context.device.type == "cpu" else ""
    return Table("growth", axis, GRPO, rows, notes=[rest] if rest else [])


def _sizes(context: Context, axis: str, value: int) -> tuple[ModelShape, Rollouts]:
    shape = context.model
    rollouts = context.sizes.rollouts if context.device.type == "cuda" else replace(context.sizes.rollouts, **BASE)
    if axis == "vocabulary":
        return replace(shape, vocabulary=value), rollouts
    if axis == "group":
        return shape, replace(rollouts, group=value, groups=max(1, 8 // value), solved=max(1, value // 2))
    return shape, replace(rollouts, **{axis: value})
