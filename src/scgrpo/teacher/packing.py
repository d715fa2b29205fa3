"""Many completions under few prompts in one padding-free forward: every prompt is computed once.

    row       [prompt_1 | ... | prompt_K | y_a | y_b | ...]      positions of y_i continue those of its prompt
    attention each segment attends causally to itself; each completion also attends to the whole of its prompt;
              the two results are merged by their log-sum-exps: softmax over the union, exactly

No key or value is expanded, cached or kept after its layer, and no (row x row) mask exists. Exact for softmax
attention with relative positions; `scgrpo.teacher.hidden` decides where it applies and checks it before use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scgrpo.teacher.models import backbone

ATTENTION = "scgrpo_packed"
# What attention layers may hand to their function besides these changes what attention computes.
_KNOWN = {"dropout", "scaling", "sliding_window", "position_ids", "packed", "use_cache", "is_causal"}


@dataclass(frozen=True)
class Segments:
    """Stretches of a packed row, one after another: lengths in tokens, the first one begins at `start`."""

    start: int
    lengths: tuple[int, ...]
    device: torch.device

    @cached_property
    def bounds(self) -> Int[Tensor, " n"]:
        """Cumulative lengths, from 0, int32."""
        return torch.tensor([0, *self.lengths], device=self.device).cumsum(0).to(torch.int32)

    @property
    def stop(self) -> int:
        return self.start + sum(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    @cached_property
    def table(self) -> tuple[Int[Tensor, "k l"], Tensor]:
        """Column of every token, padded to the longest segment, and which entries are tokens."""
        offsets = torch.arange(self.longest, device=self.device)
        lengths = torch.tensor(self.lengths, device=self.device)[:, None]
        inside = offsets < lengths
        return torch.where(inside, self.start + self.bounds[:-1, None] + offsets, self.start).long(), inside


@dataclass(frozen=True)
class PackedRow:
    """One forward's input.

    Attributes:
        ids, positions: (1, S).
        prompts: the K prompts. completions: one segment per completion, those of one prompt next to each other,
            each without its last token, which predicts nothing.
        answers: one segment per prompt: the tokens of all its completions.
        predicts: (P, T) column whose state predicts each completion token, padded with column 0.
        longest: tokens of the longest prompt with its longest completion.
    """

    ids: Int[Tensor, "1 s"]
    positions: Int[Tensor, "1 s"]
    prompts: Segments
    completions: Segments
    answers: Segments
    predicts: Int[Tensor, "p t"]
    longest: int


def pack(prompts: Sequence[Sequence[int]], completions: Int[Tensor, "p t"], lengths: Int[Tensor, " p"]) -> PackedRow:
    """Lay P completions out under their prompts; equal prompts are stored once.

    Args:
        prompts: token ids, one prompt per completion, each of at least one token.
        completions: (P, T) padded on the right; lengths: (P,) in tokens.
    """
    number: dict[tuple[int, ...], int] = {}
    which = [number.setdefault(tuple(prompt), len(number)) for prompt in prompts]
    unique, ids, count = list(number), completions.tolist(), lengths.tolist()
    ends = torch.tensor([len(prompt) for prompt in unique]).cumsum(0).tolist()
    row_ids = [token for prompt in unique for token in prompt]
    positions = [position for prompt in unique for position in range(len(prompt))]
    kept = [max(n - 1, 0) for n in count]
    order = sorted(range(len(which)), key=which.__getitem__)
    first_column = [0] * len(which)
    for row in order:
        first_column[row] = len(row_ids)
        row_ids += ids[row][: kept[row]]
        positions += range(len(unique[which[row]]), len(unique[which[row]]) + kept[row])
    answered = [0] * len(unique)
    for row, prompt in enumerate(which):
        answered[prompt] += kept[row]
    device = completions.device
    column = torch.arange(-1, completions.shape[1] - 1) + torch.tensor(first_column)[:, None]
    column[:, :1] = torch.tensor([ends[prompt] - 1 for prompt in which])[:, None]
    inside = torch.arange(completions.shape[1]) < torch.tensor(count)[:, None]
    return PackedRow(
        ids=torch.tensor([row_ids], device=device, dtype=completions.dtype),
        positions=torch.tensor([positions], device=device),
        prompts=Segments(0, tuple(len(prompt) for prompt in unique), device),
        completions=Segments(ends[-1], tuple(kept[row] for row in order if kept[row]), device),
        answers=Segments(ends[-1], tuple(answered), device),
        predicts=torch.where(inside, column, 0).to(device),
        longest=max(len(prompt) + n for prompt, n in zip(prompts, count, strict=True)),
    )


def packed_hidden(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Int[Tensor, "p t"],
    lengths: Int[Tensor, " p"],
) -> Float[Tensor, "p t h"]:
    """Last hidden states that predict each completion token, by one packed forward (see the module)."""
    row = pack(prompts, completions, lengths)
    with _attention(model, ATTENTION):
        output = backbone(model)(input_ids=row.ids, position_ids=row.positions, use_cache=False, packed=row)
    return output.last_hidden_state[0][row.predicts]


@contextmanager
def _attention(model: nn.Module, name: str) -> Iterator[None]:
    from transformers import AttentionInterface

    AttentionInterface.register(name, packed_attention)  # no mask function: transformers then builds no mask
    core = backbone(model)
    before = core.config._attn_implementation
    core.set_attn_implementation(name)
    try:
        yield
    finally:
        core.set_attn_implementation(before)


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "1 hq s d"],
    key: Float[Tensor, "1 hkv s d"],
    value: Float[Tensor, "1 hkv s d"],
    attention_mask: None,
    *,
    packed: PackedRow,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "1 s hq d"], None]:
    """transformers' attention function for a packed row.

    Raises:
        NotImplementedError: the layer asks for something that changes attention (caps, sinks, a window shorter than
            the sequences): the caller falls back.
    """
    unknown = [name for name, given in others.items() if given is not None and name not in _KNOWN]
    if unknown or (sliding_window is not None and sliding_window < packed.longest) or attention_mask is not None:
        raise NotImplementedError(f"attention with {unknown or 'a window or mask'} cannot be packed")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend = _attend_varlen if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) else _attend_padded
    return attend(query, key, value, packed, scale), None


def _merge(own: Tensor, own_lse: Tensor, prompt: Tensor, prompt_lse: Tensor) -> Tensor:
    """Softmax over the union of two sets of keys from the softmax over each, in fp32 or better."""
    share = torch.sigmoid(prompt_lse - own_lse)[..., None]
    dtype = torch.promote_types(own.dtype, torch.float32)
    return torch.lerp(own.to(dtype), prompt.to(dtype), share.to(dtype)).to(own.dtype)


def _attend_varlen(query: Tensor, key: Tensor, value: Tensor, row: PackedRow, scale: float) -> Tensor:
    """By two variable-length kernels of torch (CUDA, half precision)."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    own = Segments(0, row.prompts.lengths + row.completions.lengths, q.device)
    common: dict[str, Any] = {
        "scale": scale,
        "enable_gqa": q.shape[1] != k.shape[1],
        "return_aux": AuxRequest(lse=True),
    }
    out, lse = varlen_attn(q, k, v, own.bounds, own.bounds, own.longest, own.longest, window_size=(-1, 0), **common)
    start = row.answers.start
    if row.answers.longest:
        prompt, prompt_lse = varlen_attn(
            q[start:],
            k[:start],
            v[:start],
            row.answers.bounds,
            row.prompts.bounds,
            row.answers.longest,
            row.prompts.longest,
            **common,
        )
        lse = lse if lse.shape[0] == q.shape[0] else lse.T  # (heads, tokens) in some versions
        prompt_lse = prompt_lse if prompt_lse.shape[0] == q.shape[0] - start else prompt_lse.T
        out = torch.cat([out[:start], _merge(out[start:], lse[start:], prompt, prompt_lse)])
    return out[None]


