"""Hidden states of a group's completions under its demonstrations."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.context import Context
from benchmarks.measure import Candidate, interleaved
from benchmarks.results import Row, Table, timed_rows
from scgrpo.teacher.hidden import cached_hidden, rerun_hidden
from scgrpo.teacher.packing import packed_hidden

COPIES = "a copy of the prompt per rollout"


def run(context: Context) -> Iterator[Table]:
    """Prompts shared or copied, against a plain student forward (prompt 64)."""
    shape = context.model
    model = shape.make(context.device)
    for prompt_length, length, group in context.sizes.prefixes:
        prompt = torch.randint(3, shape.vocabulary, (prompt_length,)).tolist()
        completions = torch.randint(3, shape.vocabulary, (group, length), device=context.device)
        lengths = torch.full((group,), length, device=context.device)
        one, two = [prompt] * group, [prompt] * (group - 1) + [prompt[::-1]]
        own = [prompt[: min(64, prompt_length)]] * group
        candidates: dict[str, Candidate] = {
            COPIES: partial(rerun_hidden, model, one, completions, lengths),
            "shared, one demonstration (packed)": partial(packed_hidden, model, one, completions, lengths),
            "shared, two demonstrations (packed, 7 + 1)": partial(packed_hidden, model, two, completions, lengths),
            "shared, one demonstration (cached)": partial(cached_hidden, model, one, completions, lengths),
            "plain student forward": partial(rerun_hidden, model, own, completions, lengths),
        }
        with torch.no_grad():
            seconds = interleaved(candidates, context.clock, context.repetitions)
            error = _error(candidates)
            peak = {name: context.memory.of(candidate) for name, candidate in candidates.items()}
        tokens = prompt_length + group * length
        keys = (prompt_length**2 / 2 + group * length * (prompt_length + length / 2)) / tokens
        floor = context.floor.seconds(shape.forward_work(tokens, keys), shape.dtype)
        rows = timed_rows(seconds, COPIES, floor_s=floor, peak=peak)
        rows += [Row("largest difference, packed against copies, relative", value=error)]
        title = f"prompt {prompt_length}, completion {length}, G = {group}"
        table = Table("teacher_pass", title, COPIES, rows, value="error")
        _require(table, title, (prompt_length, length), error, shape.dtype)
        yield table


def _require(table: Table, title: str, sizes: tuple[int, int], error: float, dtype: torch.dtype) -> None:
    packed, plain = "shared, one demonstration (packed)", "plain student forward"
    if sizes == (320, 256):
        table.require_time(f"{title}: shared / copies", 0.60, lambda of: of(packed))
        table.require_time(f"{title}: shared / plain student forward", 1.30, lambda of: of(packed) / of(plain))
    if dtype == torch.float32:
        table.require(f"{title}: hidden states, shared against copies", error, 1e-5)


def _error(candidates: dict[str, Candidate]) -> float:
    copies, packed = candidates[COPIES](), candidates["shared, one demonstration (packed)"]()
    return float((packed - copies).abs().max() / copies.abs().max())
