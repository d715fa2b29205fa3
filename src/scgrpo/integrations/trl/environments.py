"""Rollouts in a task's environments, as TRL's `rollout_func`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from trl.models.utils import unwrap_model_for_generation

from scgrpo.errors import IncompatibleHostError
from scgrpo.evaluation.conversation import Chat
from scgrpo.evaluation.episodes import NewSampler, in_step, play
from scgrpo.evaluation.turns import Turns, idle
from scgrpo.integrations.trl import per_step
from scgrpo.integrations.trl.evidence import everywhere, shares_weights
from scgrpo.integrations.trl.host_sampling import max_prompt_tokens, sampling_in_step
from scgrpo.tasks.environment import EPISODE, EnvironmentTask, Episode


class EnvironmentRollouts:
    """`SCGRPOTrainer(..., rollout_func=EnvironmentRollouts(task))`: every completion is a conversation with the
    environment that the task makes from the prompt's row.

    The trainer's own sampling settings apply to each turn, and `max_completion_length` to the whole conversation. The
    reward functions get the transcripts (messages) as `completions`, and the `Episode`s in the column `episode`.
    Tokens that the model did not write are left out of the loss (TRL's `tool_mask`).
    """

    def __init__(self, task: EnvironmentTask) -> None:
        self.task = task
        self._chat: Chat | None = None

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """TRL's contract: token ids of prompts and completions, log-probs (vLLM's), `env_mask`, and further columns.

        Raises:
            ConfigError: settings that cannot work with a prompt per step.
            IncompatibleHostError: the trainer does not say which rows the prompts are of.
        """
        rows = getattr(trainer, "sampled_rows", None)
        if rows is None or len(rows) != len(prompts) or len({id(row) for row in rows}) < len(rows):
            raise IncompatibleHostError(
                "The rows that the prompts are from cannot be told.",
                "Use SCGRPOTrainer, and a datasets.Dataset as train_dataset.",
            )
        if self.task.prompting == "per_step":
            per_step.check(trainer)
        if self._chat is None:
            kwargs = trainer.chat_template_kwargs
            self._chat = Chat(trainer._tokenizer, set(trainer.eos_token_ids), kwargs, trainer.chat_template)
        with _sampling(trainer) as new_sampler:
            prompt_ids, episodes = play(
                self.task,
                rows,
                prompts,
                self._chat,
                new_sampler,
                trainer.max_completion_length,
                max_prompt_tokens(trainer),
            )
        trainer.turn_columns = per_step.columns(episodes, trainer.accelerator.device)
        logps = [episode.logps for episode in episodes]
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": [episode.completion_ids for episode in episodes],
            "logprobs": None if None in logps else logps,
            "env_mask": [[int(own) for own in episode.mask] for episode in episodes],
            EPISODE: episodes,
        }


@contextmanager
def _sampling(trainer: Any) -> Iterator[NewSampler]:
    """What samples turns: the trainer's own model, or whatever else generates for it."""
    accelerator = trainer.accelerator
    if trainer.use_vllm or trainer.use_transformers_continuous_batching:
        with sampling_in_step(trainer) as together:
            yield together
        return
    unwrapped = unwrap_model_for_generation(
        trainer.model_wrapped,
        accelerator,
        gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
        generation_kwargs=trainer.generation_kwargs,
        gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
    )
    with unwrapped as model, torch.no_grad():
        new_sampler: NewSampler = partial(Turns, model, trainer.generation_config)
        if not shares_weights(accelerator):
            yield new_sampler
            return

        def most(mine: int) -> int:
            return max(everywhere(accelerator, [mine]))

        with in_step(new_sampler, most, lambda _: idle(model, trainer.generation_config)) as together:
            yield together


def transcripts(inputs: Sequence[Mapping[str, Any]], completions: Sequence[Any]) -> list[Any]:
    """The completions, with messages in place of the decoded tokens where the rollout was an episode."""
    episodes: list[Episode | None] = [row.get(EPISODE) for row in inputs]
    return [
        completion if episode is None else episode.messages
        for episode, completion in zip(episodes, completions, strict=True)
    ]
