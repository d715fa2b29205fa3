"""WebShop through `scgrpo train`: pages are masked, rewards are recorded, the report is written."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("nltk")
pytest.importorskip("thefuzz")

from scgrpo.cli.main import main
from scgrpo.runs import RunDirectory


def test_a_random_model_visits_the_shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = ["--model_name_or_path", "tiny-random", "--per_device_train_batch_size", "8"]
    random += ["--demonstration_max_tokens", "256"]
    few = [*random, "--max_steps", "1", "--eval_problems", "2", "--max_train_rows", "8"]
    # A random model seldom ends a turn: more tokens, more pages.
    options = '{"catalogue": "mini", "max_steps": 4, "max_action_tokens": 200}'
    command = ["train", "--config", "webshop-smoke", "--output_dir", str(tmp_path / "run"), "--task_options", options]
    assert main([*command, *few, "--max_completion_length", "1024"]) == 0
    run = RunDirectory.open(tmp_path / "run")
    rows = run.rollouts(0)
    assert all(row.rewards == {"webshop": 0.0} for row in rows)
    played = [row for row in rows if "user: Page: 'Search'\nAdmissible actions:" in row.completion]
    assert played, "some conversations have more than one turn"
    assert all(any(row.mask) and not all(row.mask) for row in played)
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_dry_run_grades_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", "webshop-smoke", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "ok  right answer -> graded, score 1" in shown
    assert "BAD" not in shown
