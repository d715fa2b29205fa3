"""Turns of conversations that something else than the trainer's model draws: vLLM, or continuous batching."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from scgrpo.evaluation.conversation import Sampled
from scgrpo.evaluation.samplers import until_end
from scgrpo.integrations.trl.evidence import everywhere


class HostTurns:
    """Samples turn after turn of conversations as TRL samples completions: each turn is a prompt of all tokens before
    it, of which vLLM's prefix cache has most. Processes draw in step (`evaluation.episodes.in_step`).

    Args:
        trainer: whose `use_vllm` or `use_transformers_continuous_batching` is set.
        num_rows: number of conversations.
    """

    def __init__(self, trainer: Any, num_rows: int) -> None:
        self.trainer = trainer
        self._so_far: list[list[int]] = [[] for _ in range(num_rows)]

    def __call__(self, rows: Sequence[int], added: Sequence[Sequence[int]], max_new_tokens: int) -> list[Sampled]:
        """One more turn of some conversations, after the tokens added since their last one."""
        for row, tokens in zip(rows, added, strict=True):
            self._so_far[row] += tokens
        turns = host_turns(self.trainer, [self._so_far[row] for row in rows], max_new_tokens)
        for row, turn in zip(rows, turns, strict=True):
            self._so_far[row] += turn.ids
        return turns


def host_turns(trainer: Any, contexts: Sequence[list[int]], max_new_tokens: int) -> list[Sampled]:
    """A turn after each context, with its log-probs where vLLM draws.

    All processes call it, with as many contexts as they have left, perhaps none. TRL's servers count on equal
    numbers, so the turns of all are dealt out evenly: nobody waits for the one with the most.
    """
    accelerator, mine = trainer.accelerator, list(contexts)
    everyone = everywhere(accelerator, mine)
    before = sum(everywhere(accelerator, [len(mine)])[: accelerator.process_index])
    share = math.ceil(len(everyone) / accelerator.num_processes)
    # Copies of the last one make the shares equal.
    dealt = [*everyone, *[everyone[-1]] * (share * accelerator.num_processes - len(everyone))]
    first = accelerator.process_index * share
    with _limited(trainer, max_new_tokens):
        ids, logps = trainer._generate_single_turn(dealt[first : first + share], None, {}, 1)
    drawn = [
        # vLLM has no log-prob of a token where it is not a number.
        Sampled(list(own), None if logps is None else [math.nan if x is None else float(x) for x in logps[row]])
        for row, own in enumerate(ids)
    ]
    drawn = everywhere(accelerator, drawn)[before : before + len(mine)]
    return [turn.up_to(len(until_end(turn.ids, trainer.eos_token_ids))) for turn in drawn]


@contextmanager
def _limited(trainer: Any, max_new_tokens: int) -> Iterator[None]:
    """TRL's limit for a completion, set to that for a turn."""
    if trainer.use_vllm:
        holder, name = trainer.vllm_generation, "max_completion_length"
    else:
        holder, name = trainer.generation_config, "max_new_tokens"
    usual = getattr(holder, name)
    setattr(holder, name, max_new_tokens)
    try:
        yield
    finally:
        setattr(holder, name, usual)
