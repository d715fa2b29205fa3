"""`scgrpo doctor --verl`: what verl would hide is shown, and wrong settings are named before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import SOURCE

RECIPES = SOURCE.parent / "recipes" / "verl"


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scgrpo.cli.main", "doctor", "--verl", *arguments]
    paths = {"PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        command, env={**os.environ, **paths, **environment}, capture_output=True, text=True, timeout=600
    )


def test_it_is_ready() -> None:
    result = doctor()
    assert result.returncode == 0, result.stdout + result.stderr
    assert "trainer_mode=scgrpo and ConditionedFSDPEngine: registered" in result.stdout
    assert "verl is ready." in result.stdout


def test_a_recipe_says_what_would_run() -> None:
    result = doctor("--config-dir", str(RECIPES), "--config-name", "gsm8k-qwen3-1.7b", "trainer.nnodes=8")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "8 nodes x 8, fsdp2" in result.stdout
    assert "8 prompts x 8" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trainer.v1.trainer_mode=scgrpo", "algorithm.adv_estimator=gae"), "adv_estimator=gae"),
        (("+trainer.v1.scgrpo.credit_alfa=1",), "did you mean credit_alpha?"),
        (("trainer.v1.scgrpo.credit_alpha=1",), "leading plus"),
        (("algorithm.adv_estimator=grpo", "actor_rollout_ref.rollout.n=8"), "without trainer.v1.trainer_mode=scgrpo"),
    ],
)
def test_problems_are_named(arguments: tuple[str, ...], words: str) -> None:
    result = doctor(*arguments)
    assert result.returncode == 1
    assert words in result.stdout
    assert "verl is not ready." in result.stdout


def test_an_import_that_verl_would_hide_is_shown(tmp_path: Path) -> None:
    (tmp_path / "transfer_queue.py").write_text("raise RuntimeError('broken on purpose')\n")
    result = doctor(PYTHONPATH=f"{tmp_path}:{SOURCE}")
    assert result.returncode == 1
    assert "broken on purpose" in result.stdout


def test_a_policy_that_shuts_the_plug_in_out_is_named() -> None:
    result = doctor(VERL_USE_EXTERNAL_PLUGINS="other")
    assert result.returncode == 1
    assert "VERL_USE_EXTERNAL_PLUGINS" in result.stdout
