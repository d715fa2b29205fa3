"""Whose records a run directory holds: a start that is refused changes nothing there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transfer_queue")

from omegaconf import OmegaConf

from scgrpo.errors import RunError
from scgrpo.integrations.verl import recording
from scgrpo.integrations.verl.settings import VerlSettings
from scgrpo.runs import RunDirectory


@pytest.fixture(autouse=True)
def short_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "resolved", lambda config, settings: {"label": config.label})


def start(folder: Path, label: str, step: int, mode: str = "auto", **settings: Any) -> recording.VerlRecorder:
    trainer = {"default_local_dir": str(folder), "resume_mode": mode}
    config = OmegaConf.create({"trainer": trainer, "data": {"seed": 1}, "label": label})
    recorder = recording.VerlRecorder.create(config, VerlSettings(**settings))
    recorder.resumed(step)
    return recorder


@pytest.fixture
def earlier(tmp_path: Path) -> RunDirectory:
    run = start(tmp_path, "first", 0).run
    for step in (1, 2):
        run.log_metrics(step, {"reward": 0.5}, time_s=1.0)
    return run


@pytest.mark.parametrize("mode", ["auto", "disable"])
def test_another_run_is_refused_and_nothing_is_changed(earlier: RunDirectory, tmp_path: Path, mode: str) -> None:
    before = {path: path.read_bytes() for path in earlier.path.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="run_dir"):
        start(tmp_path, "second", 0, mode)
    assert {path: path.read_bytes() for path in earlier.path.rglob("*") if path.is_file()} == before


def test_a_checkpoint_goes_on(earlier: RunDirectory, tmp_path: Path) -> None:
    run = start(tmp_path, "first", 1, run_dir_overwrite=True).run  # there is nothing to overwrite
    assert [record["step"] for record in run.metrics()] == [1]
    assert len(run.provenance()["starts"]) == 2


@pytest.mark.parametrize("mode", ["auto", "disable"])
def test_overwriting_is_the_users_word(earlier: RunDirectory, tmp_path: Path, mode: str) -> None:
    run = start(tmp_path, "second", 0, mode, run_dir_overwrite=True).run
    assert run.metrics() == []
    assert run.config()["label"] == "second"
    assert len(run.provenance()["starts"]) == 1
