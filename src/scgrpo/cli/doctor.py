"""`scgrpo doctor`: what is installed here; with `--verl`, whether verl would train with SC-GRPO, and what."""

from __future__ import annotations

import argparse
import os
import platform
import traceback
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from scgrpo.errors import ConfigError, MissingExtraError, ScgrpoError

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "vllm", "verl", "ray", "TransferQueue")
_GROUP, _NAME = "verl.plugins", "scgrpo"
_DEFAULT = "ppo_trainer"
_POLICY = "VERL_USE_EXTERNAL_PLUGINS"


def doctor_command(argv: Sequence[str]) -> int:
    """Exit codes: 0 nothing is wrong, 1 something is."""
    args = _parser().parse_args(argv)
    _show_versions()
    asked = bool(args.overrides or args.config_dir or args.config_name != _DEFAULT)
    if not args.verl:
        if asked:
            raise ConfigError("verl's settings without --verl.", "Write: scgrpo doctor --verl [settings].")
        return 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # verl's, about the engines that are not installed
        problems = list(_plugin_problems())
    if not problems and asked:
        problems = _would_run(args)
    for problem in problems:
        print(f"PROBLEM: {problem}")
    print("verl is not ready." if problems else "verl is ready.")
    return 1 if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scgrpo doctor", description="What is installed, and whether it fits.")
    parser.add_argument("--verl", action="store_true", help="load the plug-in as verl does, but loudly")
    parser.add_argument("--config-dir", type=Path, help="folder of a recipe, as for verl.trainer.main_ppo")
    parser.add_argument("--config-name", default=_DEFAULT, help="recipe, as for verl.trainer.main_ppo")
    parser.add_argument("overrides", nargs="*", help="settings, as for verl.trainer.main_ppo")
    return parser


def _show_versions() -> None:
    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in ("scgrpo", *_PACKAGES):
        try:
            print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name} is not installed")


def _plugin_problems() -> Iterator[str]:
    """Whatever keeps verl from finding, importing or using the plug-in."""
    from scgrpo.integrations.verl.settings import version_problems

    missing = list(version_problems())
    yield from missing
    if missing:
        return
    policy = os.environ.get(_POLICY, "auto").strip()
    if policy.lower() != "auto" and _NAME not in [part.strip() for part in policy.split(",")]:
        yield f"{_POLICY}={policy} keeps verl from loading the plug-in: add {_NAME}, or unset it."
    found = [point for point in entry_points(group=_GROUP) if point.name == _NAME]
    if not found:
        yield f"No entry point {_NAME} in the group {_GROUP}: install scgrpo with pip, in this environment."
        return
    try:
        found[0].load()
    except Exception:  # noqa: BLE001 (whatever it is, verl would hide it)
        yield f"The plug-in {found[0].value} cannot be imported:\n{traceback.format_exc()}"
        return
    print(f"plug-in {found[0].value}: imported")
    yield from _registration_problems()


def _registration_problems() -> Iterator[str]:
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from verl.workers.engine import EngineRegistry

    from scgrpo.integrations.verl.engine import ConditionedFSDPEngine
    from scgrpo.integrations.verl.trainer import SCGRPOTrainer

    if TRAINER_REGISTRY.get(_NAME) is not SCGRPOTrainer:
        yield f"trainer_mode={_NAME} is {TRAINER_REGISTRY.get(_NAME)}, not ours: another package took the name."
    try:
        engine = EngineRegistry.get_engine_cls("language_model", "fsdp2")
    except ValueError as error:
        print(f"engine: none for this device ({error}); the workers' nodes decide")
        return
    if not issubclass(engine, ConditionedFSDPEngine):
        yield f"Workers on a device like this one run {engine.__name__}, which does not know the conditioned pass."
    print(f"trainer_mode={_NAME} and {engine.__name__}: registered")


def _would_run(args: argparse.Namespace) -> list[str]:
    """What these settings would do, printed; or what is wrong with them."""
    from scgrpo.integrations.verl.settings import read_settings

    try:
        config = compose(args.config_name, args.config_dir, args.overrides)
        mode = config.trainer.v1.trainer_mode
        settings = read_settings(config)
    except ScgrpoError as error:
        return str(error).split(" | ")
    if mode != _NAME:
        return [f"trainer.v1.trainer_mode is {mode}: without trainer.v1.trainer_mode={_NAME} verl trains without us."]
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    shown = settings.demonstration_max_tokens or config.data.max_response_length
    sequence = config.data.max_prompt_length + config.data.max_response_length
    facts = {
        "model": config.actor_rollout_ref.model.path,
        "credit": settings.credit,
        "processes": f"{config.trainer.nnodes} nodes x {config.trainer.n_gpus_per_node}, {actor.strategy}",
        "rollouts per step": f"{config.data.train_batch_size} prompts x {rollout.n}",
        "longest pair": f"{2 * sequence + shown} tokens, {shown} of them the demonstration",
        "run directory": settings.run_dir or f"{config.trainer.default_local_dir}/run",
    }
    for name, value in facts.items():
        print(f"{name}: {value}")
    return []


def compose(name: str, folder: Path | None, overrides: Sequence[str]) -> Any:
    """verl's configuration as `python -m verl.trainer.main_ppo` would read it.

    Raises:
        ConfigError: hydra cannot make it.
    """
    try:
        import hydra
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException
    except ImportError as error:
        raise MissingExtraError("verl's configuration needs hydra.", 'Run: pip install "scgrpo[verl]"') from error
    search = ["hydra.searchpath=[pkg://verl.trainer.config]"]
    try:
        if folder is None:
            with hydra.initialize_config_module("verl.trainer.config", version_base=None):
                return hydra.compose(name, overrides=list(overrides))
        with hydra.initialize_config_dir(str(folder.resolve()), version_base=None):
            return hydra.compose(name, overrides=[*search, *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(
            f"verl's configuration cannot be made: {error}",
            "A key verl does not know needs a leading plus: +trainer.v1.scgrpo.credit_alpha=0.2.",
        ) from error
