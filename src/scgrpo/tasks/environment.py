"""Tasks of many turns: the model writes an action, an environment answers, until it says that it is done.

    completion = action, observation, action, observation, ..., action

Actions are the model's own tokens; observations are in the completion too, but the loss leaves them out.
"""

from __future__ import annotations

import logging
import math
import reprlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from scgrpo.errors import ConfigError, DataError, ScgrpoError, ShapeError
from scgrpo.tasks.base import Completion, Message, Status, Task, Verdict

logger = logging.getLogger(__name__)

# Column under which a reward function finds the episode of a rollout.
EPISODE = "episode"

# What a broken environment may raise: a game may also end the process it thinks is its own.
FAILURES = (Exception, SystemExit)
_DETAIL_CHARS = 500


# How the turns of a rollout are prompted: one growing conversation, or each by a prompt of its own.
Prompting = Literal["concat", "per_step"]


class Step(NamedTuple):
    """An environment's answer to an action. `observation` is not shown where `done`: nobody is left to read it."""

    observation: str
    done: bool = False


class Environment(Protocol):
    """The world of one rollout, made for it and used once. If it has a method `close`, it is called when the rollout
    is over and has its verdict, however that came about."""

    def step(self, action: str) -> Step:
        """The answer to what the model wrote in one turn, without its end token. Never raises for a bad action, and
        comes back: nothing here ends a call that hangs."""
        ...

    def verdict(self) -> Verdict:
        """Of the state it is in: also where the rollout was cut off before it was done."""
        ...


class Context(NamedTuple):
    """The prompt of one turn: messages, and their token ids as rendered for generation."""

    messages: list[Message]
    ids: list[int]


@dataclass(frozen=True)
class Episode:
    """One rollout in an environment.

    Attributes:
        messages: what was said after the prompt, in turn; the first one is the model's.
        completion_ids: their tokens, the chat template's between them included; with a prompt per step, those of the
            actions alone. One that is not done never ends with an end token: it is a truncated completion to
            everything that looks at its last token.
        mask: True for the model's own tokens, end tokens included.
        turns: position in `completion_ids` of the first token of each action.
        done: the environment said so. Otherwise a turn limit or the token budget cut the rollout off.
        verdict: of the environment's last state.
        contexts: with a prompt per step, that of each action; else empty.
        logps: log-probs of the tokens under what sampled them, 0 for those the model did not write; None where the
            sampler does not give them.
    """

    messages: list[Message]
    completion_ids: list[int]
    mask: list[bool]
    turns: list[int]
    done: bool
    verdict: Verdict
    contexts: list[Context] = field(default_factory=list)
    logps: list[float] | None = None


