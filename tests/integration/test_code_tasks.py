"""Training and evaluation on programs, from the command line, with answers run in the sandbox."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from scgrpo.cli.main import main

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "code"


def test_train_on_mbpp_and_evaluate_out_of_domain(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    data = ["--dataset_name", str(FIXTURES / "mbpp.jsonl"), "--per_device_train_batch_size", "8"]
    data += ["--model_name_or_path", "tiny-random"]  # programs that run: test_sft_model.py
    assert main(["train", "--config", "mbpp-smoke", *data, "--output_dir", str(run), "--max_steps", "1"]) == 0
    config = json.loads((run / "config.resolved.json").read_text())
    assert config["train"]["teacher_template"] == "code"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["verdicts/error_frac"] == 0.0
    assert metrics[0]["verdicts/timeout_frac"] == 0.0
    options = {"dataset_name": str(FIXTURES / "codeforces.jsonl"), "num_workers": 1}
    assert main(["eval", "--run", str(run), "--task", "codeforces", "--task_options", json.dumps(options)]) == 0
    records = [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]
    assert [(r["task"], r["label"]) for r in records] == [
        ("mbpp", "before"),
        ("mbpp", "after"),
        ("codeforces", "before"),
        ("codeforces", "after"),
    ]
    assert {r["error_frac"] for r in records} == {0.0}
    assert [len(r["per_problem"]) for r in records] == [2, 2, 3, 3]


def test_the_papers_recipe_on_other_files(capsys: pytest.CaptureFixture) -> None:
    """Dates, halves and prompts of the recipe, with a folder of files in place of the hub."""
    data = ["--dataset_name", str(FIXTURES / "livecodebench")]
    assert main(["train", "--config", "livecodebench-qwen3-8b", *data, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "first training row" in shown
    assert "Return the list [1, ..., n], and its sum." in shown  # the first of February 2025
    assert "BAD" not in shown


def test_data_options_a_task_does_not_have_are_named(capsys: pytest.CaptureFixture) -> None:
    data = ["--dataset_name", str(FIXTURES / "mbpp.jsonl"), "--dataset_train_split", "everything"]
    assert main(["train", "--config", "mbpp-smoke", *data, "--dry-run"]) == 2
    assert "no option 'dataset_train_split'" in capsys.readouterr().err


def test_tasks_check(capsys: pytest.CaptureFixture) -> None:
    """Halves of the same problems are no leak."""
    options = {"dataset_name": str(FIXTURES / "livecodebench"), "tests": "A", "num_workers": 1}
    assert main(["tasks", "check", "livecodebench", "--task_options", json.dumps(options)]) == 0
    assert "nothing found wrong" in capsys.readouterr().out


def test_the_snippets_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "code.md"
    blocks = re.findall(r"```python\n(.*?)\n```\n", page.read_text(), re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, page.name, "exec"), {})
