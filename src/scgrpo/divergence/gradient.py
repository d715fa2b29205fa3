"""The same evidence with gradients in the student: for log-prob losses, additive KL losses and distillation.

The backward pass recomputes the tiles, so memory stays that of the forward pass plus the gradients themselves. With
p = softmax(l) the student's, q the teacher's distribution and H the student's entropy, per token:

    d log p(y) / dl_j = [j = y] - p_j
    dH / dl_j         = -p_j (log p_j + H)
    d KL(q || p) / dl_j = p_j - q_j
    d KL(p || q) / dl_j = p_j (log p_j - log q_j - KL(p || q))

The teacher has no gradient, also where both share a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from scgrpo.divergence.backends import Backend
from scgrpo.divergence.exact import Direction, TokenEvidence, check_shapes, lead_of, token_evidence
from scgrpo.divergence.fold import STUDENT, TEACHER
from scgrpo.divergence.head import OutputHead, full_precision, product
from scgrpo.divergence.tiles import Tiles, tile_shape


def differentiable_evidence(
    student_hidden: Float[Tensor, "n h"],
    teacher_hidden: Float[Tensor, "n g"],
    tokens: Int[Tensor, " n"],
    head: OutputHead,
    *,
    student_head: OutputHead | None = None,
    direction: Direction = "forward",
    constant_kl: bool = False,
    backend: Backend = "auto",
    tokens_per_tile: int | None = None,
    words_per_tile: int | None = None,
) -> TokenEvidence:
    """`token_evidence` whose `student_logps`, `student_entropy` and `token_kl` carry gradients.

    Gradients reach the student's hidden states and the weight and bias of its head; everything about the teacher, and
    both log-sum-exps, are constants. With `constant_kl` so is `token_kl` (a weight, not a loss), and the teacher's
    states are not kept for the backward pass. Other arguments and errors are those of `token_evidence`.
    """
    own = student_head or head
    check_shapes(student_hidden, teacher_hidden, tokens, (own, head))
    call = _Call(own, head, direction, constant_kl, backend, tokens_per_tile, words_per_tile)
    return TokenEvidence(
        *_Evidence.apply(student_hidden, own.weight, own.bias, teacher_hidden.detach(), tokens, call)
    )


@dataclass(frozen=True)
class _Call:
    """What both passes need besides tensors that autograd must see."""

    student_head: OutputHead
    head: OutputHead
    direction: Direction
    constant_kl: bool
    backend: Backend
    tokens_per_tile: int | None
    words_per_tile: int | None


class _Evidence(torch.autograd.Function):
    """Student hidden states, its head's weight and bias, and constants -> the fields of TokenEvidence, in order."""

    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher_hidden: Tensor,
        tokens: Tensor,
        call: _Call,
    ) -> tuple[Tensor, ...]:
        found = token_evidence(
            student_hidden,
            teacher_hidden,
            tokens,
            call.head,
            student_head=call.student_head,
            direction=call.direction,
            backend=call.backend,
            tokens_per_tile=call.tokens_per_tile,
            words_per_tile=call.words_per_tile,
        )
        fields = tuple(vars(found).values())
        kept = None if call.constant_kl else teacher_hidden
        ctx.save_for_backward(student_hidden, weight, bias, kept, tokens, *fields)
        ctx.call = call
        constants = [found.teacher_logps, found.teacher_logsumexp, found.student_logsumexp]
        ctx.mark_non_differentiable(*constants, *([found.token_kl] if call.constant_kl else []))
        ctx.set_materialize_grads(False)
        return fields

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        student_hidden, weight, bias, teacher_hidden, tokens, *fields = ctx.saved_tensors
        evidence = TokenEvidence(*fields)
        wanted = HeadGradients.zeros(
            (student_hidden, weight, bias), ctx.needs_input_grad[:3], evidence.token_kl.dtype
        )
        token_kl, _, logps, entropy, *_ = grads
        upstream = _Upstream(token_kl, logps, entropy)
        with full_precision(student_hidden.device.type):
            _accumulate(wanted, upstream, ctx.call, student_hidden, teacher_hidden, tokens, evidence)
        return (*wanted.like((student_hidden, weight, bias)), None, None, None)


