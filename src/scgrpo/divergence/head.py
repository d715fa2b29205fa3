"""The output head: from hidden states to the logits that are sampled from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

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
        compute_dtype: h and W are rounded to it before they are multiplied, as a host's autocast does, so that the
            tensor cores of a GPU can be used; None: as they are. Sums and logits are fp32 or better either way.
    """

    weight: Float[Tensor, "v h"]
    bias: Float[Tensor, " v"] | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    compute_dtype: torch.dtype | None = None

    def __len__(self) -> int:
        """Number of words V."""
        return len(self.weight)

    def detached(self) -> OutputHead:
        """The same numbers as constants, apart from the parameters they came from."""
        return replace(self, weight=self.weight.detach(), bias=None if self.bias is None else self.bias.detach())

    def logits(self, hidden: Float[Tensor, "n h"], start: int, stop: int) -> Float[Tensor, "n w"]:
        """Logits of the words start..stop, in fp32 or better whatever the dtype of the model; differentiable."""
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logits = self.rounded(hidden).to(dtype) @ self.rounded(self.weight[start:stop]).to(dtype).T
        if self.bias is not None:
            logits = logits + self.bias[start:stop].to(dtype)
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits if self.temperature == 1 else logits / self.temperature

    def rounded(self, factor: Tensor) -> Tensor:
        """Hidden states or weights in the precision they are multiplied in."""
        return factor if self.compute_dtype is None else factor.to(self.compute_dtype)

    def finish_(self, products: Tensor, bias: Tensor | None) -> Tensor:
        """`h W^T` to logits, in place; `bias` holds the entries that belong to the last dimension."""
        if bias is not None:
            products += bias
        if self.softcap is not None:
            products.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap)
        factor = (1.0 if self.softcap is not None else self.scale) / self.temperature
        return products if factor == 1 else products.mul_(factor)

    def chosen(self, hidden: Float[Tensor, "n h"], words: Tensor) -> Tensor:
        """Logits of given words: (N,) of one word per row, or (N, K) of several."""
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        states = hidden if words.ndim == 1 else hidden[:, None]
        products = (self.rounded(self.weight[words]).to(dtype) * self.rounded(states).to(dtype)).sum(-1)
        return self.finish_(products, None if self.bias is None else self.bias[words].to(dtype))

    def slope(self, logits: Tensor) -> Tensor | float:
        """d logits / d (h W^T), from the logits."""
        if self.softcap is None:
            return self.scale / self.temperature
        tanh = logits * (self.temperature / self.softcap)
        return tanh.square_().neg_().add_(1).mul_(self.scale / self.temperature)


def product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """`out = left @ right`, accumulated and written in the dtype of `out` (fp32 or better), whatever the inputs'.

    Half-precision factors on a GPU keep their tensor cores: only the sums must be fp32, and they are."""
    if left.dtype == right.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    if out.is_cuda and left.dtype == right.dtype and out.dtype == torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32, out=out)
    return torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)


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
