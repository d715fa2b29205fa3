"""`trainer.v1.scgrpo.*` in verl's configuration, and what in the rest of it cannot work with credit per token.

Names and defaults are those of `SCGRPOConfig`. verl's schema does not know them: on the command line a new key needs
a leading plus, `+trainer.v1.scgrpo.credit_alpha=0.2`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from scgrpo.errors import ConfigError
from scgrpo.integrations.settings import CreditSettings, setting

VERSIONS = ">=0.9,<0.10"
_KNOWN_MINOR = (0, 9)
# Distributions the trainer imports from.
REQUIRED = ("verl", "TransferQueue", "tensordict", "ray")

# Estimators that give every token of a rollout the same advantage, which the weights then distribute.
ESTIMATORS = (
    *("grpo", "grpo_vectorized", "rloo", "rloo_vectorized", "opo", "gpg"),
    "reinforce_plus_plus_baseline",
)
# Policy losses whose gradient of a token scales with that token's advantage.
LOSS_MODES = (
    *("vanilla", "dppo_tv", "dppo_kl", "gspo", "sapo", "gpg", "clip_cov", "kl_cov", "dro", "cispo"),
    "bypass_mode",
)
STRATEGIES = ("fsdp2", "fsdp")


@dataclass
class VerlSettings(CreditSettings):
    """Settings of the trainer mode `scgrpo`.

    Raises:
        ConfigError: all impossible settings at once, each with its remedy.
    """

    success_metric: str | None = setting(
        None, "Which value of the reward function's dictionary decides 'solved', such as acc. Default: the reward."
    )
    teacher_prompt_fn: str | None = setting(
        None,
        "package.module:function of (messages, demonstration, verified) -> messages, in place of teacher_template.",
    )
    seed: int = setting(42, "Seed of the demonstrations drawn.")
    run_dir: str | None = setting(None, "Run directory (docs/runs.md). Default: run in trainer.default_local_dir.")
    run_dir_overwrite: bool = setting(False, "Delete what an earlier run wrote there.")
    rollouts_every: int = setting(10, "Steps between recorded batches of rollouts; 0 = none.")
    rollouts_groups: int = setting(4, "Groups to record each time.")
    stall_timeout_s: float = setting(
        3600.0, "Seconds without any rollout finished after which a step is given up; 0 = never."
    )

    def problems(self) -> Iterator[str]:
        """What cannot work among these settings."""
        yield from self.credit_problems()
        if self.teacher_weights != "current":
            yield (
                f"teacher_weights={self.teacher_weights!r}: the sharded actor has the policy's weights only. Leave "
                "it at 'current', or train on TRL."
            )
        if self.credit_scope != "generation_batch":
            yield (
                f"credit_scope={self.credit_scope!r}: verl cuts micro-batches after credit is assigned. Set "
                "credit_scope=generation_batch."
            )
        if self.rollouts_every < 0 or self.rollouts_groups < 1 or self.stall_timeout_s < 0:
            yield "rollouts_every and stall_timeout_s must be at least 0, rollouts_groups at least 1."
        try:
            self.prompt_function()
            method = self.credit_method()
        except ConfigError as error:
            if self.teacher_prompt_fn and self.teacher_prompt_fn in str(error):
                yield str(error)
            return
        if getattr(method, "needs_first_error", False):
            yield f"credit={self.credit!r} needs first errors, which verl's rewards do not tell: train on TRL."

    def prompt_function(self) -> Callable[..., Any] | None:
        """What `teacher_prompt_fn` names.

        Raises:
            ConfigError: it cannot be imported.
        """
        if self.teacher_prompt_fn is None:
            return None
        module, _, name = self.teacher_prompt_fn.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"teacher_prompt_fn={self.teacher_prompt_fn!r} cannot be imported: {error}.",
                "Write package.module:function, importable on the node that runs the trainer.",
            ) from error


def read_settings(config: Any) -> VerlSettings:
    """The settings in verl's configuration.

    Raises:
        ConfigError: everything that cannot work, in them and in the rest, each with its remedy.
    """
    given = _plain(_at(config, "trainer.v1.scgrpo", {})) or {}
    known = {field.name for field in dataclasses.fields(VerlSettings)}
    problems = [_unknown(key, known) for key in given if key not in known]
    settings = VerlSettings(**{key: value for key, value in given.items() if key in known})
    problems += [*version_problems(), *settings.problems(), *_config_problems(config, settings)]
    if problems:
        raise ConfigError(f"{len(problems)} setting(s) cannot work:", " | ".join(problems))
    return settings


def version_problems() -> Iterator[str]:
    """Distributions that are missing, and a verl this was not written for."""
    for name in REQUIRED:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield f'{name} is not installed: pip install "scgrpo[verl]" in an environment of its own.'
            continue
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if name == "verl" and numbers != _KNOWN_MINOR:
            yield f"verl {version} is installed: its trainer changes fast. Install verl{VERSIONS}."


def estimator(config: Any) -> str:
    """Name of verl's advantage estimator."""
    return str(_at(config, "algorithm.adv_estimator", "gae")).rsplit(".", 1)[-1].lower()


