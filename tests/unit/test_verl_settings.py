"""verl's configuration: wrong set-ups are refused when it is read, all problems at once, each with a remedy."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest

from scgrpo.errors import ConfigError
from scgrpo.integrations.settings import CreditSettings
from scgrpo.integrations.verl import settings as verl_settings
from scgrpo.integrations.verl.settings import VerlSettings, read_settings

GOOD: dict[str, Any] = {
    "algorithm": {"adv_estimator": "grpo"},
    "trainer": {"use_v1": True, "v1": {"trainer_mode": "scgrpo"}},
    "actor_rollout_ref": {
        "hybrid_engine": True,
        "rollout": {"n": 8},
        "actor": {"strategy": "fsdp2", "policy_loss": {"loss_mode": "vanilla"}},
        "model": {"target_modules": "all-linear"},
    },
}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """As if verl were here; what is installed may be changed."""
    versions = {"verl": "0.9.1", "TransferQueue": "0.1.11", "tensordict": "0.10.0", "ray": "2.60.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise verl_settings.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(verl_settings.metadata, "version", version)
    return versions


def config(*changes: tuple[str, Any], **given: Any) -> dict[str, Any]:
    """GOOD with values changed at dotted paths, and `given` under trainer.v1.scgrpo."""
    out = copy.deepcopy(GOOD)
    out["trainer"]["v1"]["scgrpo"] = given
    for path, value in changes:
        *folders, name = path.split(".")
        place = out
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return out


def test_without_settings_it_is_the_papers_method() -> None:
    settings = read_settings(GOOD)
    assert settings == VerlSettings()
    assert settings.credit == "sc_grpo"
    assert settings.credit_method().quantile == 0.75


def test_every_option_of_the_core_is_there() -> None:
    names = {field.name for field in dataclasses.fields(CreditSettings)}
    assert names <= {field.name for field in dataclasses.fields(VerlSettings)}
    changed = read_settings(config(credit="entropy_mask", credit_top_fraction=0.3, success_threshold=0.9))
    assert changed.credit_method().top_fraction == 0.3
    assert changed.success_threshold == 0.9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("trainer.use_v1", False), "use_v1"),
        (("actor_rollout_ref.hybrid_engine", False), "hybrid_engine"),
        (("actor_rollout_ref.rollout.n", 1), "rollout.n"),
        (("actor_rollout_ref.actor.strategy", "megatron"), "fsdp2"),
        (("actor_rollout_ref.actor.strategy", "veomni"), "fsdp2"),
        (("algorithm.adv_estimator", "gae"), "adv_estimator"),
        (("actor_rollout_ref.actor.policy_loss.loss_mode", "geo_mean"), "loss_mode"),
        (("reward.reward_kwargs.overlong_buffer_cfg.enable", True), "success_metric"),
        (("actor_rollout_ref.model.target_modules", ["q_proj", "lm_head"]), "lm_head"),
    ],
)
def test_what_cannot_work_is_refused(change: tuple[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_settings(config(change))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"credit_alfa": 0.2}, "did you mean credit_alpha"),
        ({"credit": "sc_grop"}, "sc_grpo"),
        ({"credit_scope": "micro_batch"}, "generation_batch"),
        ({"teacher_weights": "ema"}, "current"),
        ({"credit": "oracle"}, "TRL"),
        ({"teacher_template": "poem"}, "math"),
        ({"teacher_prompt_fn": "no.such.module:f"}, "importable"),
        ({"demonstration_max_tokens": 0}, "at least 1"),
        ({"rollouts_groups": 0}, "rollouts_groups"),
    ],
)
def test_settings_that_cannot_work_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_settings(config(**given))


def test_all_problems_come_at_once(installed: dict[str, str]) -> None:
    installed["verl"] = "0.10.0"
    del installed["TransferQueue"]
    with pytest.raises(ConfigError) as caught:
        read_settings(config(("actor_rollout_ref.rollout.n", 1), ("algorithm.adv_estimator", "gae"), credit_x=1))
    text = str(caught.value)
    for words in ("verl 0.10.0", "TransferQueue is not installed", "rollout.n", "adv_estimator", "credit_x"):
        assert words in text
    assert text.startswith("5 setting(s)")


def test_uniform_credit_asks_nothing_of_the_engine() -> None:
    change = ("actor_rollout_ref.actor.strategy", "megatron")
    assert read_settings(config(change, credit="uniform")).credit == "uniform"
    with pytest.raises(ConfigError, match="adv_estimator"):  # one advantage per rollout is what it reads
        read_settings(config(("algorithm.adv_estimator", "gae"), credit="uniform"))


def test_a_prompt_function_is_found() -> None:
    settings = read_settings(config(teacher_prompt_fn="scgrpo.teacher.prompts:teacher_prompt"))
    assert settings.prompt_function().__name__ == "teacher_prompt"
