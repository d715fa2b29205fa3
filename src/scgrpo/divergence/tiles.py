"""Logits tile by tile: some rows of hidden states times some words of the head, in one buffer for a whole call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scgrpo.divergence.head import OutputHead, product
from scgrpo.errors import ConfigError

# A CPU works fastest while both fp32 tiles (student, teacher) stay in the last-level cache, and 512 rows repay
# reading the weights. A GPU wants whole waves of output tiles.
ROWS_CPU, BYTES_CPU = 512, 16 << 20
ROWS_CUDA, BYTES_CUDA = 4096, 512 << 20
MIN_WORDS = 1024


@dataclass(frozen=True)
class TileShape:
    """How many tokens and words one tile covers. Results depend on it by rounding only."""

    rows: int
    words: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.words < 1:
            raise ConfigError(f"A tile of {self.rows} tokens and {self.words} words.", "Choose both >= 1.")


def tile_shape(
    num_tokens: int, num_words: int, device: torch.device, rows: int | None = None, words: int | None = None
) -> TileShape:
    """The default tile for a problem, with `rows` and `words` overriding it.

    Two fp32 tiles take `8 * rows * words` bytes: 16 MiB on a CPU, at most 512 MiB on a GPU, whatever the problem.
    """
    limit, size = (ROWS_CUDA, BYTES_CUDA) if device.type == "cuda" else (ROWS_CPU, BYTES_CPU)
    rows = max(1, min(num_tokens, limit)) if rows is None else rows
    if words is None:
        words = max(MIN_WORDS, size // (8 * max(rows, 1)) // 256 * 256)
    return TileShape(rows, max(1, min(words, num_words)) if words >= 1 else words)


class Tiles:
    """Logits of one or two models on the same tokens. Each tile overwrites the last.

    Models with the same head are stacked, so that a tile is one product and the weights are read once for both.
    """

    def __init__(self, heads: tuple[OutputHead, ...], shape: TileShape, like: Tensor) -> None:
        self.heads, self.shape = heads, shape
        self.dtype = torch.promote_types(like.dtype, torch.float32)
        self._logits = like.new_empty(len(heads) * shape.rows * shape.words, dtype=self.dtype)
        # Half-precision weights are widened tile by tile where the hardware cannot accumulate them in fp32.
        widen = not like.is_cuda and any((head.compute_dtype or head.weight.dtype) != self.dtype for head in heads)
        widest = max(head.weight.shape[1] for head in heads)
        self._weight = like.new_empty(shape.words * widest if widen else 0, dtype=self.dtype)

    def blocks(self, num_tokens: int) -> Iterator[slice]:
        """Rows of consecutive tokens."""
        for start in range(0, num_tokens, self.shape.rows):
            yield slice(start, min(start + self.shape.rows, num_tokens))

    def over(self, *hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(words, logits of shape (models, n, w)) over the whole vocabulary, for n <= `shape.rows` tokens."""
        count, n = len(hidden), len(hidden[0])
        stacked = all(head is self.heads[0] for head in self.heads)
        rows = [torch.cat(hidden)] if stacked else hidden
        factors = [self.factor(head, states) for head, states in zip(self.heads, rows, strict=False)]
        for start in range(0, len(self.heads[0]), self.shape.words):
            words = slice(start, min(start + self.shape.words, len(self.heads[0])))
            width = words.stop - words.start
            tile = self._logits[: count * n * width].view(count, n, width)
            for states, head, out in zip(factors, self.heads, tile.view(len(factors), -1, width), strict=False):
                product(states, self.weight(head, words).T, out)
                head.finish_(out, None if head.bias is None else head.bias[words].to(self.dtype))
            yield words, tile

    def weight(self, head: OutputHead, words: slice) -> Tensor:
        """(w, H) rows of the head's weight in a dtype `product` can use as it is; overwritten by the next call."""
        rows = head.rounded(head.weight[words])
        if rows.is_cuda or rows.dtype == self.dtype:
            return rows
        return self._weight[: rows.numel()].view(rows.shape).copy_(rows)

    def factor(self, head: OutputHead, states: Tensor) -> Tensor:
        """Hidden states in a dtype `product` can use as it is."""
        states = head.rounded(states)
        return states if states.is_cuda else states.to(self.dtype)
