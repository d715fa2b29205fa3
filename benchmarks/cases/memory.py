"""Peak memory of the token KL."""

from __future__ import annotations

from collections.abc import Iterator

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
        student, teacher, chosen, weight = states(shape, context)
        head, memory = OutputHead(weight), context.memory

        def ours(s: torch.Tensor = student, t: torch.Tensor = teacher, y: torch.Tensor = chosen) -> None:
            token_evidence(s, t, y, head, backend="eager")  # noqa: B023  called before the loop goes on

        with torch.no_grad():
            ours()  # what is loaded once
            peaks = {
                "ours: KL, log-probs, entropy": memory.of(ours),
                "plain log-softmax: KL": memory.of(lambda: plain_token_kl(student, teacher, weight)),  # noqa: B023
            }
        rows = [Row(name, peak_mib=None if peak is None else peak / 2**20) for name, peak in peaks.items()]
        table = Table("memory", str(shape), "", rows)
        mine, plain = (row.peak_mib for row in rows)
        if mine is not None and plain:
            table.require(f"{shape}: extra memory / plain log-softmax", mine / plain, 1 / 20)
        yield table
