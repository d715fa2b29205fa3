"""Writes a training run into its run directory: metrics, and sampled rollouts with their credit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from scgrpo.integrations.recording import rollout_rows
from scgrpo.integrations.rollouts import ScoredBatch
from scgrpo.runs import RunDirectory
from scgrpo.tasks.base import Verdict


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
        rows = rollout_rows(batch, self.tokenizer, num_groups=self.num_groups, verdicts=self.verdicts())
        self.run.write_rollouts(batch.step, rows)
