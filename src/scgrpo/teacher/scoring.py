"""The conditioned pass: the same completion tokens, scored with and without a demonstration in context.

Each batch of pairs makes two backbone passes, without gradient and with dropout off, and hands the hidden states to
`scgrpo.divergence`. Prompt and completion stand next to each other and padding is on the right, so a row's numbers do
not depend on its neighbours beyond rounding. Where the host has made the student's pass already, only the teacher's
is left; where that pass is the loss's own, its log-probs and entropy come from the same product with the output head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scgrpo.credit import Evidence
from scgrpo.divergence import Distillation, Divergence, OutputHead, TokenEvidence
from scgrpo.errors import NonFiniteError, ShapeError
from scgrpo.teacher.hidden import CompletionStates
from scgrpo.teacher.models import evaluation_mode, gathered_head, in_autocast, reshard

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
        student_hidden: (P, T, H) hidden states that predict each token, if a pass of the host left them; otherwise
            they are computed. With a gradient, the evidence's `student_logps` and `student_entropy` have one too.
        alone: no pair has a demonstration: the prompts are the same, and only weights make a teacher.
        contrasted: the "student" is a teacher under another prompt: the teacher's weights read both.
    """

    student_prompts: Sequence[Sequence[int]]
    teacher_prompts: Sequence[Sequence[int]]
    completions: Int[Tensor, "p t"]
    lengths: Int[Tensor, " p"]
    mask: Bool[Tensor, "p t"]
    student_hidden: Float[Tensor, "p t h"] | None = None
    alone: bool = False
    contrasted: bool = False

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

    def trimmed(self) -> Pairs:
        """Without what follows each row's last token to score (tool output at the end, say): no score needs it."""
        if not self.mask.shape[1]:
            return self
        position = torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
        return replace(self, lengths=(self.mask * position).amax(dim=1))

    def select(self, rows: Sequence[int]) -> Pairs:
        """The given rows, cut to their longest completion."""
        longest = int(self.lengths[rows].max()) if rows else 0
        return replace(
            self,
            student_prompts=[self.student_prompts[row] for row in rows],
            teacher_prompts=[self.teacher_prompts[row] for row in rows],
            completions=self.completions[rows][:, :longest],
            lengths=self.lengths[rows],
            mask=self.mask[rows][:, :longest],
            student_hidden=None if self.student_hidden is None else self.student_hidden[rows][:, :longest],
        )


@dataclass(frozen=True)
class OtherModel:
    """A teacher that is not the policy.

    Attributes:
        head: returns its output head.
        states: its hidden states of completions under prompts; the model is in evaluation mode.
    """

    head: Callable[[], OutputHead]
    states: CompletionStates


