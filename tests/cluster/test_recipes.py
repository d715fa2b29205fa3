"""recipes/verl: each composes over verl's own configuration, holds no key that verl does not know, and passes verl's
checks and ours, on one node and on eight."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("verl")

from hydra import compose, initialize_config_dir, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config

from scgrpo.integrations.verl.settings import read_settings
from scgrpo.tasks.registry import training_defaults

RECIPES = Path(__file__).parents[2] / "recipes" / "verl"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem != "paper")
PAPER_STEPS = {"dapo-math": 500, "livecodebench": 320, "appworld": 110, "webshop": 300}
# What verl's defaults have no key for, by design.
OPEN = (
    "trainer.v1.scgrpo",
    "reward.custom_reward_function.reward_kwargs",
    "data.apply_chat_template_kwargs",
)
GUIDE_TOKENS = 192  # of the teacher's template, around the demonstration


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(RECIPES), version_base=None):
        return compose(name, overrides=["hydra.searchpath=[pkg://verl.trainer.config]", *overrides])


def keys(settings: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for key, value in settings.items():
        yield f"{before}{key}"
        if isinstance(value, Mapping):
            yield from keys(value, f"{before}{key}.")


def test_there_are_the_paper_s_settings_and_a_small_one() -> None:
    assert [name.rpartition("-qwen3")[0] for name in NAMES] == sorted([*PAPER_STEPS, "gsm8k"])


@pytest.mark.parametrize("name", ["paper", *NAMES])
def test_verl_knows_every_key(name: str) -> None:
    own = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert own.pop("defaults", None) == (None if name == "paper" else ["ppo_trainer", "paper", "_self_"])
    assert [key for key in keys(own) if not key.startswith(OPEN) and key not in keys_of_verl()] == []


@cache
def keys_of_verl() -> frozenset[str]:
    with initialize_config_module("verl.trainer.config", version_base=None):
        return frozenset(keys(OmegaConf.to_container(compose("ppo_trainer"))))


@pytest.mark.parametrize("nodes", [1, 8])
@pytest.mark.parametrize("name", NAMES)
def test_recipes_pass_verl_s_checks_and_ours(name: str, nodes: int) -> None:
    config = composed(name, f"trainer.nnodes={nodes}")
    validate_config(config, need_reference_policy(config), need_critic(config))
    assert not need_reference_policy(config)
    assert not need_critic(config)
    omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    settings = read_settings(config)
    assert settings.credit == "sc_grpo"
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    gpus = config.trainer.nnodes * config.trainer.n_gpus_per_node
    assert gpus == 8 * nodes
    # Rows of a batch and of a mini-batch divide over the data-parallel ranks.
    ranks = gpus // actor.fsdp_config.ulysses_sequence_parallel_size
    assert config.data.train_batch_size * rollout.n % ranks == 0
    assert actor.ppo_mini_batch_size * rollout.n % ranks == 0


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_the_paper_s(name: str) -> None:
    config = composed(name)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (config.data.train_batch_size, rollout.n, actor.ppo_epochs) == (8, 8, 1)
    assert actor.ppo_mini_batch_size >= 8, "one update per batch"
    assert (actor.optim.lr, actor.loss_agg_mode, rollout.temperature) == (1e-6, "seq-mean-token-mean", 1.0)
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (0.2, 0.2)
    assert (actor.use_kl_loss, config.algorithm.use_kl_in_reward, actor.entropy_coeff) == (False, False, 0)
    assert config.data.apply_chat_template_kwargs == {"enable_thinking": False}
    task = name.rpartition("-qwen3")[0]
    steps = PAPER_STEPS.get(task)
    assert steps is None or config.trainer.total_training_steps == steps
    assert name == config.trainer.experiment_name
    defaults = training_defaults(task.replace("-", "_"))
    given = config.trainer.v1.scgrpo
    assert {key: given[key] for key in defaults} == defaults, "what the task says of itself"


@pytest.mark.parametrize("name", NAMES)
def test_budgets_hold_the_longest_rows(name: str) -> None:
    config = composed(name)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    shared_by = actor.fsdp_config.ulysses_sequence_parallel_size
    whole = config.data.max_prompt_length + config.data.max_response_length
    shown = read_settings(config).demonstration_max_tokens or config.data.max_response_length
    assert actor.ppo_max_token_len_per_gpu * shared_by >= whole
    assert rollout.log_prob_max_token_len_per_gpu * shared_by >= 2 * whole + shown + GUIDE_TOKENS
    assert whole + shown + GUIDE_TOKENS <= 40960, "positions of Qwen3"


def test_what_the_documented_command_reads(tmp_path: Path) -> None:
    """hydra finds the recipe, what it is made of, and verl's defaults below; an override stays one."""
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-dir", str(RECIPES)]
    command += ["--config-name", "gsm8k-qwen3-1.7b", "--cfg", "job", "trainer.nnodes=8"]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "VERL_USE_EXTERNAL_PLUGINS": "none"}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    found = yaml.safe_load(done.stdout[done.stdout.index("actor_rollout_ref:") :])
    assert found["trainer"]["nnodes"] == 8
    assert found["trainer"]["v1"]["trainer_mode"] == "scgrpo"
    assert found["actor_rollout_ref"]["model"]["path"] == "Qwen/Qwen3-1.7B"
    assert found["actor_rollout_ref"]["rollout"]["prompt_length"] == "${oc.select:data.max_prompt_length,512}"


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_says_how_to_make_the_data(name: str) -> None:
    text = (RECIPES / "README.md").read_text()
    own = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    for files in ("train_files", "val_files"):
        assert f"--out {own['data'][files]}" in text
    assert f"`{name}`" in text
