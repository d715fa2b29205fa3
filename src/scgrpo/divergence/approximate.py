"""Divergences that are not exact, named as such. `token_kl` costs one product with the head more at most.

`topk_token_kl`: the likeliest words, and all others as one. `sampled_token_kl`: from the sampled token alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from scgrpo.divergence.exact import Direction, check_shapes, lead_of
from scgrpo.divergence.fold import STUDENT, TEACHER
from scgrpo.divergence.head import OutputHead, full_precision
from scgrpo.divergence.tiles import Tiles, tile_shape
from scgrpo.errors import ConfigError

# Tokens whose k rows of the head are gathered at once.
GATHERED = 64


@dataclass(frozen=True)
class TopkTokenKL:
    """(N,) each.

    Attributes:
        token_kl: nats, a lower bound of the exact divergence.
        teacher_tail, student_tail: probability of the words that were lumped together.
    """

    token_kl: Float[Tensor, " n"]
    teacher_tail: Float[Tensor, " n"]
    student_tail: Float[Tensor, " n"]


@torch.no_grad()
def topk_token_kl(
    student_hidden: Float[Tensor, "n h"],
    teacher_hidden: Float[Tensor, "n g"],
    head: OutputHead,
    k: int = 64,
    *,
    student_head: OutputHead | None = None,
    ranked_by: Literal["teacher", "student"] = "teacher",
    direction: Direction = "forward",
    student_logsumexp: Float[Tensor, " n"] | None = None,
    teacher_logsumexp: Float[Tensor, " n"] | None = None,
    tokens_per_tile: int | None = None,
    words_per_tile: int | None = None,
) -> TopkTokenKL:
    """KL over the k likeliest words and one symbol for the rest.

    A lower bound. By the chain rule it misses exactly the divergence inside the rest T, times the rest's probability:

        D - token_kl = q(T) KL(q(.|T) || p(.|T))     >= 0, 0 for k = V   (forward; reverse: p and q exchanged)

    so where no word of T has its odds changed by more than a factor e^r, at most q(T) * 2r.

    Args:
        ranked_by: whose likeliest words.
        student_logsumexp, teacher_logsumexp: from an earlier pass. Given for the side that does not rank, they save
            its product with the head: that is all this approximation can save.

    Raises:
        ShapeError, ConfigError: as `token_evidence`; k < 1.
    """
    heads = (student_head or head, head)
    check_shapes(student_hidden, teacher_hidden, None, heads)
    lead = lead_of(direction)
    if not 1 <= k <= len(head):
        raise ConfigError(f"k is {k} with {len(head)} words.", "Choose k between 1 and the size of the vocabulary.")
    hidden, known = (student_hidden, teacher_hidden), (student_logsumexp, teacher_logsumexp)
    n, device = len(student_hidden), student_hidden.device
    shape = tile_shape(n, len(head), device, tokens_per_tile, words_per_tile)
    first = TEACHER if ranked_by == "teacher" else STUDENT
    with full_precision(device.type):
        logits, words, total = _likeliest(
            hidden[first], heads[first], k, Tiles((heads[first],), shape, hidden[first])
        )
        second = 1 - first
        rest = known[second]
        if rest is None:
            rest = _likeliest(hidden[second], heads[second], 1, Tiles((heads[second],), shape, hidden[second]))[2]
        gathered = [
            heads[second].chosen(states, ids)
            for states, ids in zip(hidden[second].split(GATHERED), words.split(GATHERED), strict=True)
        ]
    logps = {first: logits - total[:, None], second: torch.cat(gathered) - rest[:, None]}
    tails = {side: -torch.expm1(values.logsumexp(-1)) for side, values in logps.items()}
    tails = {side: tail.clamp(min=0) if k < len(head) else tail.zero_() for side, tail in tails.items()}
    other = 1 - lead
    inside = (logps[lead].exp() * (logps[lead] - logps[other])).sum(-1)
    outside = torch.xlogy(tails[lead], tails[lead] / tails[other].clamp(min=torch.finfo(inside.dtype).eps))
    return TopkTokenKL((inside + outside).clamp(min=0), tails[TEACHER], tails[STUDENT])


def _likeliest(hidden: Tensor, head: OutputHead, k: int, tiles: Tiles) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, k) and ids of the likeliest words, and the logsumexp (N,) of all."""
    found = []
    for rows in tiles.blocks(len(hidden)):
        n = rows.stop - rows.start
        best = hidden.new_empty(n, 0, dtype=tiles.dtype)
        ids = torch.empty(n, 0, dtype=torch.long, device=hidden.device)
        total = best.new_full((n,), -torch.inf)
        for words, (logits,) in tiles.over(hidden[rows]):
            total = torch.logaddexp(total, logits.logsumexp(-1))
            values, places = logits.topk(min(k, logits.shape[1]), dim=-1)
            best, ids = torch.cat([best, values], 1), torch.cat([ids, places + words.start], 1)
            best, kept = best.topk(min(k, best.shape[1]), dim=-1)
            ids = ids.gather(1, kept)
        found.append((best, ids, total))
    if not found:
        empty = hidden.new_empty(0, k, dtype=tiles.dtype)
        return empty, empty.long(), empty[:, 0]
    best, ids, total = (torch.cat(column) for column in zip(*found, strict=True))
    return best, ids, total


def sampled_token_kl(
    student_logps: Float[Tensor, "*shape"],
    teacher_logps: Float[Tensor, "*shape"],
    *,
    estimator: Literal["k1", "k3"] = "k3",
    direction: Direction = "forward",
) -> Float[Tensor, "*shape"]:
    """Estimates of the divergence from one token that the *student* sampled, nats. Unbiased, and noisy per token.

    With r = q(y) / p(y) of teacher and student:

        forward KL(q || p): k1 = r log r       k3 = r log r - (r - 1)
        reverse KL(p || q): k1 = -log r        k3 = -log r + (r - 1)

    k3 is never negative and varies less. Neither can stand in for D in credit weights: the rank correlation of k1
    with D over tokens was about -0.2 to -0.1, that of k3 0.8 to 0.9, on synthetic states.

    Source: J. Schulman, "Approximating KL divergence" (2020); k1 and k3 as named there.
    """
    log_ratio = teacher_logps - student_logps
    ratio = log_ratio.exp()
    forward = lead_of(direction) == TEACHER
    first = ratio * log_ratio if forward else -log_ratio
    if estimator == "k1":
        return first
    if estimator != "k3":
        raise ConfigError(f"Unknown estimator {estimator!r}.", "Choose k1 or k3.")
    control = torch.expm1(log_ratio)
    return (first - control if forward else first + control).clamp(min=0)
