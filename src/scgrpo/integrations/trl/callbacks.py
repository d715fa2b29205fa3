"""What happens at the ends of optimizer steps: the teacher moves along, and the time of the step is logged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from scgrpo.teacher.weights import TeacherWeights

PARTS = ("sampling", "scoring", "recording")


class TeacherUpdate(TrainerCallback):
    """Moves the teacher's weights along after each optimizer step."""

    def __init__(self, teacher: TeacherWeights) -> None:
        self.teacher = teacher

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.teacher.after_step(state.global_step)


class StepTimes(TrainerCallback):
    """Seconds of each part of an optimizer step: `with times("sampling"): ...`; `timing/...` in the logs.

    What `step_time` has beyond the parts is the update: forward and backward of the loss. TRL's clock stops before
    the optimizer. An accelerator is waited for where a part begins and ends, as it works behind the program.

    Args:
        device: what the parts run on.
        log: takes the seconds by name (`sampling_s`, ...), every part at every step.
    """

    def __init__(self, device: torch.device, log: Callable[[dict[str, float]], None]) -> None:
        self.device, self.log = device, log
        self._seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self._seconds[part] += self._now() - start

    def _now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)  # an evaluation may have sampled since the last step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.log({f"{part}_s": seconds for part, seconds in self._seconds.items()})
