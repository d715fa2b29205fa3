"""A task's verifier in the form TRL calls reward functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scgrpo.errors import VerifierError
from scgrpo.tasks.base import Status, Task, Verdict
from scgrpo.tasks.environment import EPISODE

# After this many batches in a row without a single grade, the verifier is broken and not merely unlucky.
_MAX_UNGRADED_BATCHES = 3


class TaskReward:
    """A task's scores as rewards; a completion without a verdict gets None, which TRL leaves out of its group.

    Call it as TRL does: `reward(prompts=..., completions=..., **columns)`, with one value per completion in every
    column. Completions are strings or lists of messages, of which the last assistant message is graded. The shares of
    verdicts that are errors and timeouts are logged as `verdicts/error_frac` and `verdicts/timeout_frac`.

    Attributes:
        __name__: the task's name; TRL's metrics are called after it.
        last_verdicts: verdicts of the latest call, in order.

    Raises:
        VerifierError: three batches in a row in which nothing could be graded.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.__name__ = task.name
        self.last_verdicts: list[Verdict] = []
        self._ungraded_batches = 0

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
        if EPISODE in columns:
            verdicts = [episode.verdict for episode in columns[EPISODE]]
        else:
            verdicts = self.task.verify([completion_text(completion) for completion in completions], rows)
        self.last_verdicts = verdicts
        if log_metric is not None and verdicts:
            for status in (Status.ERROR, Status.TIMEOUT):
                log_metric(f"verdicts/{status}_frac", sum(v.status is status for v in verdicts) / len(verdicts))
        self._refuse_to_go_on_blind()
        return [v.score if v.status is Status.GRADED else None for v in verdicts]

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


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The text that is graded: the string itself, or the last assistant message's."""
    if isinstance(completion, str):
        return completion
    turns = [message for message in completion if message.get("role", "assistant") == "assistant"]
    content = turns[-1].get("content") if turns else None
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
    return content or ""
