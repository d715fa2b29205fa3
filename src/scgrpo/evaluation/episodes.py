"""Many rollouts in environments at once: the model's turns, the environments' answers, one episode per rollout."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from scgrpo.errors import ConfigError, DataError
from scgrpo.tasks.base import Message, Verdict
from scgrpo.tasks.environment import Context, Environment, EnvironmentTask, Episode, Step, broken, closing

logger = logging.getLogger(__name__)

# (rollouts still playing, tokens added to each since its last turn, max_new_tokens) -> their next turns' tokens
SampleTurn = Callable[[Sequence[int], Sequence[Sequence[int]], int], list[list[int]]]


@dataclass
class Chat:
    """Conversations as the chat template renders them, turn by turn.

    A turn's text is rendered once for each observation: what the template puts between an action and the next one
    (end token, observation, generation prompt) depends on nothing else. `check` makes sure of that.

    Attributes:
        ends: ids of end tokens.
        template_kwargs: passed to the chat template.
        chat_template: in place of the tokenizer's own.
    """

    tokenizer: Any
    ends: set[int]
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    _continuations: dict[tuple[str, str], tuple[str, list[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.chat_template or getattr(self.tokenizer, "chat_template", None)):
            raise DataError("An environment is a chat, but the tokenizer has no chat template.", "Use a chat model.")

    def render(self, messages: Sequence[Message], *, generate: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=generate,
            chat_template=self.chat_template,
            **self.template_kwargs,
        )

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def context(self, messages: list[Message]) -> Context:
        return Context(messages, self.encode(self.render(messages)))

    def action(self, turn: Sequence[int]) -> str:
        """The text of a turn's tokens, without its end token. Other control tokens stay visible."""
        return self.tokenizer.decode(turn[:-1] if turn and turn[-1] in self.ends else turn, skip_special_tokens=False)

    def continuation(self, conversation: Sequence[Message]) -> tuple[str, list[int]]:
        """What comes after the last action's own tokens and its end token, up to the next action: text and ids.

        Args:
            conversation: prompt and messages up to and with an observation. The text includes the end token.

        Raises:
            ConfigError: the template does not append: with the observation, what came before it is rendered
                otherwise, or the action is not closed by an end token.
        """
        *before, action, observation = conversation
        key = (observation["role"], observation["content"])
        if key not in self._continuations:
            so_far, whole = self.render(before), self.render(conversation)
            rest = whole[len(so_far) :].lstrip()
            said = action["content"].strip()
            if not whole.startswith(so_far) or not rest.startswith(said):
                raise _not_appending(so_far + said, whole)
            text = rest[len(said) :]
            ids = self.encode(text)
            if not ids or ids[0] not in self.ends:
                raise ConfigError(
                    f"The chat template does not close an assistant's turn with an end token, but with {text!r}.",
                    "Use a chat model whose template does, and its end token as eos_token.",
                )
            self._continuations[key] = text, ids[1:]
        return self._continuations[key]

    def check(self, conversation: Sequence[Message], pieces: Sequence[str]) -> None:
        """Make sure that the text that was sampled and appended is what the whole conversation renders to.

        White space is not compared: templates may trim what a model wrote.

        Args:
            pieces: prompt, action, continuation, action, ... as they were put together.

        Raises:
            ConfigError: it is not.
        """
        whole = self.render(conversation, generate=conversation[-1]["role"] != "assistant")
        so_far = "".join(pieces)
        if not "".join(whole.split()).startswith("".join(so_far.split())):
            raise _not_appending(so_far, whole)


def _not_appending(so_far: str, whole: str) -> ConfigError:
    return ConfigError(
        f"The chat template does not only append: a conversation that was {so_far[-200:]!r} renders to "
        f"{whole[-400:]!r}.",
        "Environments need a template that renders earlier turns as they were sampled (one that drops their thinking "
        "does not): set another chat template, or chat_template_kwargs.",
    )


@dataclass
class _Rollout:
    """One conversation while it is played.

    Attributes:
        step_prompt: history and observation -> the next turn's prompt, if each turn has its own.
        pieces: the text so far, as it was put together.
        history: for each turn, the observation it answered and the action.
    """

    chat: Chat
    environment: Environment
    observer: str
    prompt: list[Message]
    prompt_ids: list[int]
    pieces: list[str]
    step_prompt: Callable[[Sequence[tuple[str, str]], str], list[Message]] | None
    contexts: list[Context] = field(default_factory=list)
    history: list[tuple[str, str]] = field(default_factory=list)
    observation: str = ""
    messages: list[Message] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    done: bool = False
    failure: Verdict | None = None

    def act(self, turn: list[int]) -> str | None:
        """Take a turn's tokens, and return the action; None: it was cut off, and so is the rollout."""
        self.turns.append(len(self.ids))
        self._append(turn, own=True)
        action = self.chat.action(turn)
        self.messages.append({"role": "assistant", "content": action})
        self.history.append((self.observation, action))
        self.pieces.append(action)
        return action if turn and turn[-1] in self.chat.ends else None

    def answer(self, action: str) -> Step:
        """The environment's. Rollouts may do this at the same time, each in a thread."""
        try:
            return self.environment.step(action)
        except Exception as error:  # noqa: BLE001 (an environment may be anything; broken is not wrong)
            logger.warning("An environment raised %r on the action %r; its rollout has no verdict.", error, action)
            self.failure = broken(error)
            return Step("")

    def observe(self, step: Step, max_tokens: int, max_turns: int) -> list[int] | None:
        """Take an answer, and return the tokens to add before the next turn, or its whole prompt where each has its
        own; None: the rollout is over."""
        self.observation, self.done = step
        if self.done or self.failure is not None:
            return None
        self.messages.append({"role": self.observer, "content": self.observation})
        room = max_tokens - len(self.ids)
        if self.step_prompt is not None:
            if room <= 0 or len(self.turns) >= max_turns:
                return None
            self.contexts.append(self.chat.context(self.step_prompt(self.history, self.observation)))
            return self.contexts[-1].ids
        text, added = self.chat.continuation([*self.prompt, *self.messages])
        self.pieces.append(text)
        self._append(added[:room], own=False)
        return added if len(added) < room and len(self.turns) < max_turns else None

    def _append(self, ids: Sequence[int], *, own: bool) -> None:
        self.ids += ids
        self.mask += [own] * len(ids)

    def verdict(self) -> Verdict:
        try:
            return self.failure or self.environment.verdict()
        except Exception as error:  # noqa: BLE001
            return broken(error)

    def episode(self, verdict: Verdict) -> Episode:
        if self.step_prompt is None:
            self.chat.check([*self.prompt, *self.messages], self.pieces)
        if not self.done and len(self.ids) > 1 and self.ids[-1] in self.chat.ends:
            # No room for an observation after the last action: without its end it is seen to be cut off.
            self.ids.pop()
            self.mask.pop()
        return Episode(self.messages, self.ids, self.mask, self.turns, self.done, verdict, self.contexts)


