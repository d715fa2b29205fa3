"""Two whole steps on a CPU, started as users start them: what everything else here stands on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness import COMMAND, LONG, as_overrides, settings, started
from toy import Inputs


@pytest.fixture(scope="module")
def run(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("steps")
    values = settings(inputs, folder, mode="scgrpo")
    with started(folder, as_overrides(values), command=COMMAND) as run:
        run.code = run.wait(LONG)
        yield run


def test_two_steps_end_well(run) -> None:
    assert run.code == 0, run.output[-6000:]
    assert [entry["training/global_step"] for entry in run.metrics] == [1, 2]


def test_about_half_of_the_answers_are_right(run) -> None:
    for entry in run.metrics:
        assert 0.2 < entry["critic/score/mean"] < 0.8
        assert entry["critic/advantages/max"] > 0 > entry["critic/advantages/min"]


def test_the_toy_rollout_samples_from_the_live_weights(run) -> None:
    for entry in run.metrics:
        assert entry["training/rollout_probs_diff_max"] < 1e-4
    updates = re.findall(r"hf_cpu weights: step (\d), .* missing \[\], unexpected \[\], sum (\S+)", run.output)
    assert [step for step, _ in updates] == ["0", "1", "2"]
    assert len({total for _, total in updates}) == 3  # two steps changed them


def test_demonstrations_are_shown(run) -> None:
    assert any(entry["credit/demonstration_frac"] > 0 for entry in run.metrics)


def test_nothing_is_left_behind(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path
    with started(folder, as_overrides(settings(inputs, folder))) as run:
        run.wait_for("Started a local Ray instance", LONG)
        assert run.processes("raylet")
    assert not run.processes()
    assert not run.ray_folder.exists()
