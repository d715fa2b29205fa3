"""What training costs: `compute/...` in the logs, cumulative, over all processes.

Tokens are counted where they go through: sampled ones as they are sampled, those of a forward by a hook on the policy
itself. Padding does not count. What is sampled, and passes of evaluations, go through the policy uncounted; so does
a reference model, except with PEFT, where the policy is its own reference and its passes are student passes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import TrainerCallback

from scgrpo.integrations.rollouts import Rollouts
from scgrpo.teacher.models import backbone

Side = Literal["student", "teacher"]
COUNTS = ("tokens_sampled", "tokens_trained", "student_forward_tokens", "teacher_forward_tokens")


class ComputeMeter(TrainerCallback):
    """Counts tokens and time of training; `scgrpo.runs.results.Compute` says what each number is.

    Attributes:
        metrics: lists of values that TRL will log by their means.
        totals: the counts, `seconds` and `cpu_seconds` up to the last optimizer step, over all processes.
    """

    def __init__(
        self, accelerator: Accelerator, policy: nn.Module, metrics: MutableMapping[str, list[float]]
    ) -> None:
        self.accelerator, self.policy, self.metrics = accelerator, policy, metrics
        self.totals = dict.fromkeys((*COUNTS, "seconds", "cpu_seconds"), 0.0)
        # Not read before the step ends: a forward must not wait for the device to count its mask.
        self._counts: dict[str, Tensor | int] = dict.fromkeys(COUNTS, 0)
        self._side: Side | None = None
        self._since = _clock()
        self.watch(policy)

    def watch(self, model: nn.Module) -> None:
        """Count this model's forwards: the policy's, and those of a teacher that is another model."""
        backbone(model).register_forward_pre_hook(self._before_forward, with_kwargs=True)

    @contextmanager
    def forwards(self, side: Side | None) -> Iterator[None]:
        """Inside, forwards of what is watched are of this side; None: they do not count."""
        outside, self._side = self._side, side
        try:
            yield
        finally:
            self._side = outside

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, no time passes: for evaluations."""
        start = _clock()
        try:
            yield
        finally:
            self._since = tuple(s + b - a for s, a, b in zip(self._since, start, _clock(), strict=True))

    def sampled(self, batch: Mapping[str, Any], rollouts: Rollouts) -> None:
        """Rollouts were sampled, to be trained on or not. Output of tools is not sampled."""
        if not self.policy.training:
            return
        tokens = sum(len(ids) for ids in rollouts.completion_ids)
        tool_mask = batch.get("tool_mask")  # padded with 1
        self._counts["tokens_sampled"] += tokens if tool_mask is None else tokens - (tool_mask == 0).sum()

    def trained(self, inputs: Mapping[str, Any]) -> None:
        """These rows enter a loss."""
        if self.policy.training:
            self._counts["tokens_trained"] += (inputs["completion_mask"] * inputs.get("tool_mask", 1)).sum().detach()

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._side is None:
            return
        given = (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args)
        shape = next(tensor for tensor in given if tensor is not None).shape[:2]
        mask = kwargs.get("attention_mask")
        tokens: Tensor | int = shape.numel()
        if isinstance(mask, Tensor) and mask.shape == shape:
            tokens = mask.sum()
        self._counts[f"{self._side}_forward_tokens"] += tokens

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = _clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = _clock()
        seconds, cpu_seconds = (b - a for a, b in zip(self._since, now, strict=True))
        self._since = now
        numbers = torch.tensor([*(float(self._counts[name]) for name in COUNTS), cpu_seconds], dtype=torch.float64)
        if self.accelerator.num_processes > 1:  # in float32, where a device has no float64: exact to 16 M per step
            device = self.accelerator.device
            dtype = torch.float32 if device.type == "mps" else torch.float64
            numbers = self.accelerator.reduce(numbers.to(device, dtype), reduction="sum").cpu()
        self._counts = dict.fromkeys(COUNTS, 0)
        for name, number in zip((*COUNTS, "cpu_seconds"), numbers.tolist(), strict=True):
            self.totals[name] += number
        self.totals["seconds"] += seconds
        # One value each, replaced: TRL is to log the last total, not the mean of several.
        self.metrics.update({f"compute/{name}": [total] for name, total in self.totals.items()})


def _clock() -> tuple[float, ...]:
    """Wall time, and processor time of this process with all its threads (seconds)."""
    return time.perf_counter(), time.process_time()
