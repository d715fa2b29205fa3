"""One rollout in an environment, for a host whose server samples one conversation at a time.

verl plays many rollouts in one event loop; environments are blocking Python, so they run in threads (`Worlds`). Who
says what when is in `evaluation.conversation.Rollout`, as for every host.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from scgrpo.errors import ConfigError, DataError
from scgrpo.evaluation.conversation import Chat, Rollout, Sampled
from scgrpo.integrations.verl.verdicts import DEADLINE_S, checked
from scgrpo.tasks.base import Message, Verdict
from scgrpo.tasks.environment import Environment, EnvironmentTask, Episode, Step, close

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


# (token ids so far, most new tokens) -> a turn
Sample = Callable[[list[int], int], Awaitable[Sampled]]


class Worlds:
    """The environments of a task in this process, and the threads they live in: as many as the task's `max_parallel`,
    which is how many may be alive; without one, any number may be, in a single thread.

    Args:
        deadline_s: wall-clock seconds for one call of an environment, waiting for its thread included. A call that
            takes longer ends its rollout with the verdict `timeout`; its thread is left behind.
    """

    def __init__(self, task: EnvironmentTask, deadline_s: float = DEADLINE_S) -> None:
        self.task, self.deadline_s = task, deadline_s
        self._threads = self._new_threads()
        self._slots: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    @asynccontextmanager
    async def environment(self, row: Mapping[str, Any]) -> AsyncIterator[Environment]:
        """A fresh one, closed at the end. Waits until another one may be alive.

        Raises:
            DataError: the row lacks a column.
            TimeoutError: making it takes too long.
        """
        if self.task.max_parallel is None:
            async with self._opened(row) as environment:
                yield environment
        else:
            async with self._semaphore(self.task.max_parallel), self._opened(row) as environment:
                yield environment

    @asynccontextmanager
    async def _opened(self, row: Mapping[str, Any]) -> AsyncIterator[Environment]:
        environment = await self.run(lambda: next(self.task.environments([row])))
        try:
            yield environment
        finally:
            try:
                await self.run(lambda: close(environment))
            except TimeoutError:
                logger.warning("An environment of task %r could not be closed in time.", self.task.name)

    async def run(self, call: Callable[[], _Result]) -> _Result:
        """Call it in one of the threads.

        Raises:
            TimeoutError: it takes too long.
        """
        future = asyncio.get_running_loop().run_in_executor(self._threads, call)
        try:
            return await asyncio.wait_for(future, self.deadline_s)
        except TimeoutError:
            # What hangs keeps its thread; others must not wait behind it for ever.
            self._threads = self._new_threads()
            raise TimeoutError(f"an environment did not answer within {self.deadline_s:g} s") from None

    def _new_threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.task.max_parallel or 1, thread_name_prefix="scgrpo-environment")

    def _semaphore(self, size: int) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        if self._slots is None or self._slots[0] is not loop:
            self._slots = (loop, asyncio.Semaphore(size))
        return self._slots[1]


_worlds: dict[int, Worlds] = {}
_worlds_lock = threading.Lock()


def worlds_of(task: EnvironmentTask) -> Worlds:
    """Those of a task that this process keeps (`verdicts.opened_task`)."""
    with _worlds_lock:
        found = _worlds.get(id(task))
        if found is None or found.task is not task:
            found = _worlds[id(task)] = Worlds(task)
        return found


@dataclass(frozen=True)
class Played:
    """A rollout that is over, and the token ids of its first prompt."""

    prompt_ids: list[int]
    episode: Episode


async def play(
    worlds: Worlds,
    row: Mapping[str, Any],
    prompt: list[Message],
    chat: Chat,
    sample: Sample,
    *,
    max_tokens: int,
    max_prompt_tokens: int,
) -> Played:
    """Play one rollout.

    Args:
        row: columns from which the task makes the environment.
        prompt: messages before the first action.
        max_tokens: of the completion: all turns together, observations included; at least 2.
        max_prompt_tokens: of the first prompt and, where each turn has its own, of every one: a rollout whose next
            prompt is longer is cut off.

    Raises:
        ConfigError: no room for an action; a chat template that does not append.
        DataError: a first prompt that is too long; a row that the environment cannot be made of.
        TimeoutError: making the environment takes too long.
    """
    task = worlds.task
    if max_tokens < 2 or task.max_turns < 1:
        raise ConfigError(
            f"{max_tokens} tokens, {task.max_turns} turns: no room for an action.",
            "Allow at least two tokens (data.max_response_length) and one turn.",
        )
    async with worlds.environment(row) as environment:
        rollout = Rollout.start(task, row, environment, prompt, chat)
        if len(rollout.prompt_ids) > max_prompt_tokens:
            raise DataError(
                f"The prompt of {row.get('problem_id')!r} has {len(rollout.prompt_ids)} tokens, more than "
                f"{max_prompt_tokens}.",
                "Raise data.max_prompt_length, or set data.filter_overlong_prompts=True.",
            )
        going_on = True
        while going_on:
            room = max_tokens - len(rollout.ids)
            turn = await sample(rollout.context_ids, min(room, task.max_action_tokens or room))
            if not turn.ids:
                raise DataError("The server sampled no token.", "Look for an aborted request in its log.")
            going_on = await _answered(worlds, rollout, turn.up_to(room), max_tokens, max_prompt_tokens)
        verdict = await _verdict(worlds, rollout)
    return Played(rollout.prompt_ids, rollout.episode(checked(verdict, task.name)))


async def _answered(worlds: Worlds, rollout: Rollout, turn: Sampled, max_tokens: int, max_prompt_tokens: int) -> bool:
    """Take a turn and let the environment answer; whether there is another one."""
    action = rollout.act(turn)
    if action is None:
        return False
    try:
        step = await worlds.run(lambda: rollout.answer(action))
    except TimeoutError as error:
        rollout.failure, step = Verdict.timeout(str(error)), Step("")
    return rollout.observe(step, max_tokens, worlds.task.max_turns, max_prompt_tokens) is not None


async def _verdict(worlds: Worlds, rollout: Rollout) -> Verdict:
    if rollout.failure is not None:  # the thread may still be in the environment
        return rollout.failure
    try:
        return await worlds.run(rollout.verdict)
    except TimeoutError as error:
        return Verdict.timeout(str(error))
