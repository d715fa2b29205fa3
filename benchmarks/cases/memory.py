"""Peak memory of the token KL."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.cases.token_kl import plain_token_kl, states
from benchmarks.context import Context, HeadShape
from benchmarks.results import Row, Table
from scgrpo.divergence import OutputHead, token_evidence


def run(context: Context) -> Iterator[Table]:
    """Extra memory of the evidence against plain log-softmax, as the number of tokens grows."""
    wide = context.sizes.precision
    for tokens in context.sizes.memory_tokens:
        shape = HeadShape(tokens, wide.hidden, wide.words)
        peaks = {
            "ours: KL, log-probs, entropy": _fresh(context, shape, True),
            "plain log-softmax: KL": _fresh(context, shape, False),
        }
        rows = [Row(name, peak_mib=None if peak is None else peak / 2**20) for name, peak in peaks.items()]
        table = Table("memory", str(shape), "", rows)
        mine, plain = (row.peak_mib for row in rows)
        if mine is not None and plain:
            table.require(f"{shape}: extra memory / plain log-softmax", mine / plain, 1 / 20)
        yield table


def _fresh(context: Context, shape: HeadShape, ours: bool) -> int | None:
    """On a CPU in a process of its own: what an allocator keeps from earlier work would count as ours."""
    if context.device.type == "cuda":
        return peak(context, shape, ours)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak, context, shape, ours).result()


def peak(context: Context, shape: HeadShape, ours: bool) -> int | None:
    """Bytes above what is there before."""
    torch.set_num_threads(1)
    student, teacher, tokens, weight = states(shape, context)
    with torch.no_grad():
        if ours:
            head = OutputHead(weight)
            few = (student[:8], teacher[:8], tokens[:8], OutputHead(weight[:64]))
            token_evidence(*few, backend="eager")  # what is loaded once
            return context.memory.of(lambda: token_evidence(student, teacher, tokens, head, backend="eager"))
        return context.memory.of(lambda: plain_token_kl(student, teacher, weight))
