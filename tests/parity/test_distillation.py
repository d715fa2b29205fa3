"""Distillation losses against TRL's own: GKD's generalized JSD, SDPO's three modes, its tiled kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scgrpo.divergence import Distillation, OutputHead

# Private or experimental in TRL, so they may move; tests/unit/test_distillation_loss.py stands without them.
sdpo = pytest.importorskip("trl.experimental.sdpo.loss_utils", reason="TRL's SDPO is gone")
gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer", reason="TRL's GKD is gone")
chunked = pytest.importorskip("trl.kernels.chunked_divergence", reason="TRL's private divergence kernel is gone")

# By TRL's beta (GKD) or alpha (SDPO).
BY_BETA: dict[float, Distillation] = {
    0.0: Distillation("forward"),
    1.0: Distillation("reverse"),
    0.5: Distillation("jsd"),
    0.2: Distillation("jsd", jsd_beta=0.2),
}


def case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    student = torch.randn(40, 16, generator=rng)
    teacher = student + 0.5 * torch.randn(40, 16, generator=rng)
    return student, teacher, torch.randint(300, (40,), generator=rng), torch.randn(300, 16, generator=rng) / 2


def ours(kind: Distillation, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Loss per token, and the gradient of their sum with respect to the student's states."""
    student, teacher, tokens, weight = case()
    _, loss = kind(student.requires_grad_(), teacher, tokens, OutputHead(weight, temperature=temperature))
    loss.sum().backward()
    assert student.grad is not None
    return loss.detach(), student.grad


def theirs(loss_of_logits: Any, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    student, teacher, tokens, weight = case()
    logits = student.requires_grad_() @ weight.T / temperature
    loss = loss_of_logits(logits, teacher @ weight.T / temperature, tokens)
    loss.sum().backward()
    assert student.grad is not None
    return loss.detach(), student.grad


def assert_same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> None:
    for found, expected in zip(a, b, strict=True):
        assert expected.abs().max() > 1e-3  # there is something to compare
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("alpha", BY_BETA)
def test_equals_sdpos_full_vocabulary_loss(alpha: float) -> None:
    def loss(student: Tensor, teacher: Tensor, _: Tensor) -> Tensor:
        return sdpo.compute_full_logit_self_distillation_loss(student, teacher, distillation_alpha=alpha)

    assert_same(ours(BY_BETA[alpha]), theirs(loss))


@pytest.mark.parametrize("alpha", BY_BETA)
def test_equals_sdpos_top_k_loss_with_all_words_in_it(alpha: float) -> None:
    """Its top K and a tail are an approximation of what is exact here: the same where K is the vocabulary."""

    def loss(student: Tensor, teacher: Tensor, _: Tensor) -> Tensor:
        return sdpo.compute_topk_self_distillation_loss(
            student, teacher, distillation_topk=300, distillation_alpha=alpha, distillation_add_tail=False
        )

    assert_same(ours(BY_BETA[alpha]), theirs(loss))


def test_the_sampled_form_has_the_gradient_of_sdpos() -> None:
    def loss(student: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
        return sdpo.compute_sampled_token_self_distillation_loss(student, teacher, tokens, distillation_alpha=1.0)

    torch.testing.assert_close(ours(Distillation("sampled"))[1], theirs(loss)[1], atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("beta", BY_BETA)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_gkds_generalized_jsd(beta: float, temperature: float) -> None:
    """Its mean over tokens, with the temperature in both models."""
    student, teacher, _, weight = case()
    expected = gkd.GKDTrainer.generalized_jsd_loss(
        (student @ weight.T)[None],
        (teacher @ weight.T)[None],
        labels=torch.zeros(1, 40, dtype=torch.long),
        beta=beta,
        temperature=temperature,
    )
    found = ours(BY_BETA[beta], temperature)[0].mean()
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("beta", BY_BETA)
def test_equals_trls_tiled_kernel(beta: float) -> None:
    student, teacher, _, weight = case()
    divergence, _ = chunked.ChunkedDivergenceFunction.apply(
        student.requires_grad_(), weight, None, teacher, weight, None, beta
    )
    divergence.sum().backward()
    assert student.grad is not None
    assert_same(ours(BY_BETA[beta]), (divergence.detach(), student.grad))
