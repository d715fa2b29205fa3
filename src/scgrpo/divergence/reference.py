"""The definition, with full logits: what the fast paths must equal. For tests and small vocabularies."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from scgrpo.divergence.exact import Direction, TokenEvidence
from scgrpo.divergence.head import OutputHead


def token_evidence_reference(
    student_hidden: Float[Tensor, "n h"],
    teacher_hidden: Float[Tensor, "n g"],
    tokens: Int[Tensor, " n"],
    head: OutputHead,
    *,
    student_head: OutputHead | None = None,
    direction: Direction = "forward",
) -> TokenEvidence:
    """The plain twin of `token_evidence`. Differentiable by autograd, in the teacher too unless it is detached."""
    own = student_head or head
    student_logits, teacher_logits = (
        own.logits(student_hidden, 0, len(own)),
        head.logits(teacher_hidden, 0, len(head)),
    )
    student, teacher = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    lead, other = (teacher, student) if direction == "forward" else (student, teacher)
    return TokenEvidence(
        token_kl=(lead.exp() * (lead - other)).sum(-1),
        teacher_logps=teacher.gather(1, tokens[:, None])[:, 0],
        student_logps=student.gather(1, tokens[:, None])[:, 0],
        student_entropy=-(student.exp() * student).sum(-1),
        teacher_logsumexp=teacher_logits.logsumexp(-1),
        student_logsumexp=student_logits.logsumexp(-1),
    )
