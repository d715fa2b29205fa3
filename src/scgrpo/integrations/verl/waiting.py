"""Ends verl's wait for rollouts when they cannot come any more.

verl's synchronous replay buffer polls until enough prompts are done, with no bound: a dead agent loop worker leaves
its prompts running for ever. Here every poll also looks at the workers, and at whether anything has arrived lately.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray

from scgrpo.errors import RolloutError

LOOK = "Its output above has the cause (search for 'Error in _run_prompt' and for the names of Ray's actors)."


def watch(buffer: Any, workers: Sequence[Any], stall_timeout_s: float) -> None:
    """Make `buffer.sample` raise RolloutError instead of waiting for ever, or when every rollout of a step failed.

    Args:
        buffer: verl's replay buffer; this very object is changed.
        workers: actors of the agent loops.
        stall_timeout_s: longest time without any rollout finished, in seconds; 0 = no limit.
    """
    _Watch(buffer, workers, stall_timeout_s)


class _Watch:
    def __init__(self, buffer: Any, workers: Sequence[Any], stall_timeout_s: float) -> None:
        self.buffer, self.limit = buffer, stall_timeout_s
        self.pings = {worker.__ray_ready__.remote(): worker for worker in workers}
        self._sample, self._wait = buffer.sample, buffer._wait_for_next_poll
        buffer.sample, buffer._wait_for_next_poll = self.sample, self.wait
        self._restart()

    def _restart(self) -> None:
        self.seen, self.since = (0, 0), time.monotonic()

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        self._restart()
        try:
            return self._sample(*args, **kwargs)
        except RuntimeError as error:
            if "no materializable trajectories" not in str(error):
                raise
            raise RolloutError(
                "Every rollout of this step failed, in the reward function or before.", LOOK
            ) from error

    def wait(self, partition: str, *args: Any) -> Any:
        self._check_workers()
        self._check_progress(partition)
        return self._wait(partition, *args)

    def _check_workers(self) -> None:
        done, _ = ray.wait(list(self.pings), num_returns=len(self.pings), timeout=0) if self.pings else ([], [])
        for ping in done:
            worker = self.pings.pop(ping)
            try:
                ray.get(ping)
            except ray.exceptions.ActorUnavailableError:
                pass  # for the moment, Ray says: it is asked again
            except ray.exceptions.RayActorError as error:
                raise RolloutError(
                    f"An agent loop worker has died, and its rollouts with it: {error}", LOOK
                ) from error
            self.pings[worker.__ray_ready__.remote()] = worker

    def _check_progress(self, partition: str) -> None:
        buffer = self.buffer
        now = (len(buffer.finished_keys[partition]), len(buffer.partitions[partition]))
        if now != self.seen:
            self.seen, self.since = now, time.monotonic()
        waited = time.monotonic() - self.since
        if self.limit and waited > self.limit:
            running = len(buffer.pending_keys[partition]) + len(buffer.running_keys[partition])
            failed = len(buffer.failure_keys[partition])
            raise RolloutError(
                f"No rollout has finished for {waited:.0f} s: {running} prompts are unfinished, {failed} failed.",
                f"{LOOK} If rollouts take that long, raise trainer.v1.scgrpo.stall_timeout_s (now {self.limit:g}).",
            )
