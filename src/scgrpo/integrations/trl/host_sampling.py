"""Sampling by something else than the trainer's model: turns of conversations, by vLLM or continuous batching, and
evaluations, by vLLM."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from scgrpo.evaluation.conversation import Sampled
from scgrpo.evaluation.episodes import NewSampler, in_step
from scgrpo.evaluation.samplers import Sampling, until_end
from scgrpo.evaluation.turns import longest_prompt
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
    holder, limit = _limit(trainer)
    with _set(holder, **{limit: max_new_tokens}):
        ids, logps = trainer._generate_single_turn(dealt[first : first + share], None, {}, 1)
    drawn = [
        # vLLM has no log-prob of a token where it is not a number.
        Sampled(list(own), None if logps is None else [math.nan if x is None else float(x) for x in logps[row]])
        for row, own in enumerate(ids)
    ]
    drawn = everywhere(accelerator, drawn)[before : before + len(mine)]
    return [turn.up_to(len(until_end(turn.ids, trainer.eos_token_ids))) for turn in drawn]


@contextmanager
def sampling_in_step(trainer: Any) -> Iterator[NewSampler]:
    """What samples the turns of conversations, for all processes together."""

    def most(mine: int) -> int:
        return max(everywhere(trainer.accelerator, [mine]))

    with in_step(partial(HostTurns, trainer), most, lambda longest: host_turns(trainer, [], longest)) as together:
        yield together


def max_prompt_tokens(trainer: Any) -> int | None:
    """After which whatever samples has room for a token; None if that is not known."""
    served = trainer.args.vllm_max_model_length if trainer.use_vllm else None
    return longest_prompt(trainer.model) if served is None else served - 1


class HostSampler:
    """Evaluations by the vLLM that samples for training: a `scgrpo.evaluation.Sampler`, whose weights TRL has sent.

    TRL gives vLLM no seed for a prompt, so an evaluation is not drawn the same each time. Processes draw in step.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.ends: Collection[int] = trainer.eos_token_ids
        self.identity = {"engine": "vllm", "weights": None}
        self.max_prompt_tokens = max_prompt_tokens(trainer)

    def sample(self, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling, seed: int) -> list[list[int]]:
        contexts = [list(prompt) for prompt in prompts for _ in range(count)]
        with self._as(sampling):
            return [turn.ids for turn in host_turns(self.trainer, contexts, sampling.max_new_tokens)]

    @contextmanager
    def turns(self, sampling: Sampling, seed: int) -> Iterator[NewSampler]:
        with self._as(sampling), sampling_in_step(self.trainer) as together:
            yield together

    def _as(self, sampling: Sampling) -> Any:
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        return _set(self.trainer.vllm_generation, **drawn, min_p=None, repetition_penalty=1.0)


def _limit(trainer: Any) -> tuple[Any, str]:
    """Where TRL keeps its limit for a completion."""
    if trainer.use_vllm:
        return trainer.vllm_generation, "max_completion_length"
    return trainer.generation_config, "max_new_tokens"


@contextmanager
def _set(holder: Any, **values: Any) -> Iterator[None]:
    """Other values of some attributes, for a while."""
    usual = {name: getattr(holder, name) for name in values}
    try:
        for name, value in values.items():
            setattr(holder, name, value)
        yield
    finally:
        for name, value in usual.items():
            setattr(holder, name, value)
