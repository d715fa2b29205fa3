"""The command line as a user meets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from scgrpo.cli.arguments import find_recipe, parse_train, recipe_names
from scgrpo.cli.main import main
from scgrpo.errors import ConfigError

FAST = ["--max_steps", "2", "--eval_problems", "4", "--eval_k", "2", "--eval_every", "0", "--max_train_rows", "64"]
SMALL = ["--per_device_train_batch_size", "16", "--num_generations", "4", "--rollouts_every", "1"]
GSM8K = Path(__file__).resolve().parents[1] / "fixtures" / "gsm8k"


def train(out: Path, *extra: str, config: str = "reach") -> int:
    return main(["train", "--config", config, "--output_dir", str(out), *FAST, *SMALL, *extra])


def test_train_writes_a_run_with_a_baseline_beside_it_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert train(tmp_path / "run") == 0
    shown = capsys.readouterr().out
    assert "Avg@2" in shown
    assert "Pass@2" in shown
    assert "before" in shown
    assert "after" in shown
    assert "sc_grpo" in shown
    assert "uniform" in shown
    assert str(tmp_path / "run") in shown
    for folder, credit in ((tmp_path / "run", "sc_grpo"), (tmp_path / "run-uniform", "uniform")):
        config = json.loads((folder / "config.resolved.json").read_text())
        assert config["train"]["credit"] == credit
        labels = [json.loads(line)["label"] for line in (folder / "evals.jsonl").read_text().splitlines()]
        assert labels == ["before", "after"]
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert steps == [1, 2]
        assert (folder / "model" / "model.safetensors").exists()
        assert (folder / "report.html").stat().st_size > 10_000
    evals = [
        json.loads((tmp_path / name / "evals.jsonl").read_text().splitlines()[0]) for name in ("run", "run-uniform")
    ]
    assert evals[0]["avg_at_k"] == evals[1]["avg_at_k"], "both start from the same model and samples"


def test_recorded_rollouts_carry_their_credit(tmp_path: Path) -> None:
    from scgrpo.runs import RunDirectory

    assert train(tmp_path / "run", "--compare_with", "uniform") == 0
    run = RunDirectory.open(tmp_path / "run")
    rows = [row for step in run.rollout_steps() for row in run.rollouts(step)]
    assert rows
    scored = [row for row in rows if row.token_kl is not None]
    assert scored, "with this seed some rollouts are re-scored"
    for row in scored:
        assert row.demonstration_text in row.teacher_prompt
        assert all(0 <= weight < 1 for weight in row.credit_weights)
        assert row.demonstration != row.rollout
    uniform = RunDirectory.open(tmp_path / "run-uniform")
    assert all(set(row.credit_weights) <= {1.0} for step in uniform.rollout_steps() for row in uniform.rollouts(step))


def test_baselines_by_name_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = {"run": "dapo+sc_grpo", "run-dapo": "dapo", "run-gspo_token": "gspo_token"}
    options = ["--method", "dapo", "--credit", "sc_grpo", "--compare_with", "dapo", "gspo_token"]
    assert train(tmp_path / "run", *options, "--epsilon", "0.1") == 0
    shown = capsys.readouterr().out
    for folder, name in names.items():
        assert name in shown
        config = json.loads((tmp_path / folder / "config.resolved.json").read_text())
        assert config["label"] == name
        assert config["train"]["epsilon"] == 0.1, "what is given holds for all of them"
        expected = 4e-4 if name == "gspo_token" else 0.28
        assert config["train"]["epsilon_high"] == expected
    metrics = [json.loads(line) for line in (tmp_path / "run-dapo" / "metrics.jsonl").read_text().splitlines()]
    assert all("sampling/rounds" in record for record in metrics)


def test_distillation_by_name_with_references_of_the_task(tmp_path: Path) -> None:
    options = ["--method", "sdpo", "--compare_with", "opsd", "grpo_kl", "--side_by_side", "false"]
    assert train(tmp_path / "run", *options) == 0
    for folder, share in (("run", 0.01), ("run-opsd", 1.0), ("run-grpo_kl", 0.0)):
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        metrics = [json.loads(line) for line in lines]
        assert all(record["distill/teacher_frac"] >= share for record in metrics)
    folder = str(tmp_path / "run-grpo_kl" / "model")
    teacher = ["--method", "opd", "--compare_with", "none", "--teacher_model_name_or_path"]
    assert train(tmp_path / "opd", *teacher, folder) == 0
    assert train(tmp_path / "itself", *teacher, "tiny", "--max_steps", "1") == 0
    metrics = json.loads((tmp_path / "itself" / "metrics.jsonl").read_text())
    assert metrics["distill/divergence"] < 1e-6


def test_references_are_right_the_same_every_time_and_added_only_where_read(tmp_path: Path) -> None:
    from scgrpo.cli.setup import load_problem, make_task

    def rows(*options: str, config: str = "reach") -> list[Any]:
        parsed = parse_train(["--config", config, "--output_dir", str(tmp_path), *options])
        task = make_task(parsed)
        assert task is not None
        found = load_problem(parsed, task).train_rows
        for row in found[:5]:
            if config == "reach" and "hint" in row:
                assert task.is_correct(row["hint"], row)  # type: ignore[attr-defined]
        return found

    opsd = ["--method", "opsd", "--reference_column", "hint", "--max_train_rows", "50"]
    assert rows(*opsd) == rows(*opsd)
    assert all(row["hint"] for row in rows(*opsd))
    assert "solution" not in rows("--method", "sdpo")[0]
    assert "solution" in rows("--method", "sdpo", "--compare_with", "opsd")[0]
    data = ["--dataset_name", str(next(GSM8K.glob("*.jsonl"))), "--method", "opsd", "--compare_with", "none"]
    worked = {row["answer"]: row["solution"] for row in rows(*data, config="gsm8k-smoke")}
    assert worked
    assert all(text.endswith(f"#### {answer}") and len(text) > 20 for answer, text in worked.items())


def test_a_run_directory_in_use_is_refused_with_a_way_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    assert train(tmp_path / "run") == 2
    assert "overwrite" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "{}\n"


def test_resume_continues_where_the_checkpoint_stopped(tmp_path: Path) -> None:
    options = ["--save_strategy", "steps", "--save_steps", "1", "--compare_with", "uniform"]
    assert train(tmp_path / "whole", *options, "--max_steps", "3") == 0
    assert train(tmp_path / "parts", *options, "--max_steps", "3") == 0
    for name in ("checkpoint-2", "checkpoint-3"):
        for run in ("parts", "parts-uniform"):
            shutil.rmtree(tmp_path / run / "checkpoints" / name)
    assert train(tmp_path / "parts", *options, "--max_steps", "3", "--resume_from_checkpoint", "last") == 0
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "parts")]
    assert weights[0] == weights[1]
    steps = [json.loads(x)["step"] for x in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_eval_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "eval.json"
    common = ["--model", "tiny", "--task", "reach", "--k", "4", "--problems", "10", "--temperature", "1"]
    assert main(["eval", *common, "--top_p", "1", "--max_new_tokens", "20", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Avg@4" in shown
    assert "Pass@4" in shown
    record = json.loads(out.read_text())
    assert len(record["per_problem"]) == 10
    assert record["avg_at_k"]["low"] <= record["avg_at_k"]["value"] <= record["avg_at_k"]["high"]


def test_gsm8k_rows_go_through_the_whole_trainer(tmp_path: Path) -> None:
    data = next(GSM8K.glob("*.jsonl"))
    arguments = [
        "train",
        "--config",
        "gsm8k-smoke",
        "--dataset_name",
        str(data),
        "--output_dir",
        str(tmp_path / "run"),
        *("--model_name_or_path", "tiny-random", "--per_device_train_batch_size", "8"),
    ]
    assert main(arguments) == 0
    record = json.loads((tmp_path / "run" / "evals.jsonl").read_text().splitlines()[-1])
    assert record["task"] == "gsm8k"
    assert record["avg_at_k"]["value"] == 0.0
    assert record["error_frac"] == 0.0
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_passes_a_dry_run(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    if recipe.startswith("appworld"):  # its tasks, the known answers too, are in an installation of its own
        monkeypatch.setenv("SCGRPO_CACHE", str(tmp_path / "nothing"))
        assert main(["train", "--config", recipe, "--dry-run"]) == 2
        shown = capsys.readouterr()
        assert "has not been run yet" in shown.out
        assert "scgrpo appworld setup" in shown.err
        return
    assert main(["train", "--config", recipe, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "teacher prompt, verified demonstration" in shown
    assert "ok  right answer" in shown
    assert "ok  wrong answer" in shown
    assert "BAD" not in shown
    assert list(tmp_path.iterdir()) == [], "a dry run touches nothing"
    if "qwen3" in recipe:
        assert "has not been run yet" in shown


def test_dry_run_counts_tokens_of_both_prompts(capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "--config", "reach", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "student prompt (" in shown
    assert "tokens)" in shown
    assert "verified " in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config", "reech"], "Did you mean 'reach'"),
        (["--config", "reach", "--credit_quantil", "0.5"], "did you mean credit_quantile"),
        (["--config", "reach", "--credit", "sc_gpro"], "Did you mean 'sc_grpo'"),
        (["--config", "reach", "--loss_type", "luspo"], "cannot carry credit per token"),
        (["--config"], "needs a recipe"),
    ],
)
def test_mistakes_are_named_with_their_remedy(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["train", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_unknown_keys_of_a_recipe_are_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("task: reach\nlearning_rat: 0.1\n")
    with pytest.raises(ConfigError, match="learning_rate"):
        parse_train(["--config", str(recipe)])


def test_recipes_are_found_by_name_path_or_file() -> None:
    assert find_recipe("reach") == find_recipe("recipes/reach.yaml")
    assert find_recipe(str(find_recipe("reach"))) == find_recipe("reach")


def test_flags_override_the_recipe() -> None:
    parsed = parse_train(["--config", "reach", "--learning_rate", "1e-5", "--credit_floor", "0.01"])
    assert parsed.trainer.learning_rate == 1e-5
    assert parsed.trainer.credit_floor == 0.01
    assert parsed.trainer.max_steps == 100


def test_usage_and_unknown_commands(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert main(["trian"]) == 2
    assert "unknown command" in capsys.readouterr().err


def test_eval_adds_another_task_to_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train(tmp_path / "run", "--compare_with", "none") == 0
    run = ["eval", "--run", str(tmp_path / "run")]

    def evals() -> list[dict]:
        lines = (tmp_path / "run" / "evals.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    assert main([*run, "--task", "countdown"]) == 0
    own, other = evals()[:2], evals()[2:]
    assert [(e["task"], e["label"], e["step"]) for e in other] == [
        ("countdown", "before", 0),
        ("countdown", "after", 2),
    ]
    for name in ("k", "num_problems", "temperature", "top_p", "max_new_tokens"):
        assert {e[name] for e in other} == {own[0][name]}, "as the run evaluates"
    assert main([*run, "--task", "countdown", "--problems", "2"]) == 0
    assert [e["label"] for e in evals()[4:]] == ["after"], "where it started is known"
    assert main(run) == 0
    again = evals()[-1]
    assert (again["task"], again["step"], again["per_problem"]) == ("reach", 2, own[1]["per_problem"])
    assert "after training, reach:" in capsys.readouterr().out


def test_eval_of_a_run_without_a_model_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from scgrpo.runs import RunDirectory

    RunDirectory.create(tmp_path / "run").write_config({"run": {"task": "reach"}})
    assert main(["eval", "--run", str(tmp_path / "run")]) == 2
    assert "has no trained model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["eval", "--task", "reach"])
    assert "either --model or --run" in capsys.readouterr().err


def test_reports_of_every_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert train(tmp_path / "run") == 0
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    assert main(["report", "run", "--png"]) == 0
    assert main(["report", "run", "--pngs", "pictures"]) == 0
    assert main(["report", "--tables", "run", "run-uniform"]) == 0
    written = capsys.readouterr().out.split()
    assert {"run/curves.png", "tables.html", "tables.csv"} < set(written)
    assert any(name.startswith("pictures/") and "fig3" in name for name in written), "parts of the step were logged"
    assert all(Path(name).stat().st_size > 0 for name in written)
    lines = Path("tables.csv").read_text().splitlines()
    assert any(line.startswith("1,SC-GRPO,run,") for line in lines)
    assert any(line.startswith("1,GRPO,run,") for line in lines)
    with pytest.raises(SystemExit):
        main(["report"])
    assert "give a run directory, or --tables with some" in capsys.readouterr().err