def _config_problems(config: Any, settings: VerlSettings) -> Iterator[str]:
    if not _at(config, "trainer.use_v1", True):
        yield "trainer.use_v1=False is verl's old trainer, which has no trainer modes: set it to True."
    if not _at(config, "actor_rollout_ref.hybrid_engine", True):
        yield "actor_rollout_ref.hybrid_engine=False samples with other weights than score: set it to True."
    if int(_at(config, "actor_rollout_ref.rollout.n", 1)) < 2:
        yield "actor_rollout_ref.rollout.n is below 2: a group needs several rollouts (the paper: 8)."
    name = estimator(config)
    if name not in ESTIMATORS:
        yield (
            f"algorithm.adv_estimator={name}: weights distribute one advantage per rollout. Set grpo (or "
            f"one of {', '.join(ESTIMATORS[1:])})."
        )
    if settings.credit == "uniform":
        return
    yield from _engine_problems(config)
    if settings.success_metric is None and _at(config, "reward.reward_kwargs.overlong_buffer_cfg.enable", False):
        yield (
            "reward.reward_kwargs.overlong_buffer_cfg takes length off the reward, which then does not say what is "
            "solved: set trainer.v1.scgrpo.success_metric to what the reward function returns besides (acc, score)."
        )
    loss = str(_at(config, "actor_rollout_ref.actor.policy_loss.loss_mode", "vanilla"))
    if loss not in LOSS_MODES:
        yield (
            f"actor.policy_loss.loss_mode={loss}: it averages advantages over a rollout, which undoes weights per "
            f"token (or is not known here). Choose one of {', '.join(LOSS_MODES)}."
        )


def _engine_problems(config: Any) -> Iterator[str]:
    strategy = str(_at(config, "actor_rollout_ref.actor.strategy", "fsdp"))
    if strategy not in STRATEGIES:
        why = "needs a vocabulary-parallel pass" if strategy == "megatron" else "has not been verified"
        yield (
            f"actor.strategy={strategy} {why} (docs/clusters.md): set actor_rollout_ref.actor.strategy=fsdp2 and "
            "actor_rollout_ref.actor.fsdp_config.strategy=fsdp2."
        )
    targets = _at(config, "actor_rollout_ref.model.target_modules", "")
    if "lm_head" in ([targets] if isinstance(targets, str) else list(targets)):
        yield "actor_rollout_ref.model.target_modules puts an adapter on lm_head: leave the output head out."
    if int(_at(config, "actor_rollout_ref.actor.fsdp_config.tensor_parallel_size", 1) or 1) > 1:
        yield "actor.fsdp_config.tensor_parallel_size > 1 splits the output head: set it to 1."


def _unknown(key: str, known: set[str]) -> str:
    near = difflib.get_close_matches(key, sorted(known), n=1)
    return f"trainer.v1.scgrpo.{key} is not a setting" + (f": did you mean {near[0]}?" if near else ".")


def _at(config: Any, path: str, default: Any) -> Any:
    """The value at a dotted path of nested mappings, or the default where there is none."""
    for name in path.split("."):
        if not isinstance(config, Mapping) and not hasattr(config, "get"):
            return default
        config = config.get(name)
        if config is None:
            return default
    return config


def _plain(config: Any) -> Any:
    """Nested configurations as dictionaries."""
    return {key: _plain(value) for key, value in config.items()} if hasattr(config, "items") else config
