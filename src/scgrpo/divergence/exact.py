"""How far the model's prediction moves: exact full-vocabulary evidence from hidden states, tile by tile.

Logits are never formed for all tokens and the whole vocabulary at once, and never rounded below fp32: bf16 logits
would move f by up to 0.14. Student and teacher share every weight tile, one product on stacked rows. The running
sums are those of an online log-sum-exp. `token_evidence_reference` is the plain twin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scgrpo.divergence.head import OutputHead, full_precision
from scgrpo.errors import ShapeError

# Both fp32 logit tiles (student, teacher) of this many tokens and words stay in a last-level cache: 16 MiB.
TOKENS_PER_TILE = 512
WORDS_PER_TILE = 4096


@dataclass(frozen=True)
class TokenEvidence:
    """Evidence about N tokens, each (N,) in nats, fp32 or better (see `scgrpo.credit.methods.Evidence`)."""

    token_kl: Float[Tensor, " n"]
    teacher_logps: Float[Tensor, " n"]
    student_logps: Float[Tensor, " n"]
    student_entropy: Float[Tensor, " n"]


@torch.no_grad()
def token_evidence(
    student_hidden: Float[Tensor, "n h"],
    teacher_hidden: Float[Tensor, "n h"],
    tokens: Int[Tensor, " n"],
    head: OutputHead,
    *,
    tokens_per_tile: int = TOKENS_PER_TILE,
    words_per_tile: int = WORDS_PER_TILE,
) -> TokenEvidence:
    """Exact evidence over the whole vocabulary, without ever holding (tokens x vocabulary) logits.

    With l the logits, Z = logsumexp(l), q the teacher's and p the student's distribution:

        token_kl = KL(q || p) = E_q[l_q - l_p] - (Z_q - Z_p)          >= 0 (clamped against rounding)
        student_entropy       = Z_p - E_p[l_p]

    Args:
        student_hidden, teacher_hidden: (N, H) last hidden states that predict each token.
        tokens: (N,) the sampled tokens, whose log-probabilities are wanted.
        tokens_per_tile, words_per_tile: tile shape; the result depends on it only by rounding.

    Returns:
        TokenEvidence. Non-finite logits give non-finite evidence; the caller names the row.

    Raises:
        ShapeError: hidden states, tokens or head do not fit each other.

    Source: arXiv 2606.18810, equation for D; temperature as in sampling.
    """
    if not student_hidden.shape == teacher_hidden.shape == (len(tokens), head.weight.shape[1]):
        raise ShapeError(
            f"Student hidden states {tuple(student_hidden.shape)}, teacher {tuple(teacher_hidden.shape)}, "
            f"{len(tokens)} tokens and a head of {tuple(head.weight.shape)} do not fit.",
            "Score the same completion tokens in both contexts.",
        )
    with full_precision(student_hidden.device.type):
        parts = [
            _tile_evidence(*rows, head, words_per_tile)
            for rows in zip(
                student_hidden.split(tokens_per_tile),
                teacher_hidden.split(tokens_per_tile),
                tokens.split(tokens_per_tile),
                strict=True,
            )
        ]
    return TokenEvidence(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _tile_evidence(
    student: Tensor, teacher: Tensor, tokens: Tensor, head: OutputHead, words_per_tile: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fold the vocabulary tiles of one block of tokens; rows 0..n-1 are the student's, n..2n-1 the teacher's."""
    n, stacked = len(tokens), torch.cat([student, teacher])
    dtype = torch.promote_types(stacked.dtype, torch.float32)
    top = torch.full((2 * n,), -torch.inf, dtype=dtype, device=stacked.device)  # running maximum
    total, chosen = torch.zeros_like(top), torch.zeros_like(top)  # sum e^(l - top); logit of the token
    gap, mean = torch.zeros_like(top[:n]), torch.zeros_like(top[:n])  # E_q[l_q - l_p], E_p[l_p], unnormalised
    both = tokens.repeat(2)
    for start in range(0, len(head.weight), words_per_tile):
        logits = head.logits(stacked, start, start + words_per_tile)
        new_top = torch.maximum(top, logits.amax(1))
        shrink = torch.exp(top - new_top)
        mass = torch.exp(logits - new_top[:, None])
        total = total * shrink + mass.sum(1)
        gap = gap * shrink[n:] + (mass[n:] * (logits[n:] - logits[:n])).sum(1)
        mean = mean * shrink[:n] + (mass[:n] * logits[:n]).sum(1)
        inside = (both >= start) & (both < start + logits.shape[1])
        picked = logits.gather(1, (both - start).clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        chosen = torch.where(inside, picked, chosen)
        top = new_top
    logsumexp = top + total.log()
    token_kl = gap / total[n:] - (logsumexp[n:] - logsumexp[:n])
    logps = chosen - logsumexp
    return token_kl.clamp(min=0), logps[n:], logps[:n], logsumexp[:n] - mean / total[:n]


def token_evidence_reference(
    student_hidden: Float[Tensor, "n h"],
    teacher_hidden: Float[Tensor, "n h"],
    tokens: Int[Tensor, " n"],
    head: OutputHead,
) -> TokenEvidence:
    """The definition, with full logits: what `token_evidence` must equal. For tests and small vocabularies."""
    student = head.logits(student_hidden, 0, len(head.weight)).log_softmax(-1)
    teacher = head.logits(teacher_hidden, 0, len(head.weight)).log_softmax(-1)
    return TokenEvidence(
        token_kl=(teacher.exp() * (teacher - student)).sum(-1),
        teacher_logps=teacher.gather(1, tokens[:, None])[:, 0],
        student_logps=student.gather(1, tokens[:, None])[:, 0],
        student_entropy=-(student.exp() * student).sum(-1),
    )


def token_kl(
    student_hidden: Float[Tensor, "n h"], teacher_hidden: Float[Tensor, "n h"], head: OutputHead
) -> Float[Tensor, " n"]:
    """(N,) `D = KL(teacher || student)` in nats, exact over the vocabulary; see `token_evidence`."""
    tokens = torch.zeros(len(student_hidden), dtype=torch.long, device=student_hidden.device)
    return token_evidence(student_hidden, teacher_hidden, tokens, head).token_kl
