"""WebShop with a prompt per step through the trainer."""

from __future__ import annotations

from pathlib import Path

from scgrpo.cli.main import main
from scgrpo.runs import RunDirectory


def test_each_step_has_its_own_prompt(tmp_path: Path) -> None:
    options = '{"catalogue": "mini", "max_steps": 4, "max_action_tokens": 64, "prompting": "per_step"}'
    random = ["--model_name_or_path", "tiny-random", "--per_device_train_batch_size", "8", "--max_train_rows", "8"]
    random += ["--max_completion_length", "512", "--demonstration_max_tokens", "256"]
    command = ["train", "--config", "webshop-smoke", *random, "--output_dir", str(tmp_path / "run")]
    command += ["--task_options", options]
    assert main([*command, "--max_steps", "1", "--compare_with", "none", "--eval_problems", "2"]) == 0
    run = RunDirectory.open(tmp_path / "run")
    rows = [row for step in run.rollout_steps() for row in run.rollouts(step)]
    assert rows
    assert all(all(row.mask) for row in rows), "the completions are the actions alone"
    assert all(len(row.tokens) <= 4 * 64 for row in rows)
    assert max(row.completion.count("assistant: ") for row in rows) > 1, "several steps, or this shows little"
    assert [record["label"] for record in run.evals()] == ["before", "after"]
