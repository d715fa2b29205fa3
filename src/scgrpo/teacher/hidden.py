"""Hidden states of many completions under few prompts, at the price of computing each prompt once where possible.

    packed  one padding-free forward (packing.py): full attention, or windows longer than the sequences
    cached  each prompt into a key-value cache, its completions against it: sliding windows, hybrid layers
    off     every completion with its own copy of the prompt, padded on the right: everything; the plain twin

Sharing is never guessed to be right: the configuration says whether it may be tried, and its first use is compared
with the plain twin on a few of the very rows; if it differs, the next kind is tried and a warning says so.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scgrpo.errors import ConfigError
from scgrpo.teacher.models import backbone, base_causal_lm, key_value_cache
from scgrpo.teacher.packing import packed_hidden

logger = logging.getLogger(__name__)

Sharing = Literal["packed", "cached", "off"]
SHARING: tuple[Sharing, ...] = ("packed", "cached", "off")
_CHECKED_ROWS = 4
# Largest difference of hidden states, relative to the largest state, that counts as rounding.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_ROUNDING = 5e-2
# Rotary frequencies that depend on the longest sequence of the forward: other neighbours, other states.
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def rerun_hidden(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Int[Tensor, "p t"],
    lengths: Int[Tensor, " p"],
) -> Float[Tensor, "p t h"]:
    """Last hidden states that predict each completion token: position t has seen prompt and y_<t."""
    device, width = completions.device, completions.shape[1]
    starts = torch.tensor([len(prompt) for prompt in prompts], device=device)
    total, count = int((starts + lengths).max()), lengths.tolist()
    ids = completions.new_zeros(len(prompts), total)
    for row, prompt in enumerate(prompts):
        end = len(prompt) + count[row]
        ids[row, : len(prompt)] = torch.tensor(prompt, dtype=ids.dtype, device=device)
        ids[row, len(prompt) : end] = completions[row, : count[row]]
    attention = torch.arange(total, device=device) < (starts + lengths)[:, None]
    hidden = backbone(model)(input_ids=ids, attention_mask=attention.long(), use_cache=False).last_hidden_state
    # Token t is predicted by the state before it; the clamp only touches padding.
    index = (starts[:, None] - 1 + torch.arange(width, device=device)).clamp(max=total - 1)
    return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))


def cached_hidden(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Int[Tensor, "p t"],
    lengths: Int[Tensor, " p"],
) -> Float[Tensor, "p t h"]:
    """The same by the model's own cache: two forwards per distinct prompt."""
    from transformers import DynamicCache

    rows_of: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        rows_of[tuple(prompt)].append(row)
    core = backbone(model)
    out: Tensor | None = None
    for prompt, rows in rows_of.items():
        shown = torch.tensor([prompt], device=completions.device)
        cache = DynamicCache(config=core.config)
        first = core(input_ids=shown, **key_value_cache(core, cache), use_cache=True).last_hidden_state[:, -1]
        if out is None:
            out = first.new_zeros(*completions.shape, first.shape[-1])
        out[rows, 0] = first
        kept = int(lengths[rows].max()) - 1
        if kept < 1:
            continue
        cache.reorder_cache(torch.zeros(len(rows), dtype=torch.long, device=completions.device))
        positions = torch.arange(len(prompt), len(prompt) + kept, device=completions.device)[None]
        inputs = {"input_ids": completions[rows, :kept], "position_ids": positions}
        states = core(**inputs, **key_value_cache(core, cache), use_cache=True).last_hidden_state
        out[rows, 1 : kept + 1] = states
    assert out is not None
    return out


_FUNCTIONS: dict[Sharing, Callable[..., Tensor]] = {
    "packed": packed_hidden,
    "cached": cached_hidden,
    "off": rerun_hidden,
}


