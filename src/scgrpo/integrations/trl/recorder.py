"""Writes a training run into its run directory: metrics, and sampled rollouts with their credit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from scgrpo.credit import NONE, Route
from scgrpo.integrations.trl.batch import ScoredBatch
from scgrpo.runs import RolloutRow, RunDirectory
from scgrpo.tasks.base import Status, Verdict
from scgrpo.teacher.prompts import transcript


class RunRecorder(TrainerCallback):
    """Callback and listener of an SCGRPOTrainer: `add_callback(recorder)`, `listeners.append(recorder.record)`.

    Args:
        run: where to write.
        tokenizer: shows tokens as text.
        every: optimizer steps between recorded generation batches, and the last step's; 0 records none.
        num_groups: groups per recorded batch, those with weights first.
        verdicts: the verdicts of the rollouts graded last, if the verifier keeps them.
    """

    def __init__(
        self,
        run: RunDirectory,
        tokenizer: Any,
        *,
        every: int,
        num_groups: int,
        verdicts: Callable[[], Sequence[Verdict]] = tuple,
    ) -> None:
        self.run, self.tokenizer, self.every, self.num_groups = run, tokenizer, every, num_groups
        self.verdicts = verdicts
        self._special = set(tokenizer.all_special_ids)
        self._start = time.monotonic()
        self._last_recorded = -1
        self._final_step = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._final_step = state.max_steps - 1

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            numbers = {name: float(v) for name, v in logs.items() if isinstance(v, (int, float))}
            self.run.log_metrics(state.global_step, numbers, time_s=time.monotonic() - self._start)

    def record(self, batch: ScoredBatch) -> None:
        """Keep a few whole groups of this batch, on the first process (`batch.first` = 0)."""
        due = self.every and (batch.step % self.every == 0 or batch.step == self._final_step)
        if not due or batch.step == self._last_recorded or batch.first != 0:
            return
        self._last_recorded = batch.step
        chosen = self._chosen_groups(batch)
        rows = [row for row in range(len(batch.rollouts.prompts)) if int(batch.groups.group[row]) in chosen]
        self.run.write_rollouts(batch.step, [self._row(batch, row) for row in rows])

    def _chosen_groups(self, batch: ScoredBatch) -> set[int]:
        """Whole groups on this process, weighted ones first."""
        local = batch.groups.group[: len(batch.rollouts.prompts)].tolist()
        size = batch.groups.group.tolist().count(local[0])
        whole = [g for g in dict.fromkeys(local) if local.count(g) == size]
        order = {Route.PARTIAL: 0, Route.NONE_SOLVED: 1, Route.FALLBACK: 2}
        whole.sort(key=lambda g: order[Route(int(batch.credit.route[local.index(g)]))])
        return set(whole[: self.num_groups])

    def _row(self, batch: ScoredBatch, row: int) -> RolloutRow:
        groups, rollouts = batch.groups, batch.rollouts
        ids = list(rollouts.completion_ids[row])
        width = len(ids)
        members = (groups.group == groups.group[row]).nonzero()[:, 0].tolist()
        pair = next(iter((batch.plan.rollout == row).nonzero()[:, 0].tolist()), None)
        shown = NONE if pair is None else int(batch.plan.demonstration[pair])
        demonstration = None if shown == NONE else batch.demonstrations[shown]
        verdict = self._verdict(batch, row)
        rewards = rollouts.rewards[row].tolist()

        def scored(values: Any) -> list[float] | None:
            return None if pair is None else values[pair, :width].tolist()

        return RolloutRow(
            step=batch.step,
            group=int(groups.group[row]),
            rollout=members.index(row),
            problem_id=str(rollouts.inputs[row].get("problem_id", "")),
            prompt=self.tokenizer.decode(batch.prompt_ids[row]),
            completion=transcript(rollouts.completions[row]),
            tokens=[self.tokenizer.decode([token]) for token in ids],
            token_ids=ids,
            is_special=[token in self._special for token in ids],
            mask=groups.mask[row, :width].tolist(),
            rewards={n: None if r != r else r for n, r in zip(batch.reward_names, rewards, strict=True)},
            solved=bool(groups.solved[row]) if bool(groups.graded[row]) else None,
            status=str(verdict.status),
            detail=verdict.detail,
            route=Route(int(batch.credit.route[row])).name.lower(),
            demonstration=members.index(shown) if shown in members else None,  # it may be of another prompt
            demonstration_text=None if demonstration is None else demonstration.text,
            teacher_prompt=None if pair is None else self.tokenizer.decode(batch.teacher_prompt_ids[pair]),
            demonstration_truncated=demonstration is not None and demonstration.truncated,
            advantage=float(batch.credit.base[row]),
            token_kl=scored(batch.evidence.token_kl),
            credit_weights=batch.credit.weights[row, :width].tolist(),
            student_logps=scored(batch.evidence.student_logps),
            teacher_logps=scored(batch.evidence.teacher_logps),
        )

    def _verdict(self, batch: ScoredBatch, row: int) -> Verdict:
        known = self.verdicts()
        if len(known) == len(batch.rollouts.prompts):
            return known[row]
        graded = bool(batch.groups.graded[row])
        return Verdict(0.0) if graded else Verdict(float("nan"), Status.ERROR, "no verdict")
