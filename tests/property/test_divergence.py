"""What holds for every pair of distributions."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scgrpo.divergence import OutputHead, token_evidence, token_evidence_reference

few = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, OutputHead]:
    n, h, v = draw(st.integers(0, 6)), draw(st.integers(1, 5)), draw(st.integers(1, 40))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sharp = draw(st.sampled_from([0.01, 1.0, 10.0]))
    student = sharp * torch.randn(n, h, generator=rng, dtype=torch.float64)
    teacher = student + draw(st.sampled_from([0.0, 1e-6, 0.1, 10.0])) * torch.randn(n, h, generator=rng).double()
    head = OutputHead(
        torch.randn(v, h, generator=rng, dtype=torch.float64),
        torch.randn(v, generator=rng, dtype=torch.float64) if draw(st.booleans()) else None,
        scale=draw(st.sampled_from([1.0, 0.1, 3.0])),
        softcap=draw(st.sampled_from([None, 1.0, 30.0])),
        temperature=draw(st.sampled_from([1.0, 0.3, 2.0])),
    )
    return student, teacher, torch.randint(v, (n,), generator=rng), head


@few
@given(cases(), st.integers(1, 7), st.integers(1, 50))
def test_tiles_give_the_plain_twins_numbers(
    case: tuple[Tensor, Tensor, Tensor, OutputHead], rows: int, words: int
) -> None:
    student, teacher, tokens, head = case
    found = token_evidence(student, teacher, tokens, head, tokens_per_tile=rows, words_per_tile=words)
    plain = token_evidence_reference(student, teacher, tokens, head)
    size = (
        1 + head.logits(torch.cat([student, teacher]), 0, len(head.weight)).abs().amax().item() if len(tokens) else 1
    )
    for name in ("token_kl", "teacher_logps", "student_logps", "student_entropy"):
        torch.testing.assert_close(
            getattr(found, name),
            getattr(plain, name),
            atol=1e-13 * size,
            rtol=1e-12,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@few
@given(cases())
def test_bounds(case: tuple[Tensor, Tensor, Tensor, OutputHead]) -> None:
    student, teacher, tokens, head = case
    found = token_evidence(student, teacher, tokens, head)
    words = len(head.weight)
    assert bool((found.token_kl >= 0).all())
    assert bool((found.student_logps <= 1e-9).all())
    assert bool((found.teacher_logps <= 1e-9).all())
    assert bool((found.student_entropy >= -1e-9).all())
    assert bool((found.student_entropy <= torch.tensor(float(words)).log() + 1e-6).all())
    if words == 1:
        assert not found.token_kl.any()


@few
@given(cases())
def test_renaming_the_words_changes_nothing(case: tuple[Tensor, Tensor, Tensor, OutputHead]) -> None:
    student, teacher, tokens, head = case
    order = torch.randperm(len(head.weight), generator=torch.Generator().manual_seed(1))
    renamed = OutputHead(
        head.weight[order],
        None if head.bias is None else head.bias[order],
        scale=head.scale,
        softcap=head.softcap,
        temperature=head.temperature,
    )
    before = token_evidence(student, teacher, tokens, head)
    after = token_evidence(student, teacher, torch.argsort(order)[tokens], renamed)
    torch.testing.assert_close(after.token_kl, before.token_kl, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(after.student_logps, before.student_logps, atol=1e-10, rtol=1e-10)
