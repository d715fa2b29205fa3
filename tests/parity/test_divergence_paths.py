"""Every fast path of `scgrpo.divergence` against its plain twin."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from scgrpo.divergence import (
    Divergence,
    OutputHead,
    differentiable_evidence,
    merge_vocab_shards,
    sampled_token_kl,
    token_evidence,
    token_evidence_reference,
    token_kl,
    topk_token_kl,
    vocabulary_sums,
)
from scgrpo.divergence.backends import has_compiler

HEADS: list[dict[str, Any]] = [{}, {"bias": True, "scale": 0.5, "softcap": 3.0, "temperature": 0.7}]


def case(n: int = 23, width: int = 8, words: int = 101, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    student, weight = (torch.randn(k, width, generator=generator).to(dtype) for k in (n, words))
    teacher = student + 0.5 * torch.randn(n, width, generator=generator).to(dtype)
    return student, teacher, torch.randint(0, words, (n,), generator=generator), weight


def make_head(weight: Tensor, settings: dict[str, Any]) -> OutputHead:
    bias = torch.linspace(-1, 1, len(weight), dtype=weight.dtype) if settings.get("bias") else None
    return OutputHead(weight, bias, **{k: v for k, v in settings.items() if k != "bias"})


def plain(student: Tensor, teacher: Tensor, tokens: Tensor, head: OutputHead, direction: str) -> tuple[Tensor, ...]:
    """log p(y), entropy, divergence, by full logits and autograd."""
    log_p = head.logits(student, 0, len(head.weight)).log_softmax(-1)
    log_q = head.logits(teacher, 0, len(head.weight)).log_softmax(-1).detach()
    lead, other = (log_q, log_p) if direction == "forward" else (log_p, log_q)
    divergence = (lead.exp() * (lead - other)).sum(-1)
    return log_p.gather(1, tokens[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1), divergence


@pytest.mark.parametrize("settings", HEADS, ids=["plain head", "bias, scale, cap, temperature"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_values_and_gradients_are_those_of_autograd(settings: dict[str, Any], direction: Any) -> None:
    student, teacher, tokens, weight = case()
    draws = torch.Generator().manual_seed(1)
    scales = [torch.randn(len(tokens), dtype=torch.float64, generator=draws) for _ in range(3)]
    gradients = []
    for tiled in (True, False):
        h, w = student.clone().requires_grad_(), weight.clone().requires_grad_()
        head = make_head(w, settings)
        if tiled:
            found = differentiable_evidence(
                h, teacher, tokens, head, direction=direction, tokens_per_tile=5, words_per_tile=17
            )
            values = (found.student_logps, found.student_entropy, found.token_kl)
            assert not found.teacher_logps.requires_grad
        else:
            values = plain(h, teacher, tokens, head, direction)
        sum((value * scale).sum() for value, scale in zip(values, scales, strict=True)).backward()
        gradients.append((*(v.detach() for v in values), h.grad, w.grad))
    for tiled_value, plain_value in zip(*gradients, strict=True):
        torch.testing.assert_close(tiled_value, plain_value, atol=1e-10, rtol=1e-10)


def test_a_constant_divergence_has_no_gradient_and_does_not_keep_the_teacher() -> None:
    student, teacher, tokens, weight = case()
    bias = torch.linspace(-1, 1, len(weight), dtype=torch.float64)
    gradients, kept = [], []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    for tiled in (True, False):
        h, w, b = student.clone().requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()
        head = OutputHead(w, b, softcap=3.0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            if tiled:
                found = differentiable_evidence(h, teacher, tokens, head, constant_kl=True, words_per_tile=17)
                assert not found.token_kl.requires_grad
                assert h.data_ptr() in kept
                assert teacher.data_ptr() not in kept
                logps, entropy = found.student_logps, found.student_entropy
            else:
                logps, entropy, _ = plain(h, teacher, tokens, head, "forward")
        (logps.sum() + 0.3 * entropy.square().sum()).backward()
        gradients.append((h.grad, w.grad, b.grad))
    for tiled_value, plain_value in zip(*gradients, strict=True):
        torch.testing.assert_close(tiled_value, plain_value, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("settings", HEADS, ids=["plain head", "bias, scale, cap, temperature"])
def test_a_heads_own_precision_rounds_its_factors_and_nothing_else(settings: dict[str, Any]) -> None:
    """As under a host's autocast: bf16 factors, fp32 sums and logits."""
    student, teacher, tokens, weight = case(dtype=torch.float32)
    head = replace(make_head(weight, settings), compute_dtype=torch.bfloat16)
    found = token_evidence(student, teacher, tokens, head, tokens_per_tile=5, words_per_tile=17)
    rounded = [x.bfloat16().double() for x in (student, teacher, weight)]
    expected = token_evidence_reference(*rounded[:2], tokens, make_head(rounded[2], settings))
    exact = token_evidence_reference(student.double(), teacher.double(), tokens, make_head(weight.double(), settings))
    for name in ("token_kl", "teacher_logps", "student_logps", "student_entropy"):
        torch.testing.assert_close(getattr(found, name).double(), getattr(expected, name), atol=2e-5, rtol=0)
        assert (getattr(found, name) - getattr(exact, name)).abs().max() > 1e-3
    tiled = differentiable_evidence(student, teacher, tokens, head)
    for name in ("token_kl", "student_logps", "student_entropy"):
        torch.testing.assert_close(getattr(tiled, name), getattr(found, name), atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", HEADS, ids=["plain head", "bias, scale, cap, temperature"])
def test_reverse_divergence_and_a_teacher_with_another_head(settings: dict[str, Any]) -> None:
    student, teacher, tokens, weight = case()
    head, other = make_head(weight, settings), make_head(weight.flip(0) * 0.8, settings)
    _, _, expected = plain(student, teacher, tokens, head, "reverse")
    torch.testing.assert_close(token_kl(student, teacher, head, direction="reverse"), expected, atol=1e-12, rtol=0)
    p = head.logits(student, 0, 101).log_softmax(-1)
    q = other.logits(teacher, 0, 101).log_softmax(-1)
    found = token_kl(student, teacher, other, student_head=head)
    torch.testing.assert_close(found, (q.exp() * (q - p)).sum(-1), atol=1e-12, rtol=0)


def test_shards_of_the_vocabulary_merge_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `merge_vocab_shards` does over processes, with the all-gather written out."""
    from torch import distributed

    student, teacher, tokens, weight = case()
    bounds = [0, 30, 31, 101]
    shards = [
        vocabulary_sums(student, teacher, tokens, OutputHead(weight[a:b]), first_word=a) for a, b in pairwise(bounds)
    ]

    def all_gather(out: list[Tensor], value: Tensor, group: Any = None) -> None:
        name = "statistics" if value.shape == shards[0].statistics.shape else "chosen"
        for place, shard in zip(out, shards, strict=True):
            place.copy_(getattr(shard, name))

    monkeypatch.setattr(distributed, "get_world_size", lambda group=None: 3)
    monkeypatch.setattr(distributed, "all_gather", all_gather)
    found = merge_vocab_shards(shards[1]).evidence()
    expected = token_evidence_reference(student, teacher, tokens, OutputHead(weight))
    for name in ("token_kl", "teacher_logps", "student_logps", "student_entropy"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-12, rtol=0)


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler for torch.compile")
def test_the_compiled_fold_is_the_eager_one() -> None:
    student, teacher, tokens, weight = case(dtype=torch.float32)
    head = OutputHead(weight)
    compiled, eager = (token_evidence(student, teacher, tokens, head, backend=b) for b in ("compile", "eager"))
    for name in ("token_kl", "teacher_logps", "student_logps", "student_entropy"):
        torch.testing.assert_close(getattr(compiled, name), getattr(eager, name), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weight_is_right_to_half_a_thousandth(dtype: torch.dtype) -> None:
    """f = D / (D + c) against float64 of the same inputs, with sharp logits and a wide vocabulary."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(20_000, 64, generator=generator) / 8).to(dtype)
    student = (torch.randn(200, 64, generator=generator) * 6).to(dtype)
    shift = torch.exp(torch.randn(200, 1, generator=generator) * 1.5 - 1.5)
    teacher = (student + shift * torch.randn(200, 64, generator=generator)).to(dtype)
    found = token_kl(student, teacher, OutputHead(weight)).double()
    exact = token_kl(student.double(), teacher.double(), OutputHead(weight.double()))
    c = exact.quantile(0.75)
    assert 0.05 < c < 1
    assert (found - exact).abs().max() < 3e-5 + 1e-3 * exact.max()
    assert (found / (found + c) - exact / (exact + c)).abs().max() < 5e-4


def test_top_k_with_all_words_is_exact_and_with_few_a_lower_bound() -> None:
    student, teacher, tokens, weight = case()
    head = OutputHead(weight)
    expected = token_evidence(student, teacher, tokens, head)
    whole = topk_token_kl(student, teacher, head, k=len(weight))
    torch.testing.assert_close(whole.token_kl, expected.token_kl, atol=1e-9, rtol=0)
    few = topk_token_kl(student, teacher, head, k=8)
    assert (few.token_kl <= expected.token_kl + 1e-9).all()
    assert (few.token_kl > 0.2 * expected.token_kl).float().mean() > 0.5


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("differentiable", [False, True])
def test_every_kind_of_divergence_leaves_the_rest_of_the_evidence_exact(direction: Any, differentiable: bool) -> None:
    student, teacher, tokens, weight = case()
    head, h = OutputHead(weight), student.clone().requires_grad_(differentiable)
    exact = token_evidence(student, teacher, tokens, head, direction=direction)
    r = exact.teacher_logps - exact.student_logps
    k1, k3 = (r.exp() * r, r.exp() * r - r.exp() + 1) if direction == "forward" else (-r, r.exp() - 1 - r)
    top = (student @ weight.T).topk(5).indices
    p, q = ((x @ weight.T).softmax(-1).gather(1, top) for x in (student, teacher))
    p, q = (torch.cat([x, 1 - x.sum(1, keepdim=True)], 1) for x in (p, q))
    lead, other = (q, p) if direction == "forward" else (p, q)
    expected = {
        "exact": exact.token_kl,
        "topk": (lead * (lead / other).log()).sum(1),
        "k1": k1.clamp(min=0),
        "k3": k3,
    }
    for kind, token_kl_ in expected.items():
        found = Divergence(kind, direction, 5)(h, teacher, tokens, head, differentiable=differentiable)
        torch.testing.assert_close(found.token_kl, token_kl_, atol=1e-9, rtol=0, msg=kind)
        for name in ("teacher_logps", "student_logps", "student_entropy"):
            torch.testing.assert_close(getattr(found, name).detach(), getattr(exact, name), atol=1e-12, rtol=0)
        assert not found.token_kl.requires_grad
        assert found.student_logps.requires_grad is differentiable
    assert (k1 < 0).any()  # what the cut is for


def test_sampled_estimators_by_hand() -> None:
    student, teacher = torch.tensor([-1.0, -2.0]), torch.tensor([-0.5, -3.0])
    k1 = sampled_token_kl(student, teacher, estimator="k1")
    k3 = sampled_token_kl(student, teacher, estimator="k3")
    assert k1.shape == k3.shape == (2,)
    assert (k3 >= 0).all()
