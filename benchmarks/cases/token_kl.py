"""Token KL from hidden states against the two products nobody can avoid, and against other implementations."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.context import Context, HeadShape
from benchmarks.measure import Candidate, interleaved
from benchmarks.results import Table, head_work, timed_rows
from scgrpo.divergence import OutputHead, differentiable_evidence, token_evidence, token_kl
from scgrpo.divergence.backends import has_compiler, has_triton

PRODUCTS = "two plain products"


def run(context: Context) -> Iterator[Table]:
    """Seconds of the exact token KL over the whole vocabulary, forward and with gradients."""
    yield from (_forward(context, shape) for shape in context.sizes.heads)
    yield _gradient(context, context.sizes.heads[0])


def states(shape: HeadShape, context: Context) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(student hidden, teacher hidden, tokens, weight): logits of standard deviation 2, a few words of the teacher's
    moved."""
    generator = torch.Generator(context.device).manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "device": context.device}
    student = 2 * torch.randn(shape.tokens, shape.hidden, **options)
    teacher = student + 0.3 * torch.randn(shape.tokens, shape.hidden, **options)
    weight = torch.randn(shape.words, shape.hidden, **options) / shape.hidden**0.5
    tokens = torch.randint(shape.words, (shape.tokens,), **options)
    dtype = context.sizes.dtype
    return student.to(dtype), teacher.to(dtype), tokens, weight.to(dtype)


def _forward(context: Context, shape: HeadShape) -> Table:
    student, teacher, tokens, weight = states(shape, context)
    head = OutputHead(weight)
    both = torch.cat([student, teacher])
    # The floor's own output: what the products of half-precision factors are worth in fp32.
    out = torch.empty(2 * shape.tokens, shape.words, device=context.device)
    widen = {} if both.dtype == torch.float32 else {"out_dtype": torch.float32}
    candidates: dict[str, Candidate] = {
        PRODUCTS: lambda: torch.mm(both, weight.T, out=out, **widen),
        "products in tiles, one exponential per logit": lambda: _exponentials(both, weight, widen),
    }
    for backend in _backends(context, shape):
        candidates[f"ours, {backend}"] = lambda b=backend: token_kl(student, teacher, head, backend=b)
        candidates[f"ours with log-probs and entropy, {backend}"] = lambda b=backend: token_evidence(
            student, teacher, tokens, head, backend=b
        )
    candidates["plain log-softmax"] = lambda: plain_token_kl(student, teacher, weight)
    notes: list[str] = []
    _add_trl(candidates, notes, student, teacher, weight)
    _add_liger(candidates, notes, student, teacher, weight, tokens)
    with torch.no_grad():
        seconds = interleaved(candidates, context.clock, context.repetitions)
    floor = context.floor.seconds(
        head_work(shape.tokens, shape.hidden, shape.words, both.element_size()), context.sizes.dtype
    )
    table = Table("token_kl", str(shape), PRODUCTS, timed_rows(seconds, PRODUCTS, floor_s=floor), notes=notes)
    _require(table, context, shape)
    return table


def _require(table: Table, context: Context, shape: HeadShape) -> None:
    backends = _backends(context, shape)
    cuda, balanced = context.device.type == "cuda", shape.hidden < 1024
    limits = {"eager": 1.15, "compile": 1.2 if balanced else 1.08, "triton": 1.2 if shape.hidden >= 4096 else 1.4}
    for backend in backends:
        name, more = f"ours, {backend}", f"ours with log-probs and entropy, {backend}"
        if not (backend == "eager" and (cuda or balanced)) and not (cuda and shape.hidden < 2048):
            table.require_time(f"{shape}: {backend} / two products", limits[backend], lambda of, n=name: of(n))
        what = f"{shape}: log-probs and entropy, {backend} / the KL alone"
        table.require_time(what, 1.10, lambda of, n=name, m=more: of(m) / of(n))


def _backends(context: Context, shape: HeadShape) -> list[str]:
    """Slowest first. Compiling takes longer than small shapes are worth."""
    if context.device.type == "cuda":
        return ["eager", *(["triton"] if has_triton() else [])]
    return ["eager", *(["compile"] if has_compiler() and shape.words >= 10_000 else [])]


def _exponentials(both: Tensor, weight: Tensor, widen: dict[str, Any], words: int = 4096) -> None:
    """What no exact divergence can skip: the products, and an exponential of every logit while it is at hand."""
    for rows in weight.split(words):
        torch.mm(both, rows.T, **widen).exp2_()


def plain_token_kl(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """With all logits at once, in fp32."""
    p, q = ((h.float() @ weight.float().T).log_softmax(-1) for h in (student, teacher))
    return (q.exp() * (q - p)).sum(-1)


def _add_trl(
    candidates: dict[str, Candidate], notes: list[str], student: Tensor, teacher: Tensor, weight: Tensor
) -> None:
    try:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    except ImportError as error:
        notes.append(f"TRL's ChunkedDivergenceFunction is left out: {error}")
        return
    call = (student, weight, None, teacher, weight, None, 0.0)
    candidates["TRL ChunkedDivergenceFunction"] = lambda: ChunkedDivergenceFunction.apply(*call)


def _add_liger(
    candidates: dict[str, Candidate],
    notes: list[str],
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    tokens: Tensor,
) -> None:
    if importlib.util.find_spec("liger_kernel") is None:
        notes.append("Liger's fused linear JSD is left out: liger-kernel is not installed")
        return
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False, chunk_size=256
    )

    def liger() -> Any:
        with torch.enable_grad():
            return loss(student.detach().requires_grad_(), weight, teacher, weight, tokens)

    candidates["Liger fused linear JSD, beta = 0 (a scalar; makes gradients)"] = liger


def _gradient(context: Context, shape: HeadShape) -> Table:
    """Log-probs with gradient (the GRPO loss's own), and the KL as a weight or as a loss beside them."""
    student, teacher, tokens, weight = states(shape, context)
    notes: list[str] = []

    def ours(constant_kl: bool) -> None:
        h, w = student.detach().requires_grad_(), weight.detach().requires_grad_()
        found = differentiable_evidence(h, teacher, tokens, OutputHead(w), constant_kl=constant_kl)
        (found.student_logps.sum() + (0.0 if constant_kl else found.token_kl.sum())).backward()

    def plain() -> None:
        h, w = student.detach().requires_grad_(), weight.detach().requires_grad_()
        logits = h.float() @ w.float().T
        functional.cross_entropy(logits, tokens, reduction="sum").backward()

    candidates: dict[str, Candidate] = {
        "log-probs alone, plain logits": plain,
        "ours: log-probs, KL as a constant": lambda: ours(True),
        "ours: log-probs and KL, both with gradients": lambda: ours(False),
    }
    base = "log-probs alone, plain logits"
    try:
        from trl.kernels import ChunkedLogProbFunction

        def trl() -> None:
            h, w = student.detach().requires_grad_(), weight.detach().requires_grad_()
            call = (h, w, None, tokens, 1.0, 32768, None, 1.0, ("entropy",))
            ChunkedLogProbFunction.apply(*call)[0].sum().backward()

        candidates["log-probs alone, TRL"] = trl
    except ImportError as error:
        notes.append(f"TRL's log-probs are left out: {error}")
    seconds = interleaved(candidates, context.clock, context.repetitions)
    return Table("token_kl", f"forward and backward, {shape}", base, timed_rows(seconds, base), notes=notes)
