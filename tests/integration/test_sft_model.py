"""`tiny-sft`: the small trainings on real rows have right answers to learn from, not zeros."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scgrpo.cli.main import main
from scgrpo.cli.setup import resolve_model
from scgrpo.errors import ConfigError
from scgrpo.runs import RunDirectory
from scgrpo.runs.rollouts import RolloutRow
from scgrpo.tasks import get_task
from scgrpo.tiny import sft_model

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def trained(out: Path, config: str, *options: str) -> tuple[RunDirectory, list[RolloutRow], list[dict[str, Any]]]:
    assert main(["train", "--config", config, "--output_dir", str(out), "--max_steps", "2", *options]) == 0
    run = RunDirectory.open(out)
    return run, [row for step in run.rollout_steps() for row in run.rollouts(step)], run.metrics()


def test_programs_run_and_right_ones_are_demonstrations(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = str(FIXTURES / "code" / "mbpp.jsonl")
    few = ["--per_device_train_batch_size", "16", "--num_generations", "8"]  # both training problems of the fixture
    run, rows, metrics = trained(tmp_path / "run", "mbpp-smoke", "--dataset_name", data, *few)
    assert {row.rewards["mbpp"] for row in rows} == {0.0, 1.0}, "some programs pass their tests, some do not"
    assert any(row.detail.startswith("test ") for row in rows), "programs were run and failed a test"
    assert any(row.route == "partial" and "def " in (row.demonstration_text or "") for row in rows)
    assert sum(record["compute/teacher_forward_tokens"] for record in metrics) > 0
    assert any(record["grad_norm"] > 0 for record in metrics)
    capsys.readouterr()
    # Where it started is kept: another task can be evaluated before and after.
    options = json.dumps({"dataset_name": str(FIXTURES / "code" / "codeforces.jsonl"), "num_workers": 1})
    assert main(["eval", "--run", str(run.path), "--task", "codeforces", "--task_options", options]) == 0
    assert [record["label"] for record in run.evals() if record["task"] == "codeforces"] == ["before", "after"]


def test_a_shop_is_bought_from_with_whole_visits_as_demonstrations(tmp_path: Path) -> None:
    pytest.importorskip("nltk")
    pytest.importorskip("thefuzz")
    options = ["--max_train_rows", "2", "--per_device_train_batch_size", "16", "--num_generations", "8"]
    _, rows, metrics = trained(tmp_path / "run", "webshop-smoke", *options)
    bought = [row for row in rows if row.rewards["webshop"] > 0]
    assert bought
    assert all("click[buy now]" in row.completion for row in bought)
    shown = [row for row in rows if row.demonstration_text is not None]
    assert any(
        "[Action]\n" in row.demonstration_text and "[Observation]\nPage:" in row.demonstration_text for row in shown
    )
    assert all(not kl for row in shown for kl, own in zip(row.token_kl, row.mask, strict=True) if not own)
    assert any(record["grad_norm"] > 0 for record in metrics)


@pytest.mark.parametrize("name", ["guess_number", "countdown", "maze"])
def test_right_answers_are_those_the_verifier_accepts(name: str) -> None:
    task = get_task(name)
    for row in task.rows("train", 3):
        answer = sft_model.right_answer(task, row)
        assert answer is not None
        completion = answer if len(answer) > 1 else answer[0]["content"]
        assert task.verify([completion], [row])[0].score == 1


def test_a_task_without_solutions_is_told(tmp_path: Path) -> None:
    class Silent:
        name = "silent"

    with pytest.raises(ConfigError, match="no right answers"):
        sft_model.write_sft_model(tmp_path / "m", Silent(), [{"problem_id": "a"}], progress=print)  # type: ignore[arg-type]
    assert not (tmp_path / "m").exists()


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = str(FIXTURES / "code" / "mbpp.jsonl")
    command = ["train", "--config", "mbpp-smoke", "--dataset_name", data, "--output_dir", str(tmp_path / "run")]
    assert main(command) == 2
    assert "2 training rows, and a generation batch takes 8 prompts" in capsys.readouterr().err


def test_outside_a_run_there_is_no_such_model() -> None:
    with pytest.raises(ConfigError, match="training run"):
        resolve_model("tiny-sft")