@dataclass(frozen=True)
class _Upstream:
    """Gradients (N,) of the loss with respect to the three outputs; None where the loss does not use one."""

    token_kl: Tensor | None
    logps: Tensor | None
    entropy: Tensor | None

    def to_logits(self, tile: Tensor, rows: slice, evidence: TokenEvidence, lead: int) -> Tensor:
        """(n, w) gradient with respect to the student's logits, the token's own log-prob term left out."""
        log_p = tile[STUDENT] - evidence.student_logsumexp[rows, None]
        if self.logps is not None and self.entropy is None and self.token_kl is None:  # the usual policy loss
            return log_p.exp_().mul_(-self.logps[rows, None])
        p = log_p.exp()
        factor = torch.zeros_like(p)  # of p
        if self.logps is not None:
            factor -= self.logps[rows, None]
        if self.entropy is not None and evidence.student_entropy is not None:
            factor -= self.entropy[rows, None] * (log_p + evidence.student_entropy[rows, None])
        if self.token_kl is None:
            return p.mul_(factor)
        scale = self.token_kl[rows, None]
        log_q = tile[TEACHER] - evidence.teacher_logsumexp[rows, None]
        if lead == STUDENT:
            factor += scale * (log_p - log_q - evidence.token_kl[rows, None])
            return p.mul_(factor)
        factor += scale
        return p.mul_(factor).sub_(log_q.exp_().mul_(scale))


@dataclass(frozen=True)
class HeadGradients:
    """Gradients of student hidden states and of its head's weight and bias, summed over tiles in fp32 or better; None
    where nobody asked."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def zeros(cls, inputs: tuple[Tensor | None, ...], needed: tuple[bool, ...], dtype: torch.dtype) -> HeadGradients:
        return cls(
            *(
                torch.zeros_like(value, dtype=dtype) if value is not None and need else None
                for value, need in zip(inputs, needed, strict=True)
            )
        )

    def add(self, to_products: Tensor, rows: slice, words: slice, states: Tensor, weight: Tensor) -> None:
        """`to_products` (n, w) is the gradient with respect to h W^T + b."""
        if self.hidden is not None:
            self.hidden[rows] += product(to_products.to(weight.dtype), weight, torch.empty_like(self.hidden[rows]))
        if self.weight is not None:
            part = self.weight[words]
            part += product(to_products.T.to(states.dtype), states, torch.empty_like(part))
        if self.bias is not None:
            self.bias[words] += to_products.sum(0)

    def add_chosen(self, logps: Tensor, rows: slice, head: OutputHead, states: Tensor, tokens: Tensor) -> None:
        """The [j = y] term of the log-probability."""
        dtype = logps.dtype
        slope = head.slope(head.chosen(states, tokens)) if head.softcap is not None else head.slope(logps)
        to_chosen = logps * slope
        if self.hidden is not None:
            self.hidden[rows].addcmul_(to_chosen[:, None], head.rounded(head.weight[tokens]).to(dtype))
        if self.weight is not None:
            self.weight.index_add_(0, tokens, to_chosen[:, None] * states.to(dtype))
        if self.bias is not None:
            self.bias.index_add_(0, tokens, to_chosen)

    def like(self, inputs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """In the dtypes of the inputs, as autograd wants them."""
        sums = (self.hidden, self.weight, self.bias)
        return tuple(
            None if total is None or value is None else total.to(value.dtype)
            for total, value in zip(sums, inputs, strict=True)
        )


def _accumulate(
    wanted: HeadGradients,
    upstream: _Upstream,
    call: _Call,
    student_hidden: Tensor,
    teacher_hidden: Tensor | None,
    tokens: Tensor,
    evidence: TokenEvidence,
) -> None:
    """Recompute the tiles and add what each says about hidden states, weight and bias."""
    own, n = call.student_head, len(student_hidden)
    shape = tile_shape(n, len(own), student_hidden.device, call.tokens_per_tile, call.words_per_tile)
    with_teacher = upstream.token_kl is not None and teacher_hidden is not None
    tiles = Tiles((own, call.head) if with_teacher else (own,), shape, student_hidden)
    for rows in tiles.blocks(n):
        states = tiles.factor(own, student_hidden[rows])
        both = (states, teacher_hidden[rows]) if teacher_hidden is not None and with_teacher else (states,)
        for words, tile in tiles.over(*both):
            to_logits = upstream.to_logits(tile, rows, evidence, lead_of(call.direction))
            wanted.add(to_logits.mul_(own.slope(tile[STUDENT])), rows, words, states, tiles.weight(own, words))
        if upstream.logps is not None:
            wanted.add_chosen(upstream.logps[rows], rows, own, states, tokens[rows])