def _attend_padded(query: Tensor, key: Tensor, value: Tensor, row: PackedRow, scale: float) -> Tensor:
    """By padded batches of segments, prompts and completions apart, and one call per prompt (any device)."""
    groups = query.shape[1] // key.shape[1]
    q, k, v = query[0], key[0].repeat_interleave(groups, 0), value[0].repeat_interleave(groups, 0)
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
    for segments in (row.prompts, row.completions):
        if not segments.longest:
            continue
        columns, inside = segments.table
        part, part_lse = _attend(*(x[:, columns].transpose(0, 1) for x in (q, k, v)), causal=True, scale=scale)
        out[:, columns[inside]] = part.transpose(0, 1)[:, inside]
        lse[:, columns[inside]] = part_lse.transpose(0, 1)[:, inside].to(lse.dtype)
    asked, shown = row.answers.start, row.prompts.start
    for answers, prompt in zip(row.answers.lengths, row.prompts.lengths, strict=True):
        if answers:
            mine, its = slice(asked, asked + answers), slice(shown, shown + prompt)
            part, part_lse = _attend(q[None, :, mine], k[None, :, its], v[None, :, its], causal=False, scale=scale)
            out[:, mine] = _merge(out[:, mine], lse[:, mine], part[0], part_lse[0].to(lse.dtype))
        asked, shown = asked + answers, shown + prompt
    return out.transpose(0, 1)[None]


def _attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attention (batch, heads, tokens, d) and its log-sum-exps (batch, heads, tokens)."""
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if causal:
        size = scores.shape[-1]
        scores = scores.masked_fill(torch.ones(size, size, device=q.device, dtype=torch.bool).triu(1), -torch.inf)
    lse = scores.logsumexp(-1)
    return ((scores - lse[..., None]).exp() @ v.to(scores.dtype)).to(q.dtype), lse