def sharing_candidates(model: nn.Module) -> tuple[Sharing, ...]:
    """What the configuration allows to be tried, fastest first; "off" is always the last."""
    causal_lm = base_causal_lm(model)
    config = causal_lm.config.get_text_config()
    rope: Any = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    parameters = [rope, *(value for value in rope.values() if isinstance(value, dict))]  # one per layer type, or one
    if any(entry.get("rope_type") in _LENGTH_DEPENDENT_ROPE for entry in parameters):
        return ("off",)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    packable = kinds <= {"full_attention", "sliding_attention"} and not getattr(
        config, "attn_logit_softcapping", None
    )
    if packable and getattr(causal_lm, "_supports_attention_backend", False):
        return SHARING
    return ("cached", "off")


@dataclass
class CompletionStates:
    """`(prompts, completions, lengths) -> (P, T, H)` hidden states, by the fastest sharing that is right.

    Attributes:
        model: Hugging Face causal LM.
        candidates: kinds of sharing that may be used, fastest first; a single one is used unchecked.
        agree: turns this process's verdict on a candidate into that of all processes, where they must run the same
            number of forwards.
        checked: the first candidate was found right.
    """

    model: nn.Module
    candidates: tuple[Sharing, ...] = SHARING
    agree: Callable[[bool], bool] = field(default=lambda verdict: verdict)
    checked: bool = False

    @property
    def sharing(self) -> Sharing:
        """The kind in use, or the next one to be tried."""
        return self.candidates[0]

    def __call__(
        self, prompts: Sequence[Sequence[int]], completions: Int[Tensor, "p t"], lengths: Int[Tensor, " p"]
    ) -> Float[Tensor, "p t h"]:
        """Raises ConfigError if the only candidate cannot do these rows."""
        rows = (prompts, completions, lengths)
        while len(self.candidates) > 1:
            if not self.checked and not self.agree(self._is_right(self.sharing, *rows)):
                self.candidates = self.candidates[1:]
                continue
            if not self.checked:
                logger.info("conditioned pass: prompts are shared (%s)", self.sharing)
                self.checked = True
            try:
                return _FUNCTIONS[self.sharing](self.model, *rows)
            except NotImplementedError as error:  # rows longer than a layer's window, after shorter ones, say
                logger.warning("conditioned pass: %s prompts are given up: %s", self.sharing, error)
                self.candidates, self.checked = self.candidates[1:], False
        try:
            return _FUNCTIONS[self.sharing](self.model, *rows)
        except NotImplementedError as error:
            raise ConfigError(
                f"Prompts cannot be shared as asked (teacher_prefix_sharing={self.sharing!r}): {error}.",
                "Set teacher_prefix_sharing='auto'.",
            ) from error

    def _is_right(
        self, sharing: Sharing, prompts: Sequence[Sequence[int]], completions: Tensor, lengths: Tensor
    ) -> bool:
        """Does it agree with the plain twin on a few rows, some of which share their prompt?"""
        few = sorted(range(len(prompts)), key=lambda row: (tuple(prompts[row]), -int(lengths[row])))[:_CHECKED_ROWS]
        rows = ([prompts[row] for row in few], completions[few], lengths[few])
        expected = rerun_hidden(self.model, *rows)
        try:
            found = _FUNCTIONS[sharing](self.model, *rows)
        except (NotImplementedError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            logger.warning("conditioned pass: %s prompts do not work with this model: %s", sharing, error)
            return False
        inside = torch.arange(completions.shape[1], device=completions.device) < lengths[few][:, None]
        difference = (found - expected)[inside].abs().max() / expected[inside].abs().max().clamp(min=1e-6)
        half = torch.is_autocast_enabled(completions.device.type)
        limit = _HALF_ROUNDING if half else _ROUNDING.get(expected.dtype, _HALF_ROUNDING)
        # NaN compares as False; it is the logits' check that reports it, with the row
        right = not bool(difference > limit)
        if not right:
            logger.warning(
                "conditioned pass: %s prompts give other hidden states than plain ones (by %.1e, relative); they "
                "are not used for this model.",
                sharing,
                float(difference),
            )
        return right
