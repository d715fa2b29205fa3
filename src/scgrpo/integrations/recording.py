"""Rollouts of a generation batch as a run directory keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scgrpo.credit import NONE, Route
from scgrpo.integrations.rollouts import ScoredBatch
from scgrpo.runs import RolloutRow
from scgrpo.tasks.base import Status, Verdict
from scgrpo.teacher.prompts import transcript


def rollout_rows(
    batch: ScoredBatch, tokenizer: Any, *, num_groups: int, verdicts: Sequence[Verdict] = ()
) -> list[RolloutRow]:
    """Rows of a few whole groups that this process sampled, those with weights first.

    Args:
        tokenizer: shows tokens as text.
        num_groups: at most so many groups.
        verdicts: of all rollouts of this process, in their order, if the verifier keeps them.
    """
    chosen = _chosen_groups(batch, num_groups)
    rows = [row for row in range(len(batch.rollouts.prompts)) if int(batch.groups.group[row]) in chosen]
    return [_row(batch, row, tokenizer, _verdict(batch, row, verdicts)) for row in rows]


def _chosen_groups(batch: ScoredBatch, num_groups: int) -> set[int]:
    """Whole groups on this process, weighted ones first."""
    local = batch.groups.group[: len(batch.rollouts.prompts)].tolist()
    everywhere = batch.groups.group.tolist()
    whole = [g for g in dict.fromkeys(local) if local.count(g) == everywhere.count(g)]
    order = {Route.PARTIAL: 0, Route.NONE_SOLVED: 1, Route.FALLBACK: 2}
    whole.sort(key=lambda g: order[Route(int(batch.credit.route[local.index(g)]))])
    return set(whole[:num_groups])


def _row(batch: ScoredBatch, row: int, tokenizer: Any, verdict: Verdict) -> RolloutRow:
    groups, rollouts = batch.groups, batch.rollouts
    ids, special = list(rollouts.completion_ids[row]), set(tokenizer.all_special_ids)
    width = len(ids)
    members = (groups.group == groups.group[row]).nonzero()[:, 0].tolist()
    pair = next(iter((batch.plan.rollout == row).nonzero()[:, 0].tolist()), None)
    shown = NONE if pair is None else int(batch.plan.demonstration[pair])
    demonstration = None if shown == NONE else batch.demonstrations[shown]
    rewards = rollouts.rewards[row].tolist()

    def scored(values: Any) -> list[float] | None:
        return None if pair is None else values[pair, :width].tolist()

    return RolloutRow(
        step=batch.step,
        group=int(groups.group[row]),
        rollout=members.index(row),
        problem_id=str(rollouts.inputs[row].get("problem_id", "")),
        prompt=tokenizer.decode(batch.prompt_ids[row]),
        completion=transcript(rollouts.completions[row]),
        tokens=[tokenizer.decode([token]) for token in ids],
        token_ids=ids,
        is_special=[token in special for token in ids],
        mask=groups.mask[row, :width].tolist(),
        rewards={n: None if r != r else r for n, r in zip(batch.reward_names, rewards, strict=True)},
        solved=bool(groups.solved[row]) if bool(groups.graded[row]) else None,
        status=str(verdict.status),
        detail=verdict.detail,
        route=Route(int(batch.credit.route[row])).name.lower(),
        demonstration=members.index(shown) if shown in members else None,  # it may be of another prompt
        demonstration_text=None if demonstration is None else demonstration.text,
        teacher_prompt=None if pair is None else tokenizer.decode(batch.teacher_prompt_ids[pair]),
        demonstration_truncated=demonstration is not None and demonstration.truncated,
        advantage=float(batch.credit.base[row]),
        token_kl=scored(batch.evidence.token_kl),
        credit_weights=batch.credit.weights[row, :width].tolist(),
        student_logps=scored(batch.evidence.student_logps),
        teacher_logps=scored(batch.evidence.teacher_logps),
    )


def _verdict(batch: ScoredBatch, row: int, known: Sequence[Verdict]) -> Verdict:
    if len(known) == len(batch.rollouts.prompts) and not batch.rollouts.refilled:
        return known[row]
    graded = bool(batch.groups.graded[row])
    return Verdict(0.0) if graded else Verdict(float("nan"), Status.ERROR, "no verdict")
