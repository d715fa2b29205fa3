"""Whatever dies or fails in the middle of a run, the run ends, and says why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import LONG, Run, as_overrides, settings, started
from toy import Inputs

PER_STEP = 16  # rollouts


@contextmanager
def training(
    inputs: Inputs, folder: Path, environment: Mapping[str, str], workers: int = 1, steps: int = 3
) -> Iterator[Run]:
    values = settings(inputs, folder, mode="scgrpo", workers=workers, steps=steps)
    with started(folder, as_overrides(values), environment=environment) as run:
        yield run


@pytest.mark.parametrize(
    ("victim", "workers", "reason"),
    [
        ("ray::AgentLoopWorker", 1, "RolloutError: An agent loop worker has died"),
        ("ray::HFServer", 1, "RolloutError: Every rollout of this step failed"),
        ("ray::WorkerDict", 2, "RayTaskError(ActorDiedError)"),
    ],
)
def test_a_killed_actor_ends_the_run(inputs: Inputs, tmp_path: Path, victim: str, workers: int, reason: str) -> None:
    """Killed in the second step, while its rollouts are being generated."""
    with training(inputs, tmp_path, {"HF_CPU_HOLD": f"1:{tmp_path}"}, workers) as run:
        run.wait_for_file(tmp_path / "held", LONG)
        run.kill(victim)
        (tmp_path / "go").touch()
        code = run.wait(LONG)
    assert code == 1
    assert reason in run.output
    assert len(run.metrics) == 1


def test_a_reward_function_that_fails_ends_the_run(inputs: Inputs, tmp_path: Path) -> None:
    with training(inputs, tmp_path, {"TOY_REWARD_FAILS": f"{PER_STEP}:{2 * PER_STEP}"}) as run:
        code = run.wait(LONG)
    assert code == 1
    assert "RolloutError: Every rollout of this step failed" in run.output
    assert "the toy judge fell over" in run.output
    assert len(run.metrics) == 1
