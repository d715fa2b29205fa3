"""The conditioned pass: the same completion tokens, scored with and without a demonstration in context.

Each batch of pairs makes two backbone passes, without gradient and with dropout off, and hands the hidden states to
`scgrpo.divergence.token_evidence`. Prompt and completion stand next to each other and padding is on the right, so a
row's numbers do not depend on its neighbours beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from scgrpo.credit import Evidence
from scgrpo.divergence import OutputHead, TokenEvidence, token_evidence
from scgrpo.errors import ConfigError, NonFiniteError, ShapeError

# Runs a function of no arguments inside the training wrapper's forward, so that sharded parameters are gathered.
Redirect = Callable[[Callable[[], Any]], Any]


@dataclass(frozen=True)
class Pairs:
    """P pairs to score; everything is on one device.

    Attributes:
        student_prompts, teacher_prompts: token ids of each prompt.
        completions: (P, T) the sampled ids, padded on the right.
        lengths: (P,) completion length in tokens.
        mask: (P, T) tokens to score.
        student_hidden: (P, T, H) hidden states that predict each token, if a pass of the host left them;
            otherwise they are computed.
    """

    student_prompts: Sequence[Sequence[int]]
    teacher_prompts: Sequence[Sequence[int]]
    completions: Int[Tensor, "p t"]
    lengths: Int[Tensor, " p"]
    mask: Bool[Tensor, "p t"]
    student_hidden: Float[Tensor, "p t h"] | None = None

    def __post_init__(self) -> None:
        rows = len(self.completions)
        counts = (len(self.student_prompts), len(self.teacher_prompts), len(self.lengths), len(self.mask))
        if any(count != rows for count in counts):
            raise ShapeError(
                f"{rows} completions, but {counts} student prompts, teacher prompts, lengths and mask rows.",
                "Give one of each per pair.",
            )
        prompts = [*self.student_prompts, *self.teacher_prompts]
        if not all(len(prompt) for prompt in prompts):
            pair = [len(prompt) for prompt in prompts].index(0) % rows
            raise ShapeError(
                f"A prompt of pair {pair} has no tokens, so nothing predicts the first completion token.",
                "Give every prompt at least one token, for example the beginning-of-sequence token.",
            )

    def select(self, rows: Sequence[int]) -> Pairs:
        """The given rows, cut to their longest completion."""
        longest = max((int(self.lengths[row]) for row in rows), default=0)
        return Pairs(
            [self.student_prompts[row] for row in rows],
            [self.teacher_prompts[row] for row in rows],
            self.completions[rows][:, :longest],
            self.lengths[rows],
            self.mask[rows][:, :longest],
            None if self.student_hidden is None else self.student_hidden[rows][:, :longest],
        )


@dataclass
class ConditionedPass:
    """Scores pairs with a causal language model.

    Attributes:
        model: Hugging Face causal LM, possibly with a PEFT adapter, not wrapped for distribution.
        head: returns its output head; called inside each pass because sharding may replace the weights.
        max_rows: rows per forward.
        teacher_weights: context manager under which the model has the teacher's weights.
        redirect: see `Redirect`.
        autocast: context manager of the host's mixed precision for the backbone.
    """

    model: nn.Module
    head: Callable[[], OutputHead]
    max_rows: int
    teacher_weights: Callable[[], AbstractContextManager[Any]] = nullcontext
    redirect: Redirect = field(default=lambda score: score())
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    @torch.no_grad()
    def __call__(self, pairs: Pairs, num_forwards: int | None = None) -> Evidence:
        """Evidence (P, T) of all pairs; 0 where the mask is False.

        Args:
            pairs: what to score.
            num_forwards: number of batches to run. Processes that share sharded weights must agree on it: batches
                this process lacks are run on a dummy row.

        Raises:
            NonFiniteError: a logit is NaN or infinite; names pair and position.
        """
        out = torch.zeros(4, *pairs.completions.shape, dtype=torch.float32, device=pairs.completions.device)
        batches = list(self.batches(pairs))
        with evaluation_mode(self.model):
            for rows in batches:
                batch = pairs.select(rows)
                scores = self.redirect(partial(self._score, batch))
                values = torch.stack([getattr(scores, name) for name in _FIELDS])
                _check(values, batch.mask, rows)
                block = torch.zeros(4, *batch.mask.shape, dtype=values.dtype, device=values.device)
                block[:, batch.mask] = values
                if block.dtype != out.dtype:
                    out = out.to(block.dtype)
                out[:, rows, : block.shape[2]] = block
            for _ in range(len(batches), num_forwards or 0):
                self.redirect(partial(self._score, _dummy(pairs)))
        return Evidence(**dict(zip(_FIELDS, out, strict=True)))

    def batches(self, pairs: Pairs) -> Iterator[list[int]]:
        """Rows in batches of `max_rows`, longest first, so that little is padded and memory peaks at the start."""
        scored = pairs.mask.any(dim=1).tolist()
        size = [len(p) + int(n) for p, n in zip(pairs.teacher_prompts, pairs.lengths, strict=True)]
        order = sorted((row for row, any_token in enumerate(scored) if any_token), key=lambda row: -size[row])
        for start in range(0, len(order), self.max_rows):
            yield order[start : start + self.max_rows]

    def _score(self, batch: Pairs) -> TokenEvidence:
        with self.autocast():
            student = batch.student_hidden
            if student is None:
                student = completion_hidden(self.model, batch.student_prompts, batch.completions, batch.lengths)
            with self.teacher_weights():
                teacher = completion_hidden(self.model, batch.teacher_prompts, batch.completions, batch.lengths)
        tokens = batch.completions[batch.mask]
        return token_evidence(student[batch.mask], teacher[batch.mask], tokens, self.head())


_FIELDS = ("token_kl", "teacher_logps", "student_logps", "student_entropy")


def completion_hidden(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Int[Tensor, "p t"],
    lengths: Int[Tensor, " p"],
) -> Float[Tensor, "p t h"]:
    """Last hidden states that predict each completion token: (P, T, H), position t has seen prompt and y_<t."""
    device, width = completions.device, completions.shape[1]
    starts = torch.tensor([len(prompt) for prompt in prompts], device=device)
    total = int((starts + lengths).max())
    ids = completions.new_zeros(len(prompts), total)
    for row, prompt in enumerate(prompts):
        end = len(prompt) + int(lengths[row])
        ids[row, : len(prompt)] = torch.tensor(prompt, dtype=ids.dtype, device=device)
        ids[row, len(prompt) : end] = completions[row, : int(lengths[row])]
    attention = torch.arange(total, device=device) < (starts + lengths)[:, None]
    hidden = backbone(model)(input_ids=ids, attention_mask=attention.long(), use_cache=False).last_hidden_state
    # Token t is predicted by the state before it; the clamp only touches padding.
    index = (starts[:, None] - 1 + torch.arange(width, device=device)).clamp(max=total - 1)
    return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))


def base_causal_lm(model: nn.Module) -> Any:
    """The Hugging Face model itself, inside a PEFT wrapper or not."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def backbone(model: nn.Module) -> Any:
    """The model without its output head."""
    return base_causal_lm(model).base_model


