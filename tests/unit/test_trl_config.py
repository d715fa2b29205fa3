"""Settings that cannot work are refused when the config is read, all at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from transformers import HfArgumentParser
from trl import GRPOConfig, TrlParser

from scgrpo import SCGRPOConfig
from scgrpo.errors import ConfigError

BASE: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none"}

REFUSED = [
    ({"loss_type": "luspo"}, "loss_type='luspo' cannot carry credit per token"),
    ({"importance_sampling_level": "sequence"}, "the gradient sees only the mean of the weights"),
    ({"credit": "sc_grpa"}, "Did you mean 'sc_grpo'"),
    ({"credit_quantile": 1.5}, "quantile is 1.5"),
    ({"credit_floor": 0.0}, "floor is 0.0 nats"),
    ({"credit_mix": -0.1}, "mix is -0.1"),
    ({"credit_scope": "batch"}, "scope is 'batch'"),
    ({"credit_demonstrations": "best"}, "demonstrations is 'best'"),
    ({"credit_fixed_threshold": 0.0}, "fixed_threshold is 0.0 nats"),
    ({"credit_anneal_steps": -1}, "anneal_steps is -1"),
    ({"credit": "rlsd"}, "Set teacher_weights to one of snapshot, ema, frozen"),
    ({"credit": "cast", "teacher_weights": "ema", "credit_strength": -1.0}, "strength -1.0"),
    ({"credit": "rlcsd", "teacher_weights": "ema", "credit_num_wrong": 0}, "num_wrong 0"),
    ({"credit": "stare", "credit_entropy_gate": -0.1}, "entropy_gate -0.1"),
    ({"credit": "entropy_mask", "credit_top_fraction": 0.0}, "top_fraction is 0.0"),
    ({"credit": "oracle", "credit_strength": 1.0}, "strength is 1.0"),
    ({"teacher_template": "maths"}, "maths"),
    ({"teacher_weights": "average"}, "average"),
    ({"teacher_timing": "later"}, "teacher_timing='later'"),
    ({"teacher_timing": "loss", "gradient_accumulation_steps": 4}, "steps_per_generation=4"),
    ({"teacher_prefix_sharing": "yes"}, "teacher_prefix_sharing='yes'"),
    ({"divergence": "top"}, "Unknown divergence 'top'"),
    ({"divergence_direction": "back"}, "Unknown direction 'back'"),
    ({"divergence_topk": 0}, "divergence_topk is 0"),
    ({"teacher_max_tokens": 0}, "teacher_max_tokens is 0"),
    ({"demonstration_max_tokens": 0}, "demonstration_max_tokens is 0"),
    ({"policy_coef": 0.0}, "trains nothing"),
    ({"policy_coef": -1.0}, "must be at least 0"),
    ({"distill_coef": 1.0, "distill_warmup_steps": -1}, "must be at least 0"),
    ({"method": "opd"}, "the teacher is the student"),
    ({"method": "opd", "teacher_model_name_or_path": "x", "teacher_weights": "ema"}, "Leave one of them out"),
    ({"method": "sdpo", "distill_divergence": "kl"}, "Unknown distill_divergence 'kl'"),
    ({"method": "sdpo", "distill_context": "teacher"}, "distill_context='teacher'"),
    ({"method": "sdpo", "distill_jsd_beta": 0.0}, "distill_jsd_beta is 0.0"),
    ({"method": "sdpo", "distill_is_clip": -2.0}, "distill_is_clip is -2.0"),
    ({"method": "opsd", "distill_divergence": "sampled"}, "Set distill_clip=0"),
    ({"method": "opsd", "distill_clip": -0.1}, "distill_clip is -0.1"),
    ({"method": "grpo_kl", "teacher_timing": "loss"}, "the loss's forward serves the distillation"),
    ({"method": "grpo_kl", "drop_zero_advantages": True}, "rows without an advantage have a gradient"),
    ({"method": "grpo_kl", "use_liger_kernel": True}, "use_liger_kernel with distill_coef"),
]


@pytest.fixture
def as_a_user() -> Iterator[None]:
    """Without the run-time type checks of the test suite, which would speak first."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(("settings", "match"), REFUSED, ids=lambda value: str(value)[:40])
def test_each_is_refused_with_a_reason(tmp_path: Path, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match.replace("(", r"\(")):
        SCGRPOConfig(str(tmp_path), **{**BASE, **settings})


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"3 setting\(s\) cannot work") as caught:
        SCGRPOConfig(str(tmp_path), loss_type="luspo", credit_mix=2.0, teacher_max_tokens=0, **BASE)
    for name in ("luspo", "mix is 2.0", "teacher_max_tokens"):
        assert name in str(caught.value)


def test_uniform_takes_every_loss_trl_has(tmp_path: Path) -> None:
    settings = {"loss_type": "luspo", "importance_sampling_level": "sequence"}
    assert SCGRPOConfig(str(tmp_path), credit="uniform", **settings, **BASE).loss_type == "luspo"


def test_defaults_are_trls_but_for_the_two_that_are_documented(tmp_path: Path) -> None:
    ours, theirs = SCGRPOConfig(str(tmp_path), **BASE), GRPOConfig(str(tmp_path), **BASE)
    different = {
        field.name
        for field in dataclasses.fields(theirs)
        if getattr(ours, field.name) != getattr(theirs, field.name) and field.name not in ("logging_dir",)
    }
    assert different == {"loss_type", "vllm_importance_sampling_mode"}


def test_every_setting_of_ours_has_a_help_text() -> None:
    known = {field.name for field in dataclasses.fields(GRPOConfig)}
    for field in dataclasses.fields(SCGRPOConfig):
        if field.name not in known:
            assert len(field.metadata["help"]) > 10, field.name


def test_flags_and_yaml_reach_the_method(tmp_path: Path) -> None:
    flags = ["--credit_mix", "0.5", "--credit_weight_sign", "solved", "--use_cpu", "true", "--bf16", "false"]
    (flagged,) = HfArgumentParser(SCGRPOConfig).parse_args_into_dataclasses(["--output_dir", str(tmp_path), *flags])
    assert (flagged.credit_method().mix, flagged.credit_method().weight_sign) == (0.5, "solved")
    config = tmp_path / "c.yaml"
    lines = [
        f"output_dir: {tmp_path}",
        "credit_alpha: 0.0",
        "credit_scope: micro_batch",
        "use_cpu: true",
        "bf16: false",
    ]
    config.write_text("\n".join(lines))
    (read,) = TrlParser(SCGRPOConfig).parse_args_and_config(["--config", str(config)])
    assert (read.credit_method().alpha, read.credit_method().scope) == (0.0, "micro_batch")
