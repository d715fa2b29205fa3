"""The output head: from hidden states to the logits that are sampled from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class OutputHead:
    """The map from hidden states to the logits that are sampled from.

    `logits = softcap * tanh(scale * (h W^T + b) / softcap) / temperature`, the cap only if given.

    Attributes:
        weight: (V, H); bias: (V,) or None.
        scale, softcap, temperature: unitless, temperature > 0.
    """

    weight: Float[Tensor, "v h"]
    bias: Float[Tensor, " v"] | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def logits(self, hidden: Float[Tensor, "n h"], start: int, stop: int) -> Float[Tensor, "n w"]:
        """Logits of the words start..stop, in fp32 or better whatever the dtype of the model."""
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logits = hidden.to(dtype) @ self.weight[start:stop].to(dtype).T
        if self.bias is not None:
            logits = logits + self.bias[start:stop].to(dtype)
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits if self.temperature == 1 else logits / self.temperature


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Neither autocast nor TF32 may round the projection."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
