"""A task's verifier in the form TRL calls reward functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scgrpo.errors import VerifierError
from scgrpo.tasks.base import Status, Task, Verdict
from scgrpo.tasks.environment import EPISODE, Episode

# After this many batches in a row without a single grade, the verifier is broken and not merely unlucky.
_MAX_UNGRADED_BATCHES = 3


class TaskReward:
    """A task's scores as rewards; a completion without a verdict gets None, which TRL leaves out of its group.

    Call it as TRL does: `reward(prompts=..., completions=..., **columns)`, with one value per completion in every
    column. Completions are strings or lists of messages, of which the last assistant message is graded; rollouts in
    an environment bring their verdicts along, in the column `episode`. The shares of verdicts that are errors and
    timeouts are logged as `verdicts/error_frac` and `verdicts/timeout_frac`.

    Attributes:
        __name__: the task's name; TRL's metrics are called after it.
        last_verdicts: verdicts of the latest call, in order.
        first_error: for each completion of the latest call the position of the token at which it became unsolvable;
            None for a correct one, -1 where it is not known. Only where the task has a method
            `first_errors(completions, rows)` that names words, and only for completions of one token per word (and
            perhaps an end token). In an environment it names an action, and the position is that of its first token.
            Searched for when it is read.

    Raises:
        VerifierError: three batches in a row in which nothing could be graded.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.__name__ = task.name
        self.last_verdicts: list[Verdict] = []
        self._ungraded_batches = 0
        self._last: tuple[list[Any], list[dict[str, Any]], Sequence[Sequence[int]] | None] = ([], [], None)
        self._first_error: list[int | None] | None = None

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        trainer_state: Any = None,
        environments: Sequence[Any] | None = None,
        **columns: Sequence[Any],
    ) -> list[float | None]:
        rows = [{"prompt": prompt} | {k: v[i] for k, v in columns.items()} for i, prompt in enumerate(prompts)]
        episodes: Sequence[Episode] | None = columns.get(EPISODE)
        if episodes is not None:
            graded: list[Any] = [episode.messages for episode in episodes]
            verdicts = [episode.verdict for episode in episodes]
        else:
            graded = [completion_text(completion) for completion in completions]
            verdicts = self.task.verify(graded, rows)
        self._last, self._first_error = (graded, rows, completion_ids), None
        self.last_verdicts = verdicts
        if log_metric is not None and verdicts:
            for status in (Status.ERROR, Status.TIMEOUT):
                log_metric(f"verdicts/{status}_frac", sum(v.status is status for v in verdicts) / len(verdicts))
        self._refuse_to_go_on_blind()
        return [v.score if v.status is Status.GRADED else None for v in verdicts]

    @property
    def first_error(self) -> list[int | None]:
        if not hasattr(self.task, "first_errors"):
            raise AttributeError(f"Task {self.task.name!r} cannot tell where completions go wrong.")
        if self._first_error is None:
            graded, rows, ids = self._last
            found = self.task.first_errors(graded, rows)
            lengths = [0] * len(graded) if ids is None else [len(own) for own in ids]
            self._first_error = [
                None if at is None else _position(at, completion, row.get(EPISODE), length)
                for at, completion, row, length in zip(found, graded, rows, lengths, strict=True)
            ]
        return self._first_error

    def _refuse_to_go_on_blind(self) -> None:
        if any(v.status is Status.GRADED for v in self.last_verdicts):
            self._ungraded_batches = 0
        elif self.last_verdicts:
            self._ungraded_batches += 1
        if self._ungraded_batches >= _MAX_UNGRADED_BATCHES:
            last = self.last_verdicts[-1]
            raise VerifierError(
                f"The verifier of task {self.task.name!r} grades nothing: no verdict in {self._ungraded_batches} "
                f"batches; the last one: {last.status} ({last.detail}).",
                "Nothing can be learned without rewards. Check the verifier with `scgrpo train --dry-run`.",
            )


def reward_function(task: Task) -> TaskReward:
    """The reward function of a task, for `GRPOTrainer(reward_funcs=[reward_function(task)])`."""
    return TaskReward(task)


def _position(at: int, completion: Any, episode: Episode | None, num_tokens: int) -> int:
    """The token at which an action starts, or which is a word of a completion of one token per word, perhaps with an
    end token; -1 if there is none."""
    if episode is not None:
        return episode.turns[at] if at < len(episode.turns) else -1
    num_words = len(completion.split(" ")) if completion else 0
    return at if at < num_tokens and num_tokens - num_words in (0, 1) else -1


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The text that is graded: the string itself, or the last assistant message's."""
    if isinstance(completion, str):
        return completion
    turns = [message for message in completion if message.get("role", "assistant") == "assistant"]
    content = turns[-1].get("content") if turns else None
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
    return content or ""
