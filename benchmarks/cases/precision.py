"""Errors of D and of the weight f against float64 of the same inputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.context import Context
from benchmarks.results import Row, Table
from scgrpo.divergence import OutputHead, token_kl


def run(context: Context) -> Iterator[Table]:
    """What fp32 sums, bf16 inputs and bf16 logits do to f = D / (D + c), c at the 75th percentile."""
    shape, rows = context.sizes.precision, []
    peaked = peaked_states(shape.tokens, shape.hidden, shape.words, context.device)
    table = Table("precision", f"largest error, {shape}", "", rows, value="f")
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        student, teacher, weight = (x.to(dtype) for x in peaked)
        exact = token_kl(student.double(), teacher.double(), OutputHead(weight.double()))
        error = weight_error(token_kl(student, teacher, OutputHead(weight)).double(), exact)
        rows.append(Row(f"ours, {name} inputs", value=error))
        table.require(f"error of f, {name} inputs", error, 5e-4)
        logits = [(x.float() @ weight.float().T).bfloat16().float().log_softmax(-1) for x in (student, teacher)]
        rounded = (logits[1].exp() * (logits[1] - logits[0])).sum(-1)
        rows.append(Row(f"logits rounded to bf16, {name} inputs", value=weight_error(rounded.double(), exact)))
    yield table


def weight_error(found: Tensor, exact: Tensor) -> float:
    """Largest |f - f exact|, both under the exact threshold."""
    c = exact.quantile(0.75).clamp(min=1e-4)
    found = found.clamp(min=0)
    return float((found / (found + c) - exact / (exact + c)).abs().max())


def peaked_states(tokens: int, hidden: int, words: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(student, teacher, weight) as a language model's: one to four likely words, logits away from 0, and a teacher
    that moves a few tokens a lot and most hardly at all."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weight = normal(words, hidden) / hidden**0.5
    common = normal(hidden)
    common /= common.norm()
    weight += 0.15 * common
    word = torch.randint(words, (tokens, 4), generator=generator)
    towards = weight[word] / weight[word].norm(dim=-1, keepdim=True) ** 2
    height = 8 + 8 * torch.rand(tokens, 1, generator=generator) - 6 * torch.rand(tokens, 4, generator=generator)
    height[:, 1:] *= torch.rand(tokens, 3, generator=generator) < 0.5
    student = 2.2 * normal(tokens, hidden) + (height[..., None] * towards).sum(1) + 40 * common
    size = (1.5 * normal(tokens, 1) - 3).exp()
    teacher = student + size * normal(tokens, hidden) + 3 * size * normal(tokens, 1) * towards[:, 0]
    return student.to(device), teacher.to(device), weight.to(device)
