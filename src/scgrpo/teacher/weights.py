"""Whose weights the teacher has: the current policy's (the paper), a snapshot, a moving average, or the start's.

Only trainable parameters are kept aside (with a PEFT adapter: the adapter). They are swapped in for the teacher's
pass and swapped out again, without a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from scgrpo.errors import ConfigError

TeacherKind = Literal["current", "snapshot", "ema", "frozen"]


class TeacherWeights:
    """The teacher's weights over the course of training.

    Args:
        model: the policy, unwrapped.
        kind: "current": the policy itself; "snapshot": a copy renewed every `snapshot_steps` optimizer steps;
            "ema": `teacher <- decay * teacher + (1 - decay) * policy` after each step; "frozen": the start.
        snapshot_steps: optimizer steps, >= 1.
        decay: in [0, 1).

    Raises:
        ConfigError: unknown kind, or a value out of range.
    """

    def __init__(self, model: nn.Module, kind: TeacherKind, *, snapshot_steps: int = 10, decay: float = 0.99) -> None:
        check_teacher_weights(kind, snapshot_steps, decay)
        self.kind, self.snapshot_steps, self.decay = kind, snapshot_steps, decay
        self._live = {} if kind == "current" else {n: p for n, p in model.named_parameters() if p.requires_grad}
        if kind == "ema" and any(p.dtype not in (torch.float32, torch.float64) for p in self._live.values()):
            raise ConfigError(
                "A moving average in half precision never moves: its steps are below the format's resolution.",
                "Load the model in float32 (bf16=True still computes in bf16), or use teacher_weights=snapshot.",
            )
        self._kept = {name: p.detach().clone() for name, p in self._live.items()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the teacher's weights inside; the policy's are back afterwards, whatever happens."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """To be called after optimizer step number `step` (1, 2, ...)."""
        renew = self.kind == "snapshot" and step % self.snapshot_steps == 0
        for name, live in self._live.items():
            if renew:
                self._kept[name].copy_(live)
            elif self.kind == "ema":
                self._kept[name].lerp_(live.to(self._kept[name].dtype), 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold; empty for "current"."""
        return dict(self._kept)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a `state_dict()`.

        Raises:
            ConfigError: it belongs to another model or another kind of teacher.
        """
        shapes = [{name: tuple(tensor.shape) for name, tensor in kept.items()} for kept in (state, self._kept)]
        if shapes[0] != shapes[1]:
            odd = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})[:3]
            raise ConfigError(
                f"The checkpoint's teacher weights do not fit this model (for example {', '.join(odd)}).",
                "Resume with the same teacher_weights, model and PEFT settings as before.",
            )
        for name, kept in self._kept.items():
            kept.copy_(state[name])

    def _swap(self) -> None:
        for name, live in self._live.items():
            live.data, self._kept[name] = self._kept[name], live.data


def check_teacher_weights(kind: str, snapshot_steps: int, decay: float) -> None:
    """Raise ConfigError unless the settings make sense."""
    if kind not in ("current", "snapshot", "ema", "frozen"):
        raise ConfigError(f"Unknown teacher_weights {kind!r}.", "Choose current, snapshot, ema or frozen.")
    if snapshot_steps < 1:
        raise ConfigError(f"teacher_snapshot_steps is {snapshot_steps}.", "Choose at least 1 optimizer step.")
    if not 0 <= decay < 1:
        raise ConfigError(f"teacher_ema_decay is {decay}.", "Choose one in [0, 1), for example 0.99.")
