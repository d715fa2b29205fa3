"""Which divergence the evidence carries: the exact one, or an approximation that is named as such.

All of them come with the exact log-probs and entropy, so an approximation saves nothing here: the exact divergence
falls out of the same products. They are for comparing with methods that have nothing better.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from jaxtyping import Float, Int
from torch import Tensor

from scgrpo.divergence.approximate import sampled_token_kl, topk_token_kl
from scgrpo.divergence.exact import Direction, TokenEvidence, lead_of, token_evidence
from scgrpo.divergence.gradient import differentiable_evidence
from scgrpo.divergence.head import OutputHead
from scgrpo.errors import ConfigError

DivergenceKind = Literal["exact", "topk", "k1", "k3"]


@dataclass(frozen=True)
class Divergence:
    """Makes evidence from hidden states.

    Attributes:
        kind: "exact" over the vocabulary; "topk": the student's k likeliest words and one symbol for the rest (a
            lower bound); "k1", "k3": from the sampled token alone, negative values of k1 cut to 0 as a weight needs.
        direction: "forward" KL(teacher || student), the paper's; "reverse" KL(student || teacher).
        k: words of "topk"; with fewer in the vocabulary, all.

    Raises:
        ConfigError: unknown kind or direction, k < 1.
    """

    kind: DivergenceKind = "exact"
    direction: Direction = "forward"
    k: int = 64

    def __post_init__(self) -> None:
        lead_of(self.direction)
        if self.kind not in get_args(DivergenceKind):
            raise ConfigError(f"Unknown divergence {self.kind!r}.", f"Choose {', '.join(get_args(DivergenceKind))}.")
        if self.k < 1:
            raise ConfigError(f"divergence_topk is {self.k}.", "Choose at least 1 word.")

    def __call__(
        self,
        student_hidden: Float[Tensor, "n h"],
        teacher_hidden: Float[Tensor, "n g"],
        tokens: Int[Tensor, " n"],
        head: OutputHead,
        *,
        student_head: OutputHead | None = None,
        differentiable: bool = False,
    ) -> TokenEvidence:
        """Evidence about N tokens (see `token_evidence`); `differentiable`: log-probs and entropy of the student have
        gradients, the divergence never has."""
        states = (student_hidden, teacher_hidden)
        options: dict[str, Any] = {"student_head": student_head, "direction": self.direction}
        if differentiable:
            exact = differentiable_evidence(*states, tokens, head, constant_kl=True, **options)
        else:
            exact = token_evidence(*states, tokens, head, **options)
        if self.kind == "exact":
            return exact
        if self.kind == "topk":
            k = min(self.k, len(head))
            known = exact.teacher_logsumexp
            found = topk_token_kl(*states, head, k, ranked_by="student", teacher_logsumexp=known, **options)
            return replace(exact, token_kl=found.token_kl)
        assert exact.student_logps is not None
        assert exact.teacher_logps is not None
        logps = (exact.student_logps.detach(), exact.teacher_logps)
        estimate = sampled_token_kl(*logps, estimator=self.kind, direction=self.direction)
        return replace(exact, token_kl=estimate.clamp(min=0))
