"""Turns of many conversations at once: one `generate` per turn, over the keys and values of the turns before."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scgrpo.evaluation.conversation import Sampled
from scgrpo.teacher.models import base_causal_lm, key_value_cache


class Turns:
    """Samples turn after turn of B conversations.

    Conversations of different lengths stand in one tensor: what a row lacks in a turn is a hole that the attention
    mask leaves out, so that no key or value is computed twice. Layers that do not keep every key (sliding windows,
    recurrent states) cannot have holes: with them, each turn starts from the tokens again.

    Args:
        model: a transformers causal LM, on its device, in evaluation mode.
        config: its GenerationConfig: how tokens are drawn, end and padding tokens. `max_new_tokens` is set per turn.
        num_rows: B.
    """

    def __init__(self, model: Any, config: Any, num_rows: int) -> None:
        from transformers import DynamicCache

        self.model, self.config = model, copy.deepcopy(config)
        self.config.return_dict_in_generate = True
        self.config.cache_implementation = None  # the one below
        self.config.num_return_sequences = 1
        self._ends = torch.tensor(_listed(config.eos_token_id), device=model.device)
        self._so_far: list[list[int]] = [[] for _ in range(num_rows)]
        self._rows = list(range(num_rows))
        self._cache: DynamicCache | None = DynamicCache(config=model.config)
        if not _holes_allowed(self._cache):
            self._cache = None
        self._ids = self._mask = torch.empty(num_rows, 0, dtype=torch.long, device=model.device)

    def __call__(self, rows: Sequence[int], added: Sequence[Sequence[int]], max_new_tokens: int) -> list[Sampled]:
        """One more turn of some conversations; the others have ended.

        Args:
            rows: which, in ascending order, among those of the call before.
            added: for each, the tokens since its last turn (at first: its prompt).

        Returns:
            For each, the new tokens up to and with the first end token, if there is one.
        """
        for row, tokens in zip(rows, added, strict=True):
            self._so_far[row] += tokens
        self._extend(rows, added)
        self.config.max_new_tokens = max_new_tokens
        cache = {} if self._cache is None else key_value_cache(base_causal_lm(self.model), self._cache)
        output = self.model.generate(
            input_ids=self._ids, attention_mask=self._mask, generation_config=self.config, **cache
        )
        new = output.sequences[:, self._ids.shape[1] :]
        ended = torch.isin(new, self._ends).long()
        kept = (ended.cumsum(1) - ended == 0).long()  # up to and with the first end
        self._ids, self._mask = output.sequences, torch.cat([self._mask, kept], dim=1)
        turns = [Sampled(ids[: int(count)]) for ids, count in zip(new.tolist(), kept.sum(1), strict=True)]
        for row, turn in zip(rows, turns, strict=True):
            self._so_far[row] += turn.ids
        if self._cache is not None:
            # Processes that share weights go on until the last one is done, and keep keys of no token.
            self._cache.crop(self._ids.shape[1] - 1 - self._cache.get_seq_length())
        return turns

    def _extend(self, rows: Sequence[int], added: Sequence[Sequence[int]]) -> None:
        """Drop the conversations that have ended, and append to the others."""
        if self._cache is None:
            self._ids, self._mask = self._left_padded([self._so_far[row] for row in rows])
            return
        if len(rows) < len(self._rows):
            place = {row: index for index, row in enumerate(self._rows)}
            kept = torch.tensor([place[row] for row in rows], device=self._ids.device)
            self._ids, self._mask, self._rows = self._ids[kept], self._mask[kept], list(rows)
            if self._cache.get_seq_length():
                self._cache.batch_select_indices(kept)
        ids, mask = self._left_padded(added)
        self._ids, self._mask = torch.cat([self._ids, ids], dim=1), torch.cat([self._mask, mask], dim=1)

    def _left_padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        ids = torch.tensor([[self.config.pad_token_id] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return ids.to(self.model.device), mask.to(self.model.device)


def idle(model: Any, config: Any) -> None:
    """Take part in a turn of processes that share the model's weights: `generate` goes on until all are done."""
    config = copy.deepcopy(config)
    config.max_new_tokens, config.num_return_sequences = 1, 1
    ids = torch.full((1, 1), config.pad_token_id, device=model.device)
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)


def longest_prompt(model: Any) -> int | None:
    """The most tokens after which a model has a position left; None if its configuration says nothing."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit - 1 if limit else None


def _listed(end: int | list[int] | None) -> list[int]:
    return end if isinstance(end, list) else [] if end is None else [end]


def _holes_allowed(cache: Any) -> bool:
    """Whether every layer keeps all keys, each under the position it was given."""
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in cache.layers) and bool(cache.layers)
