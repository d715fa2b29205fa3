"""Baselines by name: what a preset sets, and what it leaves to its user."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from scgrpo import SCGRPOConfig
from scgrpo.cli.arguments import parse_train
from scgrpo.errors import ConfigError
from scgrpo.integrations.trl import presets

CPU: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none"}


def config(*args: Any, **settings: Any) -> SCGRPOConfig:
    return SCGRPOConfig(*args, **{**CPU, **settings})


def recipe(folder: Path, text: str) -> list[str]:
    path = folder / "mine.yaml"
    path.write_text(f"use_cpu: true\nbf16: false\nmodel_name_or_path: tiny\n{text}")
    return ["--config", str(path)]


EXPECTED: dict[str, dict[str, Any]] = {
    "grpo": {"credit": "uniform", "loss_type": "grpo", "scale_rewards": "group", "epsilon": 0.2, "beta": 0.0},
    "sc_grpo": {"credit": "sc_grpo", "loss_type": "grpo", "scale_rewards": "group", "epsilon": 0.2, "beta": 0.0},
    "dr_grpo": {"credit": "uniform", "loss_type": "dr_grpo", "scale_rewards": "none", "epsilon": 0.2},
    "dapo": {
        "credit": "uniform",
        "loss_type": "dapo",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "dynamic_sampling_max_rounds": 3,
        "overlong_frac": 0.2,
    },
    "gspo_token": {
        "credit": "uniform",
        "loss_type": "grpo",
        "importance_sampling_level": "sequence_token",
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
    },
    "reinforce++": {"credit": "reinforce++", "loss_type": "dapo", "epsilon": 0.2, "kl_in_reward": True},
    "cispo": {"credit": "uniform", "loss_type": "cispo", "epsilon_high": 5.0},
    "opd": {"policy_coef": 0.0, "distill_coef": 1.0, "distill_divergence": "reverse", "distill_context": "prompt"},
    "opsd": {
        "policy_coef": 0.0,
        "distill_divergence": "forward",
        "distill_clip": 0.05,
        "distill_context": "reference",
        "teacher_weights": "frozen",
    },
    "sdpo": {
        "policy_coef": 0.0,
        "distill_divergence": "jsd",
        "distill_jsd_beta": 0.5,
        "distill_is_clip": 2.0,
        "distill_context": "sibling",
        "teacher_weights": "ema",
        "teacher_ema_decay": 0.95,
    },
    "grpo_kl": {
        "loss_type": "grpo",
        "policy_coef": 1.0,
        "distill_coef": 0.1,
        "distill_divergence": "forward",
        "distill_clip": 0.0,
        "distill_context": "partial",
        "teacher_weights": "current",
    },
}
# What a preset leaves to its user but cannot do without.
NEEDED: dict[str, dict[str, Any]] = {"opd": {"teacher_model_name_or_path": "some/teacher"}}


@pytest.mark.parametrize("method", presets.method_names())
def test_every_preset_makes_a_config_and_says_where_it_is_from(method: str) -> None:
    made, expected = config(method=method, **NEEDED.get(method, {})), EXPECTED[method]
    assert {name: getattr(made, name) for name in expected} == expected
    assert json.loads(made.to_json_string())["loss_type"] == made.loss_type
    text = inspect.getdoc(presets._PRESETS[method])
    assert text is not None
    assert "arXiv" in text
    assert "Departures:" in text
    settings = presets.preset(method)
    assert set(settings) <= {field.name for field in dataclasses.fields(SCGRPOConfig)}


def test_without_a_method_nothing_changes() -> None:
    plain, paper = config(), config(method="sc_grpo")
    changed = {f.name for f in dataclasses.fields(plain) if getattr(plain, f.name) != getattr(paper, f.name)}
    assert changed == {"method"}, "the defaults are the paper's"


def test_what_is_given_wins_also_where_it_equals_the_default() -> None:
    assert config(method="dr_grpo", loss_type="grpo").loss_type == "grpo"
    assert config(method="dr_grpo", scale_rewards="group").scale_rewards == "group"
    assert config(method="dr_grpo", credit="sc_grpo").credit == "sc_grpo"
    assert config("out", method="dr_grpo").output_dir == "out"


def test_a_copy_keeps_the_settings() -> None:
    made = config(method="dr_grpo", epsilon=0.3)
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert (again.loss_type, again.scale_rewards, again.epsilon) == ("dr_grpo", "none", 0.3)


def test_a_config_of_ones_own_can_have_methods_too() -> None:
    @dataclasses.dataclass
    class Mine(SCGRPOConfig):
        extra: int = 1

    assert Mine(method="dr_grpo", **CPU).loss_type == "dr_grpo"


@pytest.mark.parametrize("make", [lambda: config(method="dr_gpro"), lambda: parse_train(["--method", "dr_gpro"])])
def test_an_unknown_name_is_an_error_that_names_the_nearest(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"Unknown method 'dr_gpro'.*Did you mean 'dr_grpo'"):
        make()


def test_in_a_recipe_its_other_keys_win_and_on_the_line_the_flags(tmp_path: Path) -> None:
    argv = recipe(tmp_path, "method: dr_grpo\nscale_rewards: group\n")
    trainer = parse_train(argv).trainer
    assert (trainer.method, trainer.loss_type, trainer.scale_rewards) == ("dr_grpo", "dr_grpo", "group")
    trainer = parse_train([*argv, "--loss_type", "grpo"]).trainer
    assert (trainer.loss_type, trainer.scale_rewards) == ("grpo", "group")


def test_a_method_on_the_line_replaces_the_recipes_method_and_credit(tmp_path: Path) -> None:
    argv = recipe(tmp_path, "method: cispo\ncredit: sc_grpo\nepsilon: 0.3\n")
    assert parse_train(argv).trainer.credit == "sc_grpo"
    for flags in (["--method", "dr_grpo"], ["--method=dr_grpo"]):
        trainer = parse_train([*argv, *flags]).trainer
        assert (trainer.method, trainer.credit, trainer.loss_type) == ("dr_grpo", "uniform", "dr_grpo")
        assert trainer.epsilon == 0.3, "other keys of the recipe stay the user's"
        assert trainer.epsilon_high is None, "what the recipe's own method had set is gone"
    assert parse_train([*argv, "--method", "dr_grpo", "--credit", "sc_grpo"]).trainer.credit == "sc_grpo"
    assert parse_train(["--config", "reach", "--method", "grpo"]).trainer.credit == "uniform"


@pytest.mark.parametrize(
    ("method", "credit", "expected"),
    [
        (None, "uniform", "uniform"),
        ("grpo", "uniform", "grpo"),
        ("sc_grpo", "sc_grpo", "sc_grpo"),
        ("cispo", "sc_grpo", "cispo+sc_grpo"),
    ],
)
def test_a_run_is_called_by_what_it_trains(method: str | None, credit: str, expected: str) -> None:
    assert presets.label(method, credit) == expected


def test_runs_to_compare_with_are_methods_credit_methods_or_both(tmp_path: Path) -> None:
    from scgrpo.cli.train import _jobs

    argv = [*recipe(tmp_path, "method: dr_grpo\ncredit: sc_grpo\n"), "--output_dir", "runs/x"]
    argv += ["--compare_with", "dr_grpo", "uniform", "cispo+sc_grpo", "dr_grpo+sc_grpo"]
    jobs = _jobs(argv, parse_train(argv))
    trained = {}
    for name, job in jobs.items():
        trainer = parse_train(job.argv).trainer
        trained[name] = (trainer.method, trainer.credit, trainer.loss_type)
    assert trained == {
        "dr_grpo+sc_grpo": ("dr_grpo", "sc_grpo", "dr_grpo"),
        "dr_grpo": ("dr_grpo", "uniform", "dr_grpo"),
        "uniform": ("dr_grpo", "uniform", "dr_grpo"),
        "cispo+sc_grpo": ("cispo", "sc_grpo", "cispo"),
    }
    assert [Path(job.path).name for job in jobs.values()] == ["x", "x-dr_grpo", "x-uniform", "x-cispo+sc_grpo"]
    with pytest.raises(ConfigError, match="Did you mean 'uniform'"):
        _jobs([*argv, "--compare_with", "unifrom"], parse_train([*argv, "--compare_with", "unifrom"]))


def test_a_task_says_how_it_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither recipe nor flags do."""
    (tmp_path / "shop_task.py").write_text(
        "from scgrpo.tasks.reach import ReachTask\n"
        "class Shop(ReachTask):\n    template, success_threshold = 'agent', 1.0\n"
        "def made(): return Shop()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    argv = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]

    def told(*flags: str) -> tuple[str, float]:
        trainer = parse_train([*argv, *flags]).trainer
        return trainer.teacher_template, trainer.success_threshold

    assert told("--task", "shop_task:Shop") == ("agent", 1.0)
    assert told("--task", "shop_task:Shop", "--success_threshold", "0.7") == ("agent", 0.7)
    assert told("--config", "reach", "--task", "shop_task:Shop") == ("tiny", 1.0), "the recipe's own wins"
    assert told("--task", "gsm8k") == ("math", 0.5)
    assert told("--task", "shop_task:made") == told("--task", "no-such-task") == told() == ("generic", 0.5)
