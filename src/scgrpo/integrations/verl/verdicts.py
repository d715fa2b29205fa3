"""Tasks and their verdicts in verl's worker processes.

verl grades in threads of a few reward workers and plays in its agent-loop workers. Each such process makes a task
once (`opened_task`), with its verifier processes, sandbox or servers, and keeps it until the process ends.

What verl carries beside a reward (`reward_fields`), under `extra_fields["reward_extra_info"]`:

    score        the task's score; 0.0 where there is no verdict, as verl needs a number
    acc          1.0 if solved, else 0.0. Without a verdict 0.0 too: verl's group filter wants a number, and its
                 validation counts rollouts that failed as 0 by itself
    acc_graded   the same, and None without a verdict: verl's validation leaves None out of means
    graded       1.0 or 0.0; its mean is the share of verdicts
    verdict      graded, error or timeout
    detail       of the verdict, cut
    problem_id   of the row: verl gives prompts new ids, and validations are compared by problem

Broken is not wrong: a trainer has to leave rollouts whose verdict is not `graded` out of their groups. verl's metrics
pass over texts.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from scgrpo.errors import ConfigError
from scgrpo.integrations.verl.data import Problem
from scgrpo.tasks.base import Status, Task, Verdict
from scgrpo.tasks.environment import EnvironmentTask
from scgrpo.tasks.registry import get_task

logger = logging.getLogger(__name__)

# What no verifier of ours needs: the last resort where one hangs that should not.
DEADLINE_S = 1800.0
_DETAIL_CHARS = 500

_tasks: dict[tuple[str, str], Task] = {}
_tasks_lock = threading.Lock()
_environments_lock = threading.Lock()


def opened_task(problem: Problem, overrides: Mapping[str, Any] | None = None) -> Task:
    """The task of a problem, one per process and options.

    Args:
        overrides: options by the names of tasks, in place of those of the data set: what depends on the machine, as
            `{"code": {"num_workers": 16}}`.

    Raises:
        ConfigError, MissingExtraError: it cannot be made.
    """
    own = plain((overrides or {}).get(problem.task) or {})
    if not isinstance(own, dict):
        raise ConfigError(
            f"task_options has {own!r} for the task {problem.task!r}.",
            f"Give its options by its name: {{{problem.task}: {{option: value}}}}.",
        )
    options = {**problem.options, **own}
    key = (problem.task, json.dumps(options, sort_keys=True))
    with _tasks_lock:
        if key not in _tasks:
            _tasks[key] = get_task(problem.task, **options)
        return _tasks[key]


def plain(settings: Any) -> Any:
    """OmegaConf's mappings and lists as those of Python."""
    if isinstance(settings, Mapping):
        return {key: plain(value) for key, value in settings.items()}
    if isinstance(settings, Sequence) and not isinstance(settings, str):
        return [plain(value) for value in settings]
    return settings


def graded(task: Task, completion: str, row: Mapping[str, Any], deadline_s: float = DEADLINE_S) -> Verdict:
    """The verdict on one completion; whatever goes wrong is a verdict too. May be called from several threads.

    A task with environments grades one completion at a time; `Task.verify` of others must be safe to call at once.
    """

    def verify() -> Verdict:
        if not isinstance(task, EnvironmentTask):
            return task.verify([completion], [row])[0]
        with _environments_lock:
            return task.verify([completion], [row])[0]

    return checked(within(deadline_s, verify), task.name)


def within(deadline_s: float, verify: Callable[[], Verdict]) -> Verdict:
    """A verdict, or that it takes too long or raises. A thread that hangs is left behind."""
    found: Future[Verdict] = Future()

    def run() -> None:
        try:
            found.set_result(verify())
        except BaseException as error:  # noqa: BLE001 (handed on)
            found.set_exception(error)

    threading.Thread(target=run, name="scgrpo-grading", daemon=True).start()
    try:
        return found.result(timeout=deadline_s)
    except TimeoutError as error:
        return Verdict.timeout(str(error) or f"no verdict within {deadline_s:g} s")
    except Exception as error:  # noqa: BLE001 (a verifier may raise anything)
        return failed(error)


def failed(error: Exception) -> Verdict:
    """The verdict where something raised."""
    return Verdict.error(f"{type(error).__name__}: {error}")


def checked(verdict: Verdict, name: str) -> Verdict:
    """The verdict, if its score is a number; what has none is logged."""
    if verdict.status is Status.GRADED and not math.isfinite(verdict.score):
        verdict = Verdict.error(f"the score is {verdict.score}, not a finite number")
    if verdict.status is not Status.GRADED:
        logger.warning("A completion of task %r has no verdict: %s (%s)", name, verdict.status, verdict.detail)
    return verdict


def reward_fields(verdict: Verdict, success_threshold: float, problem_id: Any) -> dict[str, Any]:
    """A verdict as verl carries it: the same keys whatever it is."""
    is_graded = verdict.status is Status.GRADED
    solved = float(is_graded and verdict.score >= success_threshold)
    return {
        "score": float(verdict.score) if is_graded else 0.0,
        "acc": solved,
        "acc_graded": solved if is_graded else None,
        "graded": float(is_graded),
        "verdict": verdict.status.value,
        "detail": verdict.detail[:_DETAIL_CHARS],
        "problem_id": str(problem_id),
    }
