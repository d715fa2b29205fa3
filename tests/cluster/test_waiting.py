"""Waiting for rollouts: what ends it, and what does not (no Ray is started; test_failures.py kills real actors)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

import ray

from scgrpo.errors import RolloutError
from scgrpo.integrations.verl.waiting import watch

ACTOR_DIED = ray.exceptions.ActorDiedError()
UNAVAILABLE = ray.exceptions.ActorUnavailableError("a connection was reset", None)


class Buffer:
    """verl's, as far as it is watched."""

    def __init__(self) -> None:
        self.finished_keys, self.partitions = {"train": set()}, {"train": {}}
        self.pending_keys, self.running_keys, self.failure_keys = {"train": {1}}, {"train": {2}}, {"train": set()}
        self.polls = 0

    def _wait_for_next_poll(self, partition: str) -> None:
        self.polls += 1

    def sample(self, *polls: str) -> str:
        for partition in polls:
            self._wait_for_next_poll(partition)
        return "a batch"


class Worker:
    """Answers a ping with the next of these: an error to raise, or None."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)
        self.__ray_ready__ = SimpleNamespace(remote=lambda: (self, len(self.answers)))


@pytest.fixture(autouse=True)
def pings(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(ping: tuple[Worker, int]) -> None:
        answer = ping[0].answers.pop(0) if ping[0].answers else None
        if answer is not None:
            raise answer

    monkeypatch.setattr(ray, "wait", lambda pings, **_: (pings, []))
    monkeypatch.setattr(ray, "get", get)


def watched(*answers: Exception | None, limit: float = 0.0) -> Any:
    buffer = Buffer()
    watch(buffer, [Worker(*answers)], limit)
    return buffer


def test_a_worker_that_is_away_for_a_moment_is_asked_again() -> None:
    buffer = watched(None, UNAVAILABLE, None)
    assert buffer.sample("train", "train", "train") == "a batch"
    assert buffer.polls == 3


def test_a_dead_worker_ends_the_wait() -> None:
    with pytest.raises(RolloutError, match="has died"):
        watched(None, ACTOR_DIED).sample("train", "train")


def test_no_rollout_for_too_long_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(0, 1000, 40))
    monkeypatch.setattr("scgrpo.integrations.verl.waiting.time", SimpleNamespace(monotonic=lambda: next(times)))
    with pytest.raises(RolloutError, match="2 prompts are unfinished"):
        watched(limit=100.0).sample(*["train"] * 10)


def test_all_rollouts_failed_is_said_in_our_words() -> None:
    buffer = Buffer()

    def sample() -> None:
        raise RuntimeError("selected terminal groups with no materializable trajectories. Enable ...")

    buffer.sample = sample
    watch(buffer, [], 0.0)
    with pytest.raises(RolloutError, match="Every rollout"):
        buffer.sample()