def play(
    task: EnvironmentTask,
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[list[Message]],
    chat: Chat,
    new_sampler: Callable[[int], SampleTurn],
    max_tokens: int,
) -> tuple[list[list[int]], list[Episode]]:
    """One episode per row, as many at once as the task allows: each turn is one call of a sampler for those playing.

    Args:
        rows: columns from which the task makes the environments.
        prompts: messages before the first action.
        chat: shared by calls, it renders each observation once.
        new_sampler: number of conversations -> what samples their turns.
        max_tokens: of a completion, observations included; at least 2.

    Returns:
        The prompts' token ids, and the episodes.

    Raises:
        ConfigError: max_tokens or max_turns too small; a chat template that does not append; a task without prompts
            per step that is set to have them.
        DataError: a prompt that is no chat; a row without a column that its environment needs.
    """
    if max_tokens < 2 or task.max_turns < 1:
        raise ConfigError(
            f"{max_tokens} tokens, {task.max_turns} turns: no room for an action.",
            "Allow at least two tokens (max_completion_length) and one turn.",
        )
    if any(isinstance(prompt, str) for prompt in prompts):
        raise DataError("An environment's prompt is a string.", "Give a list of chat messages.")
    prompt_ids: list[list[int]] = []
    episodes: list[Episode] = []
    at_once = task.max_parallel or len(rows)
    for first in range(0, len(rows), at_once):
        part = slice(first, first + at_once)
        with ExitStack() as stack:
            each: Callable[..., Iterable[Any]] = map
            if task.max_parallel is not None:
                threads = ThreadPoolExecutor(at_once)
                # Not waiting: after Ctrl-C, a step may still wait for a server that only `task.close()` ends.
                stack.callback(threads.shutdown, wait=False, cancel_futures=True)
                each = threads.map
            rollouts = _opened(task, rows[part], prompts[part], chat, stack)
            _play_to_the_end(task, rollouts, new_sampler, max_tokens, each)
            verdicts = list(each(_Rollout.verdict, rollouts))
        prompt_ids += [rollout.prompt_ids for rollout in rollouts]
        episodes += map(_Rollout.episode, rollouts, verdicts)
    return prompt_ids, episodes


def _opened(
    task: EnvironmentTask,
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[list[Message]],
    chat: Chat,
    stack: ExitStack,
) -> list[_Rollout]:
    """Rollouts before their first turn; the stack will close their environments."""
    rollouts = []
    opening: tuple[list[Message] | None, str, list[int]] = (None, "", [])
    for row, environment, prompt in zip(rows, task.environments(rows), prompts, strict=True):
        stack.enter_context(closing(environment))
        if prompt != opening[0]:  # the rollouts of a group follow each other
            text = chat.render(prompt)
            opening = (prompt, text, chat.encode(text))
        ids = list(opening[2])
        own = partial(task.step_prompt, row) if task.prompting == "per_step" else None
        contexts = [] if own is None else [Context(prompt, ids)]
        rollouts.append(_Rollout(chat, environment, task.observer, prompt, ids, [opening[1]], own, contexts))
    return rollouts


def _play_to_the_end(
    task: EnvironmentTask,
    rollouts: Sequence[_Rollout],
    new_sampler: Callable[[int], SampleTurn],
    max_tokens: int,
    each: Callable[..., Iterable[Any]],
) -> None:
    """Args: `each` maps a function over several arguments, perhaps in threads."""
    added = {index: rollout.prompt_ids for index, rollout in enumerate(rollouts)}
    sample_turn = new_sampler(len(rollouts))
    while added:
        room = [max_tokens - len(rollouts[index].ids) for index in added]
        longest = min(max(room), task.max_action_tokens or max_tokens)
        playing: Sequence[int] = list(added)
        if task.prompting == "per_step":  # nothing is kept from one turn to the next
            sample_turn, playing = new_sampler(len(added)), range(len(added))
        turns = sample_turn(playing, list(added.values()), longest)
        acting: dict[int, str] = {}
        for index, left, turn in zip(added, room, turns, strict=True):
            action = rollouts[index].act(turn[:left])
            if action is not None:
                acting[index] = action
        steps = list(each(_Rollout.answer, [rollouts[index] for index in acting], acting.values()))
        added = {}
        for index, step in zip(acting, steps, strict=True):
            more = rollouts[index].observe(step, max_tokens, task.max_turns)
            if more is not None:
                added[index] = more
