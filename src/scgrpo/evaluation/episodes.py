"""Many rollouts in environments at once: the model's turns, the environments' answers, one episode per rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from scgrpo.errors import ConfigError, DataError
from scgrpo.evaluation.conversation import Chat, Rollout, Sampled
from scgrpo.tasks.base import Message
from scgrpo.tasks.environment import EnvironmentTask, Episode, closing

# (rollouts still playing, tokens added to each since its last turn, max_new_tokens) -> their next turns
SampleTurn = Callable[[Sequence[int], Sequence[Sequence[int]], int], list[Sampled]]
# number of conversations -> what samples their turns
NewSampler = Callable[[int], SampleTurn]


@contextmanager
def in_step(
    new_sampler: NewSampler, most: Callable[[int], int], idle: Callable[[int], object]
) -> Iterator[NewSampler]:
    """Samplers of processes that can only sample together, because they share weights or a server: conversations end
    after different numbers of turns, so whoever has none left keeps the others company until nobody has.

    Args:
        most: a number of each process -> the largest, on each. A collective call.
        idle: max_new_tokens -> takes part in a turn of the others.
    """

    def together(num_rows: int) -> SampleTurn:
        sample_turn = new_sampler(num_rows)
        return lambda rows, added, max_new_tokens: sample_turn(rows, added, most(max_new_tokens))

    yield together
    while longest := most(0):
        idle(longest)


def play(
    task: EnvironmentTask,
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[list[Message]],
    chat: Chat,
    new_sampler: NewSampler,
    max_tokens: int,
    max_prompt_tokens: int | None = None,
) -> tuple[list[list[int]], list[Episode]]:
    """One episode per row, as many at once as the task allows: each turn is one call of a sampler for those playing.

    Args:
        rows: columns from which the task makes the environments.
        prompts: messages before the first action.
        chat: shared by calls, it renders each observation once.
        new_sampler: makes what samples their turns.
        max_tokens: of a completion, observations included; at least 2.
        max_prompt_tokens: where each turn has a prompt of its own: a rollout whose next one is longer is cut off.

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
            _play_to_the_end(task, rollouts, new_sampler, (max_tokens, max_prompt_tokens), each)
            verdicts = list(each(Rollout.verdict, rollouts))
        prompt_ids += [rollout.prompt_ids for rollout in rollouts]
        episodes += map(Rollout.episode, rollouts, verdicts)
    return prompt_ids, episodes


def _opened(
    task: EnvironmentTask,
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[list[Message]],
    chat: Chat,
    stack: ExitStack,
) -> list[Rollout]:
    """Rollouts before their first turn; the stack will close their environments."""
    rollouts = []
    opening: tuple[list[Message] | None, str, list[int]] = (None, "", [])
    for row, environment, prompt in zip(rows, task.environments(rows), prompts, strict=True):
        stack.enter_context(closing(environment))
        if prompt != opening[0]:  # the rollouts of a group follow each other
            text = chat.render(prompt)
            opening = (prompt, text, chat.encode(text))
        rollouts.append(Rollout.start(task, row, environment, prompt, chat, opening[1:]))
    return rollouts


def _play_to_the_end(
    task: EnvironmentTask,
    rollouts: Sequence[Rollout],
    new_sampler: NewSampler,
    limits: tuple[int, int | None],
    each: Callable[..., Iterable[Any]],
) -> None:
    """Args: `limits` are tokens of a completion and of a prompt; `each` maps a function over several arguments,
    perhaps in threads."""
    max_tokens, max_prompt_tokens = limits
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
            action = rollouts[index].act(turn.up_to(left))
            if action is not None:
                acting[index] = action
        steps = list(each(Rollout.answer, [rollouts[index] for index in acting], acting.values()))
        added = {}
        for index, step in zip(acting, steps, strict=True):
            more = rollouts[index].observe(step, max_tokens, task.max_turns, max_prompt_tokens)
            if more is not None:
                added[index] = more
