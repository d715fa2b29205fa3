"""One episode in AppWorld."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from scgrpo.errors import ConfigError, VerifierError
from scgrpo.tasks.appworld.client import ServerTimeoutError
from scgrpo.tasks.appworld.prompts import NO_CODE, code_of, cut
from scgrpo.tasks.appworld.server import Server
from scgrpo.tasks.appworld.servers import EXPERIMENT, ServerPool
from scgrpo.tasks.base import Verdict
from scgrpo.tasks.environment import Step

logger = logging.getLogger(__name__)

Reward = Literal["success", "score"]

# On top of the engine's own limit for a piece of code, which the code can catch and ignore.
_GRACE_S = 20.0
_INITIALIZE_TIMEOUT_S = 120.0
_CALL_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class EpisodeSettings:
    """What the episodes of a task have in common.

    Attributes:
        reward: `success`: 1 if all tests of the task pass; `score`: the share of them that do.
        max_observation_chars: of what a step shows.
        code_timeout_s: the engine's limit for one piece of code; the model sees that it ran out.
        wait_s: how long an episode waits for a server.
    """

    reward: Reward = "success"
    max_observation_chars: int = 10_000
    code_timeout_s: int = 60
    wait_s: float = 900.0


class AppWorldEnvironment:
    """The world of one rollout. It takes a server when its first code is run and gives it back when it is over.

    A server that dies or hangs ends the episode with an error or a timeout verdict that names the task.

    Attributes:
        task_id: of the benchmark.
    """

    def __init__(self, task_id: str, pool: ServerPool, settings: EpisodeSettings) -> None:
        self.task_id, self.pool, self.settings = task_id, pool, settings
        self._server: Server | None = None
        self._verdict: Verdict | None = None
        self._return: weakref.finalize[..., Any] | None = None

    def step(self, action: str) -> Step:
        """Run the action's code. Done when the code has called `complete_task`, or when the world is broken."""
        if self._verdict is not None:
            return Step("", done=True)
        code = code_of(action)
        if code is None:
            return Step(NO_CODE)
        try:
            server = self._world()
            limit = self.settings.code_timeout_s + _GRACE_S
            output = server.call("execute", limit, task_id=self.task_id, code=code)
            completed = server.call("task_completed", _CALL_TIMEOUT_S, task_id=self.task_id)
        except VerifierError as error:
            self._fail(error)
            return Step("", done=True)
        observation = cut(str(output), self.settings.max_observation_chars)
        if completed is True:
            self.verdict()
        return Step(observation, done=completed is True)

    def verdict(self) -> Verdict:
        """Of the task's own tests on the state the world is in. The episode is over: the server is given back."""
        if self._verdict is None:
            try:
                report = self.pool.judge(self.task_id, self._world())
                self._verdict = verdict_of(report, self.settings.reward)
            except VerifierError as error:
                self._fail(error)
        self.close()
        assert self._verdict is not None
        return self._verdict

    def close(self) -> None:
        """Give the server back. Calling it twice is harmless."""
        if self._return is not None:
            self._return()
        self._server = self._return = None

    def _world(self) -> Server:
        """The world, made when it is first needed; a second time if the first one fails, as nothing is lost by it."""
        if self._server is None:
            try:
                self._enter()
            except VerifierError as error:
                logger.warning("AppWorld: %s could not be entered, one more try: %s", self.task_id, error)
                self.close()
                self._enter()
        assert self._server is not None
        return self._server

    def _enter(self) -> None:
        server = self.pool.lease(self.settings.wait_s)
        # Also for an episode that nobody closes.
        self._return = weakref.finalize(self, self.pool.release, server)
        self._return.atexit = False  # the pool ends its servers then
        self._server = server
        server.call(
            "initialize",
            _INITIALIZE_TIMEOUT_S,
            task_id=self.task_id,
            experiment_name=EXPERIMENT,
            load_ground_truth=False,  # the judge's alone
            timeout_seconds=self.settings.code_timeout_s,
        )

    def _fail(self, error: VerifierError) -> None:
        logger.warning("AppWorld: %s is without a verdict: %s", self.task_id, error)
        timed_out = isinstance(error, ServerTimeoutError)
        self._verdict = (Verdict.timeout if timed_out else Verdict.error)(f"{self.task_id}: {error}")
        self.close()


def verdict_of(report: Mapping[str, Any], reward: Reward) -> Verdict:
    """The verdict of the judge's report.

    Raises:
        VerifierError: a task without tests.
    """
    total, passed = report["num_tests"], len(report.get("passes", ()))
    if total < 1:
        raise VerifierError("The task has no tests.", "Check the data: appworld verify tasks")
    score = passed / total if reward == "score" else float(report["success"] is True)
    failed = "; ".join(str(failure.get("requirement", "")).strip() for failure in report.get("failures", ()))
    return Verdict(score, detail=f"{passed} of {total} tests pass" + (f"; failed: {failed}" if failed else ""))


def check_settings(settings: EpisodeSettings) -> None:
    """Raises ConfigError for settings out of range."""
    if settings.reward not in ("success", "score"):
        raise ConfigError(f"Unknown reward {settings.reward!r}.", "Choose success or score.")
    if min(settings.max_observation_chars, settings.code_timeout_s) < 1 or settings.wait_s <= 0:
        raise ConfigError(f"{settings} cannot work.", "Limits must be above 0.")