class EnvironmentTask(Task):
    """A task whose completions are conversations with an environment.

    Attributes:
        max_turns: actions per rollout; a rollout that is not done by then is cut off.
        max_action_tokens: of one action, its end token included; None: as many as the completion may have. A
            rollout whose action gets no end token is cut off.
        max_parallel: environments that may be alive at once, one thread each; further rollouts wait for their turn.
            None: as many as there are rollouts, one after the other in one thread.
        prompting: "concat": a turn's prompt is all that was said before it, and the rollout is one sequence.
            "per_step": each turn has a prompt of its own (`step_prompt`), which may forget, and the rollout is as
            many sequences, which share its advantage.
        observer: role of the messages that hold observations.
    """

    max_turns: int
    max_action_tokens: int | None = None
    max_parallel: int | None = None
    prompting: Prompting = "concat"
    observer: str = "user"

    @abstractmethod
    def environment(self, row: Mapping[str, Any]) -> Environment:
        """A fresh environment for one rollout of a row.

        Raises:
            KeyError: the row lacks a column.
        """

    def step_prompt(
        self, row: Mapping[str, Any], history: Sequence[tuple[str, str]], observation: str
    ) -> list[Message]:
        """The prompt of a turn after the first one, where each turn has its own.

        Args:
            row: whose `prompt` is that of the first turn.
            history: for each turn before, the observation it answered ("" for the first: it is in the row's prompt)
                and the action.
            observation: the one to answer.

        Raises:
            ConfigError: the task has none.
        """
        raise ConfigError(f"Task {self.name!r} has no prompts per step.", 'Set prompting="concat".')

    def verify(self, completions: Sequence[Completion], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """Verdicts of transcripts: their actions are taken again, in fresh environments. 0 for a transcript that no
        rollout could have: other observations, or words after the end.

        A rollout that has just been played brings its verdict along (`Episode`) and is not played again.

        Raises:
            ShapeError: different numbers of completions and rows.
            DataError: a row lacks a column.
        """
        if len(completions) != len(rows):
            raise ShapeError(f"{len(completions)} completions for {len(rows)} rows.", "Give one row per completion.")
        verdicts = []
        for completion, environment in zip(completions, self.environments(rows), strict=True):
            with closing(environment):
                verdicts.append(replayed(environment, as_messages(completion), self.observer))
        return verdicts

    def environments(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Environment]:
        """A fresh environment for each row. In place of one that cannot be made is one that is broken: it costs its
        own rollout.

        Raises:
            DataError: a row lacks a column.
            ScgrpoError: the task's own words that it cannot make any.
        """
        for index, row in enumerate(rows):
            try:
                environment = self.environment(row)
            except KeyError as error:
                raise DataError(
                    f"Row {index} has no column {error}.", f"Take rows from the task {self.name!r} itself."
                ) from error
            except ScgrpoError:
                raise
            except FAILURES as error:
                environment = _Unmade(error)
            yield environment


class _Unmade:
    """In place of an environment that could not be made."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def step(self, action: str) -> Step:
        raise self._error

    def verdict(self) -> Verdict:
        raise self._error


def as_messages(completion: Completion) -> list[Message]:
    """A transcript; text stands for a single action."""
    return [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)


def actions(completion: Completion) -> list[str]:
    """What the model wrote, turn by turn."""
    return [message["content"] for message in as_messages(completion) if message["role"] == "assistant"]


def replayed(environment: Environment, messages: Sequence[Message], observer: str) -> Verdict:
    """The verdict after the actions of a transcript; 0 if the environment answers otherwise than it says."""
    wrong = Verdict(0.0, detail="not a transcript of this environment")
    expected: Message | None = None
    done = False
    try:
        for message in messages:
            if message["role"] == "assistant":
                if done or expected is not None:
                    return wrong
                observation, done = answer_of(environment, message["content"])
                expected = None if done else {"role": observer, "content": observation}
            elif message != expected:
                return wrong
            else:
                expected = None
        return verdict_of(environment)
    except FAILURES as error:  # broken is not wrong
        return broken(error)


def answer_of(environment: Environment, action: str) -> Step:
    """Its answer to an action. What no tokenizer and no file takes (lone surrogates) becomes its escape.

    Raises:
        TypeError: it is no `Step`, or has no text.
    """
    answer: Any = environment.step(action)
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[0], str):
        raise TypeError(f"step() gave {reprlib.repr(answer)}, not Step(observation, done) with a text")
    return Step(answer[0].encode("utf-8", "backslashreplace").decode(), bool(answer[1]))


def verdict_of(environment: Environment) -> Verdict:
    """Its verdict; an error where the score is no finite number.

    Raises:
        TypeError: it is none.
    """
    verdict: Any = environment.verdict()
    if not isinstance(verdict, Verdict):
        raise TypeError(f"verdict() gave {reprlib.repr(verdict)}, not a Verdict")
    if verdict.status is Status.GRADED and not math.isfinite(verdict.score):
        return Verdict.error(f"the score is {verdict.score}")
    return verdict


@contextmanager
def closing(environment: Environment) -> Iterator[None]:
    """Closes an environment at the end, if it can be closed. One that fails to close costs nobody a verdict."""
    try:
        yield
    finally:
        close(environment)


def close(environment: Environment) -> None:
    """What `closing` does at the end."""
    own = getattr(environment, "close", None)
    if own is not None:
        try:
            own()
        except FAILURES as error:
            logger.warning("An environment could not be closed: %r.", error)


def broken(error: BaseException) -> Verdict:
    """The verdict where the environment itself failed."""
    make = Verdict.timeout if isinstance(error, TimeoutError) else Verdict.error
    return make(f"the environment raised {error!r}"[:_DETAIL_CHARS])


def scripted(environment: Environment, player: Callable[[str | None], str], observer: str = "user") -> list[Message]:
    """The transcript of a scripted player, until the environment is done.

    Args:
        player: observation of the turn before (None at first) -> action.
    """
    messages: list[Message] = []
    observation, done = None, False
    while not done:
        if observation is not None:
            messages.append({"role": observer, "content": observation})
        messages.append({"role": "assistant", "content": player(observation)})
        observation, done = answer_of(environment, messages[-1]["content"])
    return messages
