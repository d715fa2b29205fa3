"""Rollouts in a task's environments, as an agent loop of verl.

Rows of `scgrpo verl-data` name it in their column `agent_name`, and the plug-in registers it in every process:
nothing has to be configured. verl's sampling settings apply to each turn, `data.max_response_length` to the whole
conversation.

    prompting concat      one output: prompt | action, observation, action, ... with response_mask 0 on observations
    prompting per_step    one output for each turn that has a token: the turn's own prompt | its action

The reward is the environment's verdict (`verdicts.reward_fields`), so that no reward function is called. What a
teacher's prompt needs is in each output's `extra_fields`:

    prompt_messages    what the output's own prompt was rendered from
    transcript         the session's last output only: messages after the first prompt
    done               the environment said so; else a limit cut the rollout off
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register

from scgrpo.errors import ConfigError
from scgrpo.evaluation.conversation import Chat, Sampled
from scgrpo.integrations.verl.data import ENVIRONMENT_LOOP, read_problem
from scgrpo.integrations.verl.playing import Played, play, worlds_of
from scgrpo.integrations.verl.prompts import PROMPT_MESSAGES, TRANSCRIPT
from scgrpo.integrations.verl.setup import eos_token_ids
from scgrpo.integrations.verl.verdicts import opened_task, plain, reward_fields
from scgrpo.tasks.base import Message
from scgrpo.tasks.environment import EnvironmentTask

# What verl's own loops have in `extra_fields`, so that all outputs of a batch have the same keys.
_VERL_FIELDS: dict[str, Any] = {"turn_scores": [], "tool_rewards": []}


@register(ENVIRONMENT_LOOP)
class EnvironmentLoop(AgentLoopBase):
    """Plays one rollout in the environment of its row."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput | list[AgentLoopOutput]:
        """verl's contract.

        Args:
            kwargs: columns of the data set; `raw_prompt` and `extra_info` are read.

        Raises:
            ConfigError: the row's task is none with environments; a chat template that does not append.
            DataError: a row of another data set; a prompt that is too long.
        """
        problem = read_problem(kwargs["extra_info"])
        task = await self.loop.run_in_executor(None, opened_task, problem, self._task_options())
        if not isinstance(task, EnvironmentTask):
            raise ConfigError(
                f"Task {problem.task!r} has no environments.",
                "Write its data set again with `scgrpo verl-data`: it names the agent loop.",
            )
        turns = _Turns(self.server_manager, sampling_params)
        prompt = [dict(message) for message in kwargs["raw_prompt"]]
        started = time.perf_counter()
        played = await play(
            worlds_of(task),
            problem.row,
            prompt,
            Chat(
                self.tokenizer,
                set(eos_token_ids(self.config, self.tokenizer)),
                plain(self.apply_chat_template_kwargs),
            ),
            turns.sample,
            max_tokens=self.rollout_config.response_length,
            max_prompt_tokens=self.rollout_config.prompt_length,
        )
        metrics = AgentLoopMetrics(
            generate_sequences=turns.seconds,
            tool_calls=time.perf_counter() - started - turns.seconds,  # environments, and waiting for them
            num_preempted=turns.num_preempted,
        )
        threshold = self._reward_settings().get("success_threshold", task.success_threshold)
        reward = reward_fields(played.episode.verdict, threshold, problem.row["problem_id"])
        return _outputs(played, prompt, metrics, turns.extra_fields, reward)

    def _reward_settings(self) -> Mapping[str, Any]:
        """Those of the reward function: in one place for both."""
        return plain(self.config.reward.custom_reward_function.get("reward_kwargs") or {})

    def _task_options(self) -> Mapping[str, Any]:
        return self._reward_settings().get("task_options") or {}


class _Turns:
    """The turns of one session on verl's server, and what they cost."""

    def __init__(self, server: Any, sampling_params: Mapping[str, Any]) -> None:
        self.server, self.sampling_params = server, sampling_params
        self.session = uuid4().hex  # turns of a session go to the same server, which keeps their prefix
        self.seconds, self.num_preempted = 0.0, -1
        self.extra_fields: dict[str, Any] = {}

    async def sample(self, context_ids: list[int], max_new_tokens: int) -> Sampled:
        started = time.perf_counter()
        output = await self.server.generate(
            request_id=self.session,
            prompt_ids=context_ids,
            sampling_params={**self.sampling_params, "max_tokens": max_new_tokens},
        )
        self.seconds += time.perf_counter() - started
        if output.num_preempted is not None:
            self.num_preempted = max(self.num_preempted, 0) + output.num_preempted
        # The first turn's, but for the newest weights that were seen.
        newest = output.extra_fields.get("max_global_steps")
        self.extra_fields = {**output.extra_fields, **self.extra_fields}
        if newest is not None:
            self.extra_fields["max_global_steps"] = newest
        return Sampled(list(output.token_ids), output.log_probs or None)


def _outputs(
    played: Played,
    prompt: list[Message],
    metrics: AgentLoopMetrics,
    extra_fields: Mapping[str, Any],
    reward: Mapping[str, Any],
) -> AgentLoopOutput | list[AgentLoopOutput]:
    episode = played.episode

    def output(ids: list[int], messages: list[Message], part: slice) -> AgentLoopOutput:
        return AgentLoopOutput(
            prompt_ids=ids,
            response_ids=episode.completion_ids[part],
            response_mask=[int(own) for own in episode.mask[part]],
            response_logprobs=None if episode.logps is None else episode.logps[part],
            reward_score=reward["score"],
            num_turns=1 + len(episode.messages),
            metrics=metrics,
            extra_fields={
                **_VERL_FIELDS,
                **extra_fields,
                "reward_extra_info": dict(reward),
                PROMPT_MESSAGES: messages,
                TRANSCRIPT: None,
                "done": episode.done,
            },
        )

    if not episode.contexts:
        outputs = [output(played.prompt_ids, prompt, slice(None))]
    else:
        ends = [*episode.turns[1:], len(episode.completion_ids)]
        outputs = [
            output(context.ids, context.messages, slice(start, end))
            for context, start, end in zip(episode.contexts, episode.turns, ends, strict=True)
            if start < end
        ]
    outputs[-1].extra_fields[TRANSCRIPT] = episode.messages
    return outputs if episode.contexts else outputs[0]
