"""token_kl against TRL's own divergence kernel: two implementations that share no line."""

from __future__ import annotations

import pytest
import torch

from scgrpo.divergence import OutputHead, token_evidence

# Private to TRL, so it may move; the closed forms of tests/unit/test_divergence.py stand without it.
chunked = pytest.importorskip("trl.kernels.chunked_divergence", reason="TRL's private divergence kernel is gone")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("temperature", "scale", "softcap"), [(1.0, 1.0, None), (0.7, 1.0, None), (1.0, 0.25, None), (1.2, 2.0, 5.0)]
)
def test_token_kl_equals_trls_kernel(bias: bool, temperature: float, scale: float, softcap: float | None) -> None:
    rng = torch.Generator().manual_seed(0)
    student = torch.randn(300, 32, generator=rng)
    teacher = student + 0.4 * torch.randn(300, 32, generator=rng)
    weight = torch.randn(5000, 32, generator=rng) / 3
    offset = torch.randn(5000, generator=rng) if bias else None
    with torch.no_grad():
        divergence, entropy = chunked.ChunkedDivergenceFunction.apply(
            student, weight, offset, teacher, weight, offset, 0.0, temperature, scale, softcap, scale, softcap
        )
    head = OutputHead(weight, offset, scale=scale, softcap=softcap, temperature=temperature)
    found = token_evidence(student, teacher, torch.zeros(300, dtype=torch.long), head)
    assert found.token_kl.mean() > 0.01  # there is something to compare
    torch.testing.assert_close(found.token_kl, divergence.clamp(min=0), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found.student_entropy, entropy, atol=2e-5, rtol=1e-5)