@dataclass
class ConditionedPass:
    """Scores pairs with a causal language model.

    Attributes:
        model: Hugging Face causal LM, possibly with a PEFT adapter, not wrapped for distribution.
        head: returns its output head; called inside each pass because sharding may replace the weights.
        states: hidden states of completions under prompts.
        max_rows: a forward takes at most as many tokens as this many of the longest teacher rows (at least one row).
        max_tokens: the same limit as a number of tokens.
        teacher_weights: context manager under which the model has the teacher's weights; None: they are the policy's.
        teacher: another model as the teacher, with the same vocabulary; None: the model itself.
        redirect: see `Redirect`.
        autocast: context manager of the host's mixed precision for the backbone.
        divergence: what `token_kl` is.
        counted_as: context manager around each forward, given whose it is (None: a check's), to count the cost.
    """

    model: nn.Module
    head: Callable[[], OutputHead]
    states: CompletionStates
    max_rows: int = 8
    max_tokens: int | None = None
    teacher_weights: Callable[[], AbstractContextManager[Any]] | None = None
    teacher: OtherModel | None = None
    redirect: Redirect = field(default=lambda score: score())
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    divergence: Divergence = field(default=Divergence())
    counted_as: Callable[[Literal["student", "teacher"] | None], AbstractContextManager[Any]] = field(
        default=lambda side: nullcontext()
    )

    def __call__(self, pairs: Pairs, num_forwards: int | None = None) -> Evidence:
        """Evidence (P, T) of all pairs; 0 where the mask is False.

        Args:
            pairs: what to score.
            num_forwards: number of batches to run. Processes that share sharded weights must agree on it: batches
                this process lacks are run on a dummy row.

        Raises:
            NonFiniteError: a logit is NaN or infinite; names pair and position.
        """
        return Evidence(*self._values(pairs, num_forwards))

    def distil(self, pairs: Pairs, distillation: Distillation) -> tuple[Evidence, Float[Tensor, "p t"]]:
        """Evidence of all pairs, and the distillation loss of every token; `student_hidden` must be given.

        The loss, log-probs and entropy have gradients. Raises as `__call__`.
        """
        *evidence, loss = self._values(pairs, None, distillation)
        return Evidence(*evidence), loss

    def _values(
        self, pairs: Pairs, num_forwards: int | None, distillation: Distillation | None = None
    ) -> Float[Tensor, "k p t"]:
        """The fields of the evidence, in order, and the distillation loss if one is asked for."""
        count = len(_FIELDS) + (distillation is not None)
        out = torch.zeros(count, *pairs.completions.shape, dtype=torch.float32, device=pairs.completions.device)
        pairs = pairs.trimmed()
        batches = list(self.batches(pairs))
        differentiable = pairs.student_hidden is not None and pairs.student_hidden.requires_grad
        with evaluation_mode(self.model), torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            for rows in batches:
                batch = pairs.select(rows)
                values = self._run(batch, distillation)
                _check(values, batch.mask, rows)
                block = torch.zeros(count, *batch.mask.shape, dtype=values.dtype, device=values.device)
                block[:, batch.mask] = values
                if block.dtype != out.dtype:
                    out = out.to(block.dtype)
                out[:, rows, : block.shape[2]] = block
            for _ in range(len(batches), num_forwards or 0):
                self._run(_dummy(pairs))
        reshard(self.model)
        return out

    def batches(self, pairs: Pairs) -> Iterator[list[int]]:
        """Rows by forward, under the limit of tokens; longest first, so that memory peaks at the start. Where prompts
        are shared, rows of one teacher prompt stay together and it counts once; elsewhere padding counts."""
        pairs = pairs.trimmed()
        lengths, prompts = pairs.lengths.tolist(), [tuple(prompt) for prompt in pairs.teacher_prompts]
        size = [len(prompt) + n for prompt, n in zip(prompts, lengths, strict=True)]
        limit = self.max_tokens or self.max_rows * max(size, default=0)
        order = [row for row, any_token in enumerate(pairs.mask.any(dim=1).tolist()) if any_token]
        order.sort(key=lambda row: -size[row])
        share = self.states.sharing != "off"
        if share:
            rank = {prompt: place for place, prompt in reversed(list(enumerate(prompts[row] for row in order)))}
            order.sort(key=lambda row: rank[prompts[row]])
        batch: list[int] = []
        tokens = 0
        for row in order:
            if not share:
                cost = size[batch[0]] if batch else size[row]
            else:
                cost = lengths[row] if batch and prompts[row] == prompts[batch[-1]] else size[row]
            if batch and tokens + cost > limit:
                yield batch
                batch, tokens, cost = [], 0, size[row]
            batch.append(row)
            tokens += cost
        if batch:
            yield batch

    def _run(self, batch: Pairs, distillation: Distillation | None = None) -> Float[Tensor, "k n"]:
        """`_score` inside the wrapper's forward, but not as its output: FSDP2's mixed precision rounds outputs to
        bf16, and ZeRO-3 looks for tensors in them."""
        scores: list[Tensor] = []
        self.redirect(lambda: scores.append(self._score(batch, distillation)))
        return scores[0]

    def _score(self, batch: Pairs, distillation: Distillation | None) -> Float[Tensor, "k n"]:
        # Without a demonstration and with the policy's weights, the teacher is the student.
        alike = batch.alone and self.teacher_weights is None and self.teacher is None
        with torch.no_grad(), self.autocast():
            own_weights = self.teacher_weights or nullcontext
            student = batch.student_hidden
            if student is None:
                with (
                    own_weights() if batch.contrasted else nullcontext(),
                    self.counted_as("teacher" if batch.contrasted else "student"),
                ):
                    student = self.states(batch.student_prompts, batch.completions, batch.lengths)
            with own_weights(), self.counted_as("teacher"):
                if alike:
                    teacher = student.detach()
                else:
                    states = self.teacher.states if self.teacher else self.states
                    teacher = states(batch.teacher_prompts, batch.completions, batch.lengths)
                # Detached, as the parameter itself has the policy's values again outside.
                apart = self.teacher_weights or self.teacher
                teacher_head = self._head(batch, self.teacher).detached() if apart else None
        kept, tokens = (student[batch.mask], teacher[batch.mask]), batch.completions[batch.mask]
        differentiable = student.requires_grad and torch.is_grad_enabled()
        with gathered_head(self.model):
            own = self._head(batch)
            head, student_head = (own, None) if teacher_head is None else (teacher_head, own)
            student_head = None if batch.contrasted else student_head
            if distillation is not None:
                evidence, loss = distillation(*kept, tokens, head, student_head=student_head)
                return torch.stack([*_fields(evidence), loss])
            evidence = self.divergence(*kept, tokens, head, student_head=student_head, differentiable=differentiable)
        return torch.stack(
            _fields(replace(evidence, token_kl=torch.zeros_like(evidence.token_kl)) if alike else evidence)
        )

    def _head(self, batch: Pairs, other: OtherModel | None = None) -> OutputHead:
        with self.autocast():
            return in_autocast((other or self).head(), batch.completions.device.type)


_FIELDS = tuple(field.name for field in fields(Evidence))


def _fields(evidence: TokenEvidence) -> list[Tensor]:
    return [getattr(evidence, name) for name in _FIELDS]


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
    return replace(
        pairs,
        student_prompts=[[0]],
        teacher_prompts=[[0]],
        completions=token,
        lengths=token[:, 0] + 1,
        mask=token.bool(),
        student_hidden=hidden,
    )
