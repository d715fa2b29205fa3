"""A conversation with an environment: how a chat template renders it turn by turn, and one rollout in play.

Nothing here samples: `evaluation.episodes` plays many rollouts at once, and a host that has a server plays each for
itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from scgrpo.errors import ConfigError, DataError
from scgrpo.tasks.base import Message, Verdict
from scgrpo.tasks.environment import (
    FAILURES,
    Context,
    Environment,
    EnvironmentTask,
    Episode,
    Step,
    answer_of,
    broken,
    verdict_of,
)

logger = logging.getLogger(__name__)

# Observations whose tokens are kept: about those of a batch, as the rollouts of a group often see the same.
_KEPT = 256


@dataclass
class Chat:
    """Conversations as the chat template renders them, turn by turn.

    A turn's text is rendered once for each of the last few hundred observations: what the template puts between an
    action and the next one (end token, observation, generation prompt) depends on nothing else. `check` makes sure of
    that.

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
            # White space at the action's end has been sampled already.
            text = rest[len(said) :].lstrip()
            ids = self.encode(text)
            if not ids or ids[0] not in self.ends:
                raise ConfigError(
                    f"The chat template does not close an assistant's turn with an end token, but with {text!r}.",
                    "Use a chat model whose template does, and its end token as eos_token.",
                )
            if len(self._continuations) >= _KEPT:
                self._continuations.clear()
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


class Sampled(NamedTuple):
    """Tokens of a turn, end token included, and their log-probs where the sampler gives them."""

    ids: list[int]
    logps: Sequence[float] | None = None

    def up_to(self, most: int) -> Sampled:
        """Its first tokens."""
        return Sampled(self.ids[:most], None if self.logps is None else self.logps[:most])


@dataclass
class Rollout:
    """One conversation while it is played: `act` and `observe` in turn, `answer` between them, until one of the first
    two returns None; then `verdict` and `episode`.

    Attributes:
        problem: what the log calls it.
        step_prompt: history and observation -> the next turn's prompt, if each turn has its own.
        pieces: the text so far, as it was put together.
        history: for each turn, the observation it answered and the action.
    """

    problem: str
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
    logps: list[float] | None = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    done: bool = False
    failure: Verdict | None = None

    @classmethod
    def start(
        cls,
        task: EnvironmentTask,
        row: Mapping[str, Any],
        environment: Environment,
        prompt: list[Message],
        chat: Chat,
        opening: tuple[str, list[int]] | None = None,
    ) -> Rollout:
        """Before its first turn.

        Args:
            opening: the prompt's text and ids, where they are known.
        """
        if opening is None:
            text = chat.render(prompt)
            opening = text, chat.encode(text)
        text, ids = opening[0], list(opening[1])
        own = partial(task.step_prompt, row) if task.prompting == "per_step" else None
        contexts = [] if own is None else [Context(prompt, ids)]
        problem = str(row.get("problem_id", "?"))
        return cls(problem, chat, environment, task.observer, prompt, ids, [text], own, contexts)

    @property
    def context_ids(self) -> list[int]:
        """What the next turn's tokens follow."""
        return [*self.prompt_ids, *self.ids] if self.step_prompt is None else self.contexts[-1].ids

    def act(self, turn: Sampled) -> str | None:
        """Take a turn's tokens, and return the action; None: it was cut off, and so is the rollout."""
        self.turns.append(len(self.ids))
        self._append(turn.ids, turn.logps, own=True)
        action = self.chat.action(turn.ids)
        self.messages.append({"role": "assistant", "content": action})
        self.history.append((self.observation, action))
        self.pieces.append(action)
        return action if turn.ids and turn.ids[-1] in self.chat.ends else None

    def answer(self, action: str) -> Step:
        """The environment's. Rollouts may do this at the same time, each in a thread."""
        try:
            return answer_of(self.environment, action)
        except FAILURES as error:  # broken is not wrong
            logger.warning(
                "The environment of problem %s raised %.500r on the action %.200r; its rollout has no verdict.",
                self.problem,
                error,
                action,
            )
            self.failure = broken(error)
            return Step("")

    def observe(
        self, step: Step, max_tokens: int, max_turns: int, max_prompt_tokens: int | None = None
    ) -> list[int] | None:
        """Take an answer, and return the tokens to add before the next turn, or its whole prompt where each has its
        own; None: the rollout is over.

        Args:
            max_prompt_tokens: a rollout whose next turn has a prompt of its own that is longer is cut off.
        """
        self.observation, self.done = step
        if self.done or self.failure is not None:
            return None
        self.messages.append({"role": self.observer, "content": self.observation})
        room = max_tokens - len(self.ids)
        if self.step_prompt is not None:
            if room <= 0 or len(self.turns) >= max_turns:
                return None
            context = self.chat.context(self.step_prompt(self.history, self.observation))
            if max_prompt_tokens is not None and len(context.ids) > max_prompt_tokens:
                logger.warning(
                    "Problem %s: the prompt of turn %d has %d tokens, more than %d: its rollout is cut off.",
                    self.problem,
                    len(self.turns) + 1,
                    len(context.ids),
                    max_prompt_tokens,
                )
                return None
            self.contexts.append(context)
            return context.ids
        text, added = self.chat.continuation([*self.prompt, *self.messages])
        self.pieces.append(text)
        shown = added[:room]
        self._append(shown, [0.0] * len(shown), own=False)
        return added if len(added) < room and len(self.turns) < max_turns else None

    def _append(self, ids: Sequence[int], logps: Sequence[float] | None, *, own: bool) -> None:
        self.ids += ids
        self.mask += [own] * len(ids)
        self.logps = None if self.logps is None or logps is None else [*self.logps, *map(float, logps)]

    def verdict(self) -> Verdict:
        try:
            return self.failure or verdict_of(self.environment)
        except FAILURES as error:
            logger.warning("The environment of problem %s has no verdict: it raised %.500r.", self.problem, error)
            return broken(error)

    def episode(self, verdict: Verdict) -> Episode:
        if self.step_prompt is None:
            self.chat.check([*self.prompt, *self.messages], self.pieces)
        if not self.done and len(self.ids) > 1 and self.ids[-1] in self.chat.ends:
            # No room for an observation after the last action: without its end it is seen to be cut off.
            self.ids.pop()
            self.mask.pop()
        logps = None if self.logps is None else self.logps[: len(self.ids)]
        return Episode(self.messages, self.ids, self.mask, self.turns, self.done, verdict, self.contexts, logps)
