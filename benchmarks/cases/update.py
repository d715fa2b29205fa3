"""The update step with given rollouts: everything a step does but sampling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.context import Context
from benchmarks.measure import interleaved
from benchmarks.models import Steps, make_steps
from benchmarks.results import Table, timed_rows
from scgrpo.divergence import OutputHead, TokenEvidence, choice
from scgrpo.divergence.reference import token_evidence_reference

GRPO = "GRPO (TRL)"
SHARED = "SC-GRPO, shared demonstration"
LITERAL = "SC-GRPO as written: student pass, prompts re-run, full logits"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    GRPO: ("grpo", {}),
    SHARED: ("sc_grpo", {"credit_demonstrations": "shared"}),
    "SC-GRPO, uniform demonstrations (default)": ("sc_grpo", {}),
    "SC-GRPO, shared, own student pass": (
        "sc_grpo",
        {"credit_demonstrations": "shared", "teacher_timing": "generation"},
    ),
    LITERAL: ("sc_grpo", {"teacher_prefix_sharing": "off", "teacher_timing": "generation"}),
    "SDPO (TRL), full logits": ("sdpo", {}),
}


def run(context: Context) -> Iterator[Table]:
    """SC-GRPO's variants and TRL's SDPO against TRL's GRPO: every group scored, same model, data and shapes."""
    for name in context.sizes.models:
        yield from (_table(context, name, checkpointing) for checkpointing in (False, True))


def _table(context: Context, model: str, checkpointing: bool) -> Table:
    notes: list[str] = []
    candidates: dict[str, Any] = {}
    for name, (method, settings) in VARIANTS.items():
        try:
            steps = make_steps(
                method,
                context.sizes.models[model],
                context.sizes.rollouts,
                context.device,
                gradient_checkpointing=checkpointing,
                **settings,
            )
        except ImportError as error:
            notes.append(f"{name} is left out: {error}")
            continue
        candidates[name] = literally(steps) if name == LITERAL else steps
    seconds = interleaved(candidates, context.clock, context.repetitions, warmup=2)
    peak = {name: context.memory.of(steps) for name, steps in candidates.items()}
    title = f"{model}, {context.sizes.rollouts}, {'gradient checkpointing' if checkpointing else 'plain'}"
    table = Table("update", title, GRPO, timed_rows(seconds, GRPO, peak=peak), notes=notes)
    _require(table, checkpointing)
    return table


def _require(table: Table, checkpointing: bool) -> None:
    grpo, shared, literal = (table[name] for name in (GRPO, SHARED, LITERAL))
    how = "gradient checkpointing" if checkpointing else "plain"
    table.require(f"update / GRPO's, {how}", shared.ratio, 1.40 if checkpointing else 1.45)
    if shared.ratio and literal.ratio:
        table.require(f"our overhead / as written, {how}", (shared.ratio - 1) / (literal.ratio - 1), 0.55)
    if shared.peak_mib and grpo.peak_mib:
        table.require(f"peak memory / GRPO's, {how}", shared.peak_mib / grpo.peak_mib, 1.10)


def literally(steps: Steps) -> Any:
    """Steps whose divergence is computed from full logits, as a first implementation would."""

    def call() -> None:
        with full_logits():
            steps()

    return call


@contextmanager
def full_logits() -> Iterator[None]:
    """The conditioned pass without tiles."""
    tiled = choice.token_evidence

    def plain(*call: Any, student_head: OutputHead | None, direction: Any) -> TokenEvidence:
        with torch.no_grad():
            return token_evidence_reference(*call, student_head=student_head, direction=direction)

    choice.token_evidence = plain  # type: ignore[assignment]
    try:
        yield
    finally:
        choice.token_evidence = tiled