def output_head(model: nn.Module, temperature: float) -> OutputHead:
    """Output head of a causal LM: weights, bias, and the logit scale and soft-cap its configuration names.

    Sharded weights (DTensor) are gathered; call it where the wrapper's forward would.

    Raises:
        ConfigError: the head carries a LoRA adapter, which its weight alone does not show.
    """
    causal_lm = base_causal_lm(model)
    layer, config = causal_lm.get_output_embeddings(), causal_lm.config.get_text_config()
    if hasattr(layer, "base_layer"):
        raise ConfigError(
            "The output head carries a PEFT adapter; its logits are more than its weight times the hidden state.",
            "Leave the head out of LoraConfig.target_modules, or train it whole with modules_to_save.",
        )
    return OutputHead(
        weight=_whole(layer.weight),
        bias=None if getattr(layer, "bias", None) is None else _whole(layer.bias),
        scale=logit_scale(config),
        softcap=getattr(config, "final_logit_softcapping", None),
        temperature=temperature,
    )


def logit_scale(config: Any) -> float:
    """Factor a model family applies to its logits; families differ in its name and in whether they divide."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    divisor = getattr(config, "logits_scaling", None)
    if divisor is None:
        return 1.0
    return float(divisor) if config.model_type == "hyperclovax" else 1.0 / float(divisor)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, then back as each was. With dropout on, two passes over the *same* context
    differ as much as the signal does."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def has_dropout(model: nn.Module) -> bool:
    """Whether two passes in training mode may differ: any dropout module or configured rate above 0."""
    if any(isinstance(m, _DropoutNd) and m.p > 0 for m in model.modules()):
        return True
    # Attention applies its rate without a module of its own; configurations name it freely.
    rates = base_causal_lm(model).config.get_text_config().to_dict()
    return any(("drop" in key) and isinstance(rate, float) and rate > 0 for key, rate in rates.items())


def _whole(weight: Tensor) -> Tensor:
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def _check(values: Tensor, mask: Tensor, rows: Sequence[int]) -> None:
    bad = (~torch.isfinite(values)).any(dim=0)
    if bool(bad.any()):
        row, position = mask.nonzero()[bad.nonzero()[0, 0]].tolist()
        raise NonFiniteError(
            f"The model's logits are NaN or infinite for pair {rows[row]}, completion token {position} "
            f"({int(bad.sum())} of {len(bad)} tokens of this batch).",
            "Nothing was trained on it. Resume from the last checkpoint with a lower learning rate, or use bf16 or "
            "fp32 instead of fp16.",
        )


def _dummy(pairs: Pairs) -> Pairs:
    """One row of one token: the cheapest batch that passes through every layer."""
    token = pairs.completions.new_zeros(1, 1)
    given = pairs.student_hidden
    hidden = None if given is None else given.new_zeros(1, 1, given.shape[-1])
    return Pairs([[0]], [[0]], token, token[:, 0] + 1, token.bool(), hidden)
