"""What only a GPU can show: cuBLAS products with fp32 output, the compiled Triton fold, variable-length attention.

Run by `bash benchmarks/gpu.sh run`, also where nothing but PyTorch is installed, so this file needs no fixtures.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scgrpo.divergence import (
    Distillation,
    OutputHead,
    differentiable_evidence,
    distillation_reference,
    token_evidence,
    token_evidence_reference,
)
from scgrpo.divergence.backends import has_triton
from scgrpo.divergence.fold import fold_eager, fold_plain

DEVICE = torch.device("cuda")
FIELDS = ("token_kl", "teacher_logps", "student_logps", "student_entropy")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
needs_triton = pytest.mark.skipif(not has_triton(), reason="Triton is not installed")


def case(n: int, width: int, words: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student = 2 * torch.randn(n, width, generator=generator)
    teacher = student + 0.3 * torch.randn(n, width, generator=generator)
    weight = torch.randn(words, width, generator=generator) / width**0.5
    tokens = torch.randint(words, (n,), generator=generator)
    return student.to(DEVICE, dtype), teacher.to(DEVICE, dtype), tokens.to(DEVICE), weight.to(DEVICE, dtype)


@needs_triton
@pytest.mark.parametrize("width", [1, 17, 1000, 4096, 5000])
@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("entropy", [False, True])
def test_the_compiled_triton_fold_is_the_definition(width: int, lead: int, entropy: bool) -> None:
    from scgrpo.divergence.triton_fold import fold_triton

    tile = torch.randn(2, 37, width, generator=torch.Generator().manual_seed(0)).to(DEVICE) * 8
    expected = fold_plain(tile.double(), lead, entropy).float()
    for fold in (fold_triton, fold_eager):
        torch.testing.assert_close(fold(tile.clone(), lead, entropy), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["eager", pytest.param("triton", marks=needs_triton), "auto"])
@pytest.mark.parametrize("settings", [{}, {"scale": 0.5, "softcap": 20.0, "temperature": 0.7}], ids=["plain", "all"])
def test_evidence_is_that_of_float64(dtype: torch.dtype, backend: Any, settings: dict[str, Any]) -> None:
    student, teacher, tokens, weight = case(300, 256, 30_011, dtype)
    bias = torch.linspace(-1, 1, len(weight), device=DEVICE, dtype=dtype) if settings else None
    found = token_evidence(
        student, teacher, tokens, OutputHead(weight, bias, **settings), backend=backend, tokens_per_tile=128
    )
    wide = None if bias is None else bias.double()
    expected = token_evidence_reference(
        student.double(), teacher.double(), tokens, OutputHead(weight.double(), wide, **settings)
    )
    for name in FIELDS:
        assert getattr(found, name).dtype == torch.float32
        torch.testing.assert_close(getattr(found, name).double(), getattr(expected, name), atol=1e-4, rtol=1e-4)


def test_mixed_precision_rounds_the_factors_alone() -> None:
    """fp32 weights and states under a bf16 host: tensor cores, fp32 logits."""
    student, teacher, tokens, weight = case(300, 256, 30_011, torch.float32)
    found = token_evidence(student, teacher, tokens, OutputHead(weight, compute_dtype=torch.bfloat16))
    rounded = [x.bfloat16().double() for x in (student, teacher, weight)]
    expected = token_evidence_reference(*rounded[:2], tokens, OutputHead(rounded[2]))
    for name in FIELDS:
        torch.testing.assert_close(getattr(found, name).double(), getattr(expected, name), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("kind", [Distillation("both"), Distillation("jsd"), Distillation("forward", clip=0.01)])
def test_distillation_losses_are_those_of_autograd(kind: Distillation, dtype: torch.dtype, limit: float) -> None:
    student, teacher, tokens, weight = case(200, 128, 20_001, dtype)
    results = []
    for tiled in (True, False):
        h, w = student.detach().requires_grad_(), weight.detach().requires_grad_()
        heads = {"head": OutputHead(weight), "student_head": OutputHead(w)}
        if tiled:
            _, loss = kind(h, teacher, tokens, **heads)
        else:
            loss = distillation_reference(kind, h, teacher, tokens, **heads)
        loss.sum().backward()
        assert h.grad is not None
        assert w.grad is not None
        results.append([loss.detach(), h.grad.float(), w.grad.float()])
    for found, expected in zip(*results, strict=True):
        assert float((found - expected).norm() / expected.norm()) < limit


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_gradients_are_those_of_autograd(dtype: torch.dtype, limit: float) -> None:
    student, teacher, tokens, weight = case(200, 128, 20_001, dtype)
    gradients = []
    for evidence in (differentiable_evidence, token_evidence_reference):
        h, w = student.detach().requires_grad_(), weight.detach().requires_grad_()
        heads = {"head": OutputHead(weight), "student_head": OutputHead(w)}  # the teacher has no gradient
        found = evidence(h, teacher, tokens, **heads)  # type: ignore[operator]
        (found.student_logps.sum() + found.token_kl.sum() + found.student_entropy.sum()).backward()
        gradients.append((h.grad, w.grad))
    for a, b in zip(*gradients, strict=True):
        assert (a - b).float().norm() / b.float().norm() < limit


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_packed_prompts_give_the_states_of_copied_ones(dtype: torch.dtype, limit: float, kv_heads: int) -> None:
    transformers = pytest.importorskip("transformers")
    from scgrpo.teacher.hidden import rerun_hidden
    from scgrpo.teacher.packing import packed_hidden

    config = transformers.Qwen3Config(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=64,
    )
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(config).to(DEVICE, dtype).eval()
    prompts = [torch.randint(3, 1000, (n,)).tolist() for n in (130, 1, 57)]
    which = [0, 2, 0, 1, 0, 2, 0]
    lengths = torch.tensor([50, 1, 120, 30, 1, 70, 2], device=DEVICE)
    completions = torch.randint(3, 1000, (7, 120), device=DEVICE)
    rows = ([prompts[i] for i in which], completions, lengths)
    with torch.no_grad():
        found, expected = packed_hidden(model, *rows), rerun_hidden(model, *rows)
    inside = torch.arange(120, device=DEVICE) < lengths[:, None]
    assert (found - expected)[inside].abs().max() / expected[inside].abs().max() < limit


@pytest.mark.parametrize("settings", [{}, {"bf16": True}, {"teacher_timing": "generation", "bf16": True}], ids=str)
def test_the_trainer_trains(settings: dict[str, Any], tmp_path: Any) -> None:
    pytest.importorskip("trl")
    from benchmarks.models import ModelShape, Rollouts, make_steps

    shape = ModelShape(2, 64, 128, 4, 2, 16, 512)
    steps = make_steps("sc_grpo", shape, Rollouts(32, 24, 8, 2, 4), DEVICE, **settings)
    before = [p.detach().clone() for p in steps.trainer.model.parameters()]
    steps()
    steps()
    after = list(steps.trainer.model.parameters())
    assert all(bool(torch.isfinite(p).all()) for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert steps.trainer._metrics["train"]["credit/noise_floor"][0] < 1e-2
