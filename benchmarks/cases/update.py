"""The update step with given rollouts: everything a step does but sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.context import Context
from benchmarks.measure import interleaved
from benchmarks.models import Steps, make_steps
from benchmarks.results import Table, timed_rows
from scgrpo.divergence import OutputHead, TokenEvidence, choice
from scgrpo.divergence.reference import token_evidence_reference
from scgrpo.integrations.trl import compat

GRPO = "GRPO (TRL)"
PLAIN = "GRPO, plain logits of the completion alone, kept"
LEAN = "GRPO, the same in blocks, recomputed in the backward"
SHARED = "SC-GRPO, shared demonstration"
LITERAL = "SC-GRPO as written: student pass, prompts re-run, full logits"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    GRPO: ("grpo", {}),
    PLAIN: ("grpo", {}),
    LEAN: ("grpo", {}),
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
        changed = {LITERAL: literally, PLAIN: partial(lean, block=None), LEAN: partial(lean, block=512)}
        candidates[name] = changed.get(name, lambda same: same)(steps)
    seconds = interleaved(candidates, context.clock, context.repetitions, warmup=2)
    peak = {name: context.memory.of(steps, runs=1) for name, steps in candidates.items()}
    title = f"{model}, {context.sizes.rollouts}, {'gradient checkpointing' if checkpointing else 'plain'}"
    table = Table("update", title, GRPO, timed_rows(seconds, GRPO, peak=peak), notes=notes)
    _require(table, checkpointing)
    return table


def _require(table: Table, checkpointing: bool) -> None:
    """Against a leaner GRPO: off Triton, TRL's takes the log-probs of prompts, too, which would flatter us. Of the
    two, the one that holds no more logits than TRL's and ours do."""
    how = "gradient checkpointing" if checkpointing else "plain"

    def update(of: Callable[[str], float]) -> float:
        return of(SHARED) / min(of(GRPO), of(LEAN))

    def overhead(of: Callable[[str], float]) -> float:
        base = min(of(GRPO), of(LEAN))
        return (of(SHARED) - base) / (of(LITERAL) - base)

    table.require_time(f"update / the faster GRPO's, {how}", 1.40 if checkpointing else 1.45, update)
    table.require_time(f"our overhead / as written, {how}", 0.55, overhead)
    mine, *others = (table[name].peak_mib for name in (SHARED, GRPO, LEAN))
    if mine and all(others):
        lowest = min(peak for peak in others if peak)
        table.require(f"peak memory / the leaner GRPO's, {how}", mine / lowest, 1.10)


def lean(steps: Steps, block: int | None) -> Steps:
    """TRL's GRPO with log-probs of the completion tokens alone; `block`: so many at once, recomputed."""
    trainer = steps.trainer
    compute = trainer._get_per_token_logps_and_entropies

    def plain(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logps = (states @ trainer.model.get_output_embeddings().weight.T).float().log_softmax(-1)
        with torch.no_grad():
            entropies = -(logps.exp() * logps).sum(-1)
        return logps.gather(1, tokens[:, None])[:, 0], entropies

    def head(states: Tensor, tokens: Tensor, _: Any) -> tuple[Tensor, Tensor]:
        if block is None:
            return plain(states, tokens)
        pieces = zip(states.split(block), tokens.split(block), strict=True)
        logps, entropies = zip(*(checkpoint(plain, *piece, use_reentrant=False) for piece in pieces), strict=True)
        return torch.cat(logps), torch.cat(entropies)

    def leaner(model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *rest: Any, **more: Any) -> Any:
        with compat.completions_scored_by(head, attention_mask, logits_to_keep):
            return compute(model, input_ids, attention_mask, logits_to_keep, *rest, **more)

    trainer._get_per_token_logps_and_entropies = leaner
    return steps


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
