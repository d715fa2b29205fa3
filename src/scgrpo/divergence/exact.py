"""How far the model's prediction moves: exact full-vocabulary evidence from hidden states, tile by tile.

Logits are never formed for all tokens and the whole vocabulary at once, and never rounded below fp32: bf16 logits
would move f by up to 0.14. Student and teacher share every weight tile, one product on stacked rows.

    token_evidence = evidence of (vocabulary_sums over the tiles)          one process has the whole head
    token_evidence = evidence of merge_vocab_shards(vocabulary_sums)       each process has some of its words

`token_evidence_reference` (scgrpo.divergence.reference) is the plain twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scgrpo.divergence.backends import Backend, choose_fold
from scgrpo.divergence.fold import STUDENT, TEACHER, combine
from scgrpo.divergence.head import OutputHead, full_precision
from scgrpo.divergence.tiles import Tiles, tile_shape
from scgrpo.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Direction = Literal["forward", "reverse"]


@dataclass(frozen=True)
class TokenEvidence:
    """Evidence about N tokens, each (N,) in nats, fp32 or better (see `scgrpo.credit.methods.Evidence`).

    Attributes:
        token_kl: KL(teacher || student), or KL(student || teacher) with `direction="reverse"`; >= 0.
        teacher_logps, student_logps: log-probability of the token; None if no tokens were given.
        student_entropy: None if it was not asked for.
        teacher_logsumexp, student_logsumexp: of the logits; a log-probability is a logit minus it.
    """

    token_kl: Float[Tensor, " n"]
    teacher_logps: Float[Tensor, " n"] | None
    student_logps: Float[Tensor, " n"] | None
    student_entropy: Float[Tensor, " n"] | None
    teacher_logsumexp: Float[Tensor, " n"]
    student_logsumexp: Float[Tensor, " n"]


@dataclass(frozen=True)
class VocabularySums:
    """What some words of the vocabulary say about N tokens; the words of other shards can still be merged in.

    Attributes:
        statistics: (3 or 4, N), see `scgrpo.divergence.fold`.
        chosen: (2, N) the token's logit for student and teacher, 0 where another shard has it; None without tokens.
        lead: whose expectation the divergence is.
    """

    statistics: Float[Tensor, "k n"]
    chosen: Float[Tensor, "2 n"] | None
    lead: int

    def evidence(self) -> TokenEvidence:
        """Evidence, if these sums cover the whole vocabulary."""
        logsumexp, gap, mean = self.statistics[:2], self.statistics[2], self.statistics[3:]
        logps = None if self.chosen is None else self.chosen - logsumexp
        return TokenEvidence(
            # Exact arithmetic has no negative values; rounding has.
            token_kl=(gap - (logsumexp[self.lead] - logsumexp[1 - self.lead])).clamp(min=0),
            teacher_logps=None if logps is None else logps[TEACHER],
            student_logps=None if logps is None else logps[STUDENT],
            student_entropy=logsumexp[STUDENT] - mean[0] if len(mean) else None,
            teacher_logsumexp=logsumexp[TEACHER],
            student_logsumexp=logsumexp[STUDENT],
        )


def token_evidence(
    student_hidden: Float[Tensor, "n h"],
    teacher_hidden: Float[Tensor, "n g"],
    tokens: Int[Tensor, " n"] | None,
    head: OutputHead,
    *,
    student_head: OutputHead | None = None,
    entropy: bool = True,
    direction: Direction = "forward",
    backend: Backend = "auto",
    tokens_per_tile: int | None = None,
    words_per_tile: int | None = None,
) -> TokenEvidence:
    """Exact evidence over the whole vocabulary, without ever holding (tokens x vocabulary) logits. No gradient.

    With l the logits, Z = logsumexp(l), q the teacher's and p the student's distribution:

        forward  token_kl = KL(q || p) = E_q[l_q - l_p] - (Z_q - Z_p)          >= 0 (clamped against rounding)
        reverse  token_kl = KL(p || q) = E_p[l_p - l_q] - (Z_p - Z_q)
        student_entropy                = Z_p - E_p[l_p]

    Extra memory: two fp32 tiles (16 MiB on a CPU, <= 512 MiB on a GPU) and about 40 bytes per token.

    Args:
        student_hidden, teacher_hidden: (N, H) last hidden states that predict each token.
        tokens: (N,) the sampled tokens, whose log-probabilities are wanted; None if they are not.
        head: the output head of both; the teacher's alone where `student_head` is given.
        student_head: the student's head, if it is another; its hidden size may differ, its words must not.
        entropy: whether the student's entropy is wanted.
        direction: whose expectation token_kl is: the teacher's (forward, the paper's D) or the student's (reverse).
        backend: see `scgrpo.divergence.backends.choose_fold`.
        tokens_per_tile, words_per_tile: tile shape; the result depends on it only by rounding.

    Returns:
        TokenEvidence. Non-finite logits give non-finite evidence; the caller names the row.

    Raises:
        ShapeError: hidden states, tokens or head do not fit each other.
        ConfigError: unknown direction or backend, or an empty tile.

    Source: arXiv 2606.18810, equation for D; temperature as in sampling.
    """
    return vocabulary_sums(
        student_hidden,
        teacher_hidden,
        tokens,
        head,
        student_head=student_head,
        entropy=entropy,
        direction=direction,
        backend=backend,
        tokens_per_tile=tokens_per_tile,
        words_per_tile=words_per_tile,
    ).evidence()


@torch.no_grad()
def vocabulary_sums(
    student_hidden: Float[Tensor, "n h"],
    teacher_hidden: Float[Tensor, "n g"],
    tokens: Int[Tensor, " n"] | None,
    head: OutputHead,
    *,
    student_head: OutputHead | None = None,
    entropy: bool = True,
    direction: Direction = "forward",
    backend: Backend = "auto",
    tokens_per_tile: int | None = None,
    words_per_tile: int | None = None,
    first_word: int = 0,
) -> VocabularySums:
    """The sums behind `token_evidence`, over the words the given head has: `first_word`, `first_word + 1`, ..."""
    heads = (student_head or head, head)
    check_shapes(student_hidden, teacher_hidden, tokens, heads)
    device, n = student_hidden.device, len(student_hidden)
    lead = lead_of(direction)
    with full_precision(device.type):
        tiles = Tiles(heads, tile_shape(n, len(head), device, tokens_per_tile, words_per_tile), student_hidden)
        fold = choose_fold(backend, device, n * len(head), tiles.dtype)
        statistics = student_hidden.new_empty(4 if entropy else 3, n, dtype=tiles.dtype)
        chosen = None if tokens is None else student_hidden.new_empty(2, n, dtype=tiles.dtype)
        for rows in tiles.blocks(n):
            student, teacher = student_hidden[rows], teacher_hidden[rows]
            parts = [fold(tile, lead, entropy) for _, tile in tiles.over(student, teacher)]
            statistics[:, rows] = combine(torch.stack(parts), lead)
            if chosen is not None and tokens is not None:
                for side, states in enumerate((student, teacher)):
                    chosen[side, rows] = _chosen(heads[side], states, tokens[rows] - first_word)
    return VocabularySums(statistics, chosen, lead)


def merge_vocab_shards(sums: VocabularySums, group: ProcessGroup | None = None) -> VocabularySums:
    """The sums over the whole vocabulary, in every process, from those of each process's words.

    For a vocabulary-parallel output head. One all-gather of at most 24 bytes per token and process (fp32).

    Args:
        sums: this process's, about the same tokens as everyone's.
        group: the processes that share the vocabulary; None: all.
    """
    from torch import distributed

    def gathered(values: Tensor) -> Tensor:
        shards = [torch.empty_like(values) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(shards, values.contiguous(), group=group)
        return torch.stack(shards)

    chosen = None if sums.chosen is None else gathered(sums.chosen).sum(0)
    return VocabularySums(combine(gathered(sums.statistics), sums.lead), chosen, sums.lead)


def token_kl(
    student_hidden: Float[Tensor, "n h"],
    teacher_hidden: Float[Tensor, "n g"],
    head: OutputHead,
    *,
    student_head: OutputHead | None = None,
    direction: Direction = "forward",
    backend: Backend = "auto",
) -> Float[Tensor, " n"]:
    """(N,) `D = KL(teacher || student)` in nats, exact over the vocabulary; see `token_evidence`."""
    return token_evidence(
        student_hidden,
        teacher_hidden,
        None,
        head,
        student_head=student_head,
        entropy=False,
        direction=direction,
        backend=backend,
    ).token_kl


def lead_of(direction: str) -> int:
    """The side whose expectation the divergence is."""
    if direction not in ("forward", "reverse"):
        raise ConfigError(f"Unknown direction {direction!r}.", "Choose forward (KL(teacher || student)) or reverse.")
    return TEACHER if direction == "forward" else STUDENT


def check_shapes(
    student_hidden: Tensor, teacher_hidden: Tensor, tokens: Tensor | None, heads: tuple[OutputHead, OutputHead]
) -> None:
    """Raise ShapeError unless hidden states, tokens and heads (student's, teacher's) fit each other."""
    n = len(student_hidden) if tokens is None else len(tokens)
    widths = [head.weight.shape[1] for head in heads]
    if student_hidden.shape != (n, widths[STUDENT]) or teacher_hidden.shape != (n, widths[TEACHER]):
        raise ShapeError(
            f"Student hidden states {tuple(student_hidden.shape)}, teacher {tuple(teacher_hidden.shape)}, "
            f"{n} tokens and a head of {tuple(heads[TEACHER].weight.shape)} do not fit.",
            "Score the same completion tokens in both contexts.",
        )
    if len(heads[STUDENT]) != len(heads[TEACHER]):
        raise ShapeError(
            f"The student's head has {len(heads[STUDENT])} words, the teacher's {len(heads[TEACHER])}.",
            "A divergence needs one vocabulary: use a teacher with the student's tokenizer.",
        )


def _chosen(head: OutputHead, states: Tensor, words: Tensor) -> Tensor:
    """(N,) logits of the given words, 0 where the head does not have them."""
    inside = (words >= 0) & (words < len(head))
    return head.chosen(states, words.clamp(0, len(head) - 1)).where(inside, 0.0)
