"""Distillation losses per token, exact over the vocabulary, with gradients in the student.

With p the student's distribution, q the teacher's (a constant) and m = (1 - b) p + b q, per token:

    forward  sum_v q log(q / p)
    reverse  sum_v p log(p / q)
    both     half the sum of the two
    jsd      sum_v b q log(q / m) + (1 - b) p log(p / m)
    sampled  -log(q(y) / p(y)), y the sampled token; its gradient is that of -sg[log(q(y) / p(y))] log p(y): unbiased
             for the reverse divergence where the student sampled y, the policy gradient with A_t = Delta_t

and with a clip each term l_v of a sum counts as min(l_v, clip) (OPSD, arXiv 2601.18734): a single word cannot make a
loss larger than that, and one that is clipped has no gradient.

Forward and reverse without a clip come out of the tiles that give log-probs and entropy. The others go over the tiles
once more, with both normalisers known. For l_v = g(p_v, q_v) and a_v = p_v dg/dp_v:

    d loss / d logit_j = a_j - p_j sum_v a_v

so two numbers per token are kept from the forward pass, and the backward pass recomputes the tiles: memory is bounded
by a few tiles, whatever the number of tokens and words. The teacher has no gradient, also where both share a head.

Departure from TRL's losses of the same names (GKD, SDPO): over all words instead of the student's top K and a tail.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from scgrpo.divergence.exact import Direction, TokenEvidence
from scgrpo.divergence.fold import STUDENT, TEACHER
from scgrpo.divergence.gradient import HeadGradients, differentiable_evidence
from scgrpo.divergence.head import OutputHead, full_precision
from scgrpo.divergence.tiles import Tiles, tile_shape
from scgrpo.errors import ConfigError

DistillationKind = Literal["forward", "reverse", "both", "jsd", "sampled"]


@dataclass(frozen=True)
class Distillation:
    """Makes a loss per token from hidden states; see the module for the formulas.

    Attributes:
        kind: which one.
        jsd_beta: b, the teacher's share of the mixture, in (0, 1): TRL's `beta` of GKD, `distillation_alpha` of SDPO.
        clip: nats, the most a single word adds; None: no limit.

    Raises:
        ConfigError: unknown kind, or a value out of range.
    """

    kind: DistillationKind = "forward"
    jsd_beta: float = 0.5
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(DistillationKind):
            names = ", ".join(get_args(DistillationKind))
            raise ConfigError(f"Unknown distill_divergence {self.kind!r}.", f"Choose one of {names}.")
        if not 0 < self.jsd_beta < 1:
            raise ConfigError(
                f"distill_jsd_beta is {self.jsd_beta}.", "Choose one in (0, 1); its ends are forward and reverse."
            )
        if self.clip is not None and self.clip <= 0:
            raise ConfigError(f"distill_clip is {self.clip}.", "Choose a number of nats above 0, or 0 for no limit.")
        if self.clip is not None and self.kind == "sampled":
            raise ConfigError(
                "distill_clip with distill_divergence='sampled': it limits the words of a sum, and there is none.",
                "Set distill_clip=0, or choose another divergence.",
            )

    def __call__(
        self,
        student_hidden: Float[Tensor, "n h"],
        teacher_hidden: Float[Tensor, "n g"],
        tokens: Int[Tensor, " n"],
        head: OutputHead,
        *,
        student_head: OutputHead | None = None,
        tokens_per_tile: int | None = None,
        words_per_tile: int | None = None,
    ) -> tuple[TokenEvidence, Float[Tensor, " n"]]:
        """Evidence about N tokens, and the loss of each (nats), both with gradients in the student.

        Arguments and errors are those of `differentiable_evidence`.
        """
        direction: Direction = "reverse" if self.kind == "reverse" else "forward"
        from_evidence = self.kind in ("forward", "reverse") and self.clip is None
        evidence = differentiable_evidence(
            student_hidden,
            teacher_hidden,
            tokens,
            head,
            student_head=student_head,
            direction=direction,
            constant_kl=not from_evidence,
            tokens_per_tile=tokens_per_tile,
            words_per_tile=words_per_tile,
        )
        if from_evidence:
            return evidence, evidence.token_kl
        if self.kind == "sampled":
            assert evidence.student_logps is not None
            assert evidence.teacher_logps is not None
            return evidence, sampled_loss(evidence.student_logps, evidence.teacher_logps)
        own = student_head or head
        totals = (evidence.student_logsumexp, evidence.teacher_logsumexp)
        call = _Call(self, own, head, tokens_per_tile, words_per_tile)
        loss = _OverWords.apply(student_hidden, own.weight, own.bias, teacher_hidden.detach(), *totals, call)
        return evidence, loss

    def terms(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """l_v and a_v of every entry, clipped; not for "sampled"."""
        p, q = log_p.exp(), log_q.exp()
        if self.kind == "jsd":
            b = self.jsd_beta
            log_m = torch.logaddexp(log_p + math.log1p(-b), log_q + math.log(b))
            slopes = (1 - b) * p * (log_p - log_m)
            values = slopes + b * q * (log_q - log_m)
        else:
            gap = log_p - log_q
            forward, reverse = (-q * gap, -q), (p * gap, p * (gap + 1))
            if self.kind == "both":
                values, slopes = ((x + y) / 2 for x, y in zip(forward, reverse, strict=True))
            else:
                values, slopes = forward if self.kind == "forward" else reverse
        if self.clip is None:
            return values, slopes
        return values.clamp(max=self.clip), slopes.masked_fill(values >= self.clip, 0)


def sampled_loss(
    student_logps: Float[Tensor, "*shape"], teacher_logps: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """`-Delta`, whose gradient is that of `-sg[Delta] log p(y)` with Delta = log q(y) - log p(y)."""
    shift = (student_logps - teacher_logps).detach()
    return shift + shift * (student_logps - student_logps.detach())


def distillation_reference(
    distillation: Distillation,
    student_hidden: Float[Tensor, "n h"],
    teacher_hidden: Float[Tensor, "n g"],
    tokens: Int[Tensor, " n"],
    head: OutputHead,
    *,
    student_head: OutputHead | None = None,
) -> Float[Tensor, " n"]:
    """The plain twin, with full logits: for tests and small vocabularies. Differentiable by autograd."""
    own = student_head or head
    log_p = own.logits(student_hidden, 0, len(own)).log_softmax(-1)
    log_q = head.logits(teacher_hidden, 0, len(head)).log_softmax(-1).detach()
    if distillation.kind == "sampled":
        chosen = (x.gather(1, tokens[:, None])[:, 0] for x in (log_p, log_q))
        return sampled_loss(*chosen)
    return distillation.terms(log_p, log_q)[0].sum(-1)


@dataclass(frozen=True)
class _Call:
    """What both passes need besides tensors that autograd must see."""

    distillation: Distillation
    student_head: OutputHead
    head: OutputHead
    tokens_per_tile: int | None
    words_per_tile: int | None

    def tiles(self, like: Tensor) -> Tiles:
        shape = tile_shape(len(like), len(self.head), like.device, self.tokens_per_tile, self.words_per_tile)
        return Tiles((self.student_head, self.head), shape, like)


def _log_probs(tile: Tensor, rows: slice, student_total: Tensor, teacher_total: Tensor) -> tuple[Tensor, Tensor]:
    return tile[STUDENT] - student_total[rows, None], tile[TEACHER] - teacher_total[rows, None]


class _OverWords(torch.autograd.Function):
    """Student hidden states, its head's weight and bias, and constants -> (N,) sums of l_v over all words."""

    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher_hidden: Tensor,
        student_total: Tensor,
        teacher_total: Tensor,
        call: _Call,
    ) -> Tensor:
        sums = torch.zeros(2, len(student_hidden), dtype=student_total.dtype, device=student_hidden.device)
        with full_precision(student_hidden.device.type):
            tiles = call.tiles(student_hidden)
            for rows in tiles.blocks(len(student_hidden)):
                for _, tile in tiles.over(student_hidden[rows], teacher_hidden[rows]):
                    terms = call.distillation.terms(*_log_probs(tile, rows, student_total, teacher_total))
                    sums[:, rows] += torch.stack([term.sum(-1) for term in terms])
        ctx.save_for_backward(
            student_hidden, weight, bias, teacher_hidden, student_total, teacher_total, sums[1].clone()
        )
        ctx.call = call
        ctx.set_materialize_grads(False)
        return sums[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        student_hidden, weight, bias, teacher_hidden, student_total, teacher_total, total_slope = ctx.saved_tensors
        if grad is None:
            return (None,) * 7
        inputs = (student_hidden, weight, bias)
        wanted = HeadGradients.zeros(inputs, ctx.needs_input_grad[:3], student_total.dtype)
        own = call.student_head
        with full_precision(student_hidden.device.type):
            tiles = call.tiles(student_hidden)
            for rows in tiles.blocks(len(student_hidden)):
                states = tiles.factor(own, student_hidden[rows])
                for words, tile in tiles.over(states, teacher_hidden[rows]):
                    log_p, log_q = _log_probs(tile, rows, student_total, teacher_total)
                    slopes = call.distillation.terms(log_p, log_q)[1]
                    to_logits = (slopes - log_p.exp() * total_slope[rows, None]) * grad[rows, None]
                    to_products = to_logits * own.slope(tile[STUDENT])
                    wanted.add(to_products, rows, words, states, tiles.weight(own, words))
        return (*wanted.like(inputs), None, None, None, None)
