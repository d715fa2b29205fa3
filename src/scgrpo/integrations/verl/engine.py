"""The conditioned pass on verl's workers: hidden states of the sharded actor, and the head's divergence on them.

verl's FSDP engine with one more kind of micro-batch; everything else it does is untouched. Inputs are verl's own
(packed or padded, sliced for Ulysses sequence parallelism); no logits of (tokens x vocabulary) are formed, which is
why fused kernels have nothing to add.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.utils.ulysses import gather_outputs_and_unpad, slice_input_tensor
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from scgrpo.divergence import Divergence
from scgrpo.integrations.verl.scoring import FIELDS, PASS
from scgrpo.teacher.models import backbone, gathered_head, in_autocast, output_head, through_wrapper


@dataclass(frozen=True)
class ScoredTokens:
    """The N tokens of a micro-batch to score, row by row.

    Attributes:
        student, teacher: (N,) places of the states that predict them, among all tokens of the micro-batch; the same
            where a row has no second sequence.
        ids: (N,) the tokens.
        offsets: (B + 1,) the first one of each row.
    """

    student: Tensor
    teacher: Tensor
    ids: Tensor
    offsets: Tensor


def scored_tokens(rows: TensorDict) -> ScoredTokens:
    """Where the tokens to score are, and what predicts them: the token before, as each sequence begins with a
    prompt."""
    starts, student_length = rows["input_ids"].offsets(), rows["student_length"]
    places = rows["loss_mask"].values().nonzero()[:, 0]
    row = torch.searchsorted(starts, places, right=True) - 1
    second = places >= (starts[:-1] + student_length)[row]
    student, row_of = places[~second], row[~second]
    teacher = student.clone()
    # The second sequences hold the same tokens in the same order.
    teacher[(starts[:-1] + student_length < starts[1:])[row_of]] = places[second]
    counts = torch.bincount(row_of, minlength=len(rows))
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return ScoredTokens(student - 1, teacher - 1, rows["input_ids"].values()[student], offsets)


def as_sequences(rows: TensorDict) -> TensorDict:
    """The micro-batch with one row per sequence; the tokens stay where they are."""
    starts = rows["input_ids"].offsets()
    bounds = torch.unique(torch.cat([starts, starts[:-1] + rows["student_length"]]))
    jagged = {
        name: torch.nested.nested_tensor_from_jagged(rows[name].values(), bounds)
        for name in ("input_ids", "position_ids")
    }
    others = {name: tu.get(rows, name) for name in ("temperature", "use_remove_padding", "use_fused_kernels")}
    sequences = TensorDict(jagged, batch_size=len(bounds) - 1)
    tu.assign_non_tensor(sequences, **others)
    return sequences


# The devices and vendors whose engine verl leaves to a plug-in; it keeps its own for all others.
@EngineRegistry.register(
    model_type="language_model", backend=["fsdp", "fsdp2"], device="cuda", vendor=["nvidia", "amd"]
)
class ConditionedFSDPEngine(FSDPEngineWithLMHead):
    """verl's FSDP engine, which answers micro-batches of the conditioned pass with evidence."""

    def forward_step(
        self, micro_batch: TensorDict, loss_function: Callable[..., Any] | None, forward_only: bool
    ) -> tuple[Tensor, dict[str, Any]]:
        """As verl's; a pass of `score_pairs` returns, for each row, the evidence of its scored tokens, in order."""
        settings = tu.get_non_tensor_data(micro_batch, PASS, None)
        if settings is None or not forward_only:
            return super().forward_step(micro_batch, loss_function, forward_only)
        micro_batch = micro_batch.to(get_device_id())
        tokens, found = scored_tokens(micro_batch), []
        # Not as the output of the wrapper's forward, which mixed precision would round.
        through_wrapper(self.module, self._unwrapped)(
            lambda: found.append(self._evidence(as_sequences(micro_batch), tokens, Divergence(**settings)))
        )
        output = {
            name: torch.nested.nested_tensor_from_jagged(values, tokens.offsets)
            for name, values in zip(FIELDS, found[0], strict=True)
        }
        return torch.zeros(()), {"model_output": output, "loss": 0.0, "metrics": {}}

    @property
    def _unwrapped(self) -> nn.Module:
        return self.module.module if isinstance(self.module, FullyShardedDataParallel) else self.module

    def _evidence(self, sequences: TensorDict, tokens: ScoredTokens, divergence: Divergence) -> Tensor:
        """(4, N) the fields of the evidence, inside the wrapper's forward."""
        model = self._unwrapped
        with self._autocast():
            hidden = self._hidden(model, sequences)
            student, teacher, ids = (self._share(x) for x in (tokens.student, tokens.teacher, tokens.ids))
            with gathered_head(model):
                head = in_autocast(output_head(model, sequences["temperature"]), hidden.device.type)
                evidence = divergence(hidden[student], hidden[teacher], ids, head)
        values = torch.stack([getattr(evidence, name) for name in FIELDS], dim=1)
        # Exactly 0 where the teacher is the student: products of the same rows may be rounded differently.
        values[:, 0].masked_fill_(student == teacher, 0)
        return self._joined(values, len(tokens.ids)).T

    def _hidden(self, model: nn.Module, sequences: TensorDict) -> Tensor:
        """(tokens, H) last hidden states of all tokens, at the places they have in the micro-batch."""
        inputs, prepared = self.prepare_model_inputs(micro_batch=sequences)
        hidden = backbone(model)(**inputs, use_cache=False).last_hidden_state
        if sequences["use_remove_padding"]:
            return self._gather_and_unpad_packed(hidden[0], prepared["pad_size"])
        return hidden[inputs["attention_mask"].bool()]

    def _share(self, values: Tensor) -> Tensor:
        """This process's part of the scored tokens, where sequence parallelism has several on one micro-batch."""
        return slice_input_tensor(values, dim=0) if self.use_ulysses_sp else values

    def _joined(self, values: Tensor, count: int) -> Tensor:
        if not self.use_ulysses_sp:
            return values
        padding = -count % self.ulysses_sequence_parallel_size
        return gather_outputs_and_unpad(values, gather_dim=0, unpad_dim=0, padding_size=padding)

    def _autocast(self) -> AbstractContextManager[Any]:
        """As verl's own forward."""
        if self._autocast_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(get_device_name(), dtype=self._autocast_dtype)
