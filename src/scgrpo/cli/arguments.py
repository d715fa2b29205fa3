"""Parsing of `scgrpo train`: TRL's own parser and keys, plus what a run of ours needs."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from trl import ModelConfig, ScriptArguments, TrlParser

from scgrpo.errors import ConfigError
from scgrpo.integrations.trl import SCGRPOConfig
from scgrpo.integrations.trl.presets import preset
from scgrpo.tasks.registry import training_defaults


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class RunArguments(ScriptArguments):
    """What `scgrpo train` adds to TRL's ScriptArguments, SCGRPOConfig and ModelConfig."""

    task: str | None = _setting(
        None, "Task by name (reach, countdown, gsm8k, math, ...). Needed unless reward_funcs."
    )
    task_options: str | None = _setting(None, "Options of the task, as a mapping (JSON on the command line).")
    reward_funcs: list[str] | None = _setting(
        None, "Further reward functions, dotted import paths, as in `trl grpo`."
    )
    compare_with: list[str] | None = _setting(
        None,
        "Further runs from the same start: methods (grpo, dapo, ...), credit methods over the configured `method`, "
        "or both (dapo+sc_grpo); none = alone.",
    )
    side_by_side: bool = _setting(
        False,
        "Train the methods compared at the same time, each in a process of its own, where every one of their "
        "num_threads finds a processor core; on CPU only.",
    )
    on_existing: str = _setting("error", "A run directory that is in use: error, resume or overwrite.")
    max_train_rows: int | None = _setting(None, "Use at most this many training rows.")
    eval_problems: int = _setting(100, "Held-out problems of the evaluation before and after; 0 = none.")
    eval_k: int = _setting(8, "Completions per problem in evaluations (k of Avg@k and Pass@k).")
    eval_every: int = _setting(0, "Also evaluate every this many steps; 0 = only before and after.")
    eval_temperature: float = _setting(0.6, "Sampling temperature of evaluations (the paper's).")
    eval_top_p: float = _setting(0.95, "Top-p of evaluations (the paper's).")
    eval_batch_rows: int = _setting(64, "Completions per generate call of evaluations.")
    rollouts_every: int = _setting(10, "Record rollouts for the report every this many steps; 0 = never.")
    rollouts_groups: int = _setting(4, "Groups to record each time.")
    num_threads: int | None = _setting(None, "CPU threads of torch. Default: torch's own choice.")
    note: str = _setting("", "A line the recipe wants its user to read.")
    dry_run: bool = _setting(False, "Print what would be done, grade canned answers, and touch nothing.")

    def __post_init__(self) -> None:
        if self.on_existing not in ("error", "resume", "overwrite"):
            raise ConfigError(f"on_existing is {self.on_existing!r}.", "Choose error, resume or overwrite.")
        if self.eval_k < 1 or self.eval_problems < 0:
            raise ConfigError("eval_k must be >= 1 and eval_problems >= 0.", "Set eval_problems=0 for no evaluation.")

    @property
    def task_settings(self) -> dict[str, Any]:
        """`task_options` as a mapping."""
        given = self.task_options
        if given is None:
            return {}
        options = json.loads(given) if isinstance(given, str) else given
        if not isinstance(options, dict):
            raise ConfigError(f"task_options is {given!r}.", "Give a mapping, for example '{\"limit\": 100}'.")
        return options


@dataclass(frozen=True)
class Parsed:
    """A parsed command line: the recipe's name and the three groups of settings."""

    recipe: str
    run: RunArguments
    trainer: SCGRPOConfig
    model: ModelConfig


DATACLASSES = (RunArguments, SCGRPOConfig, ModelConfig)


def parse_train(argv: Sequence[str]) -> Parsed:
    """Parse `scgrpo train` arguments.

    Raises:
        ConfigError: unknown keys (with the nearest known one), impossible settings, unknown recipe.
    """
    arguments = ["--dry_run" if a == "--dry-run" else a for a in argv]
    if "--dry_run" in arguments and not torch.accelerator.is_available():
        arguments += ["--use_cpu", "true"]  # a recipe for GPUs can be looked at anywhere
    recipe = "command line"
    settings: dict[str, Any] = {}
    if "--config" in arguments:
        index = arguments.index("--config") + 1
        if index == len(arguments):
            raise ConfigError("--config needs a recipe.", f"Shipped ones: {', '.join(recipe_names())}.")
        path = find_recipe(arguments[index])
        recipe, arguments[index] = path.stem, str(path)
        settings = read_recipe(path)
    # A default output_dir lets the recipe leave it out; the command fills in the run directory.
    parser = TrlParser(DATACLASSES, prog="scgrpo train", allow_abbrev=False)
    # In place of defaults: the recipe's keys and the flags come on top.
    task = _last(arguments, "--task") or settings.get("task")
    parser.set_defaults_with_config(**(training_defaults(task) if task else {}))
    named = _last(arguments, "--method")
    method = named or settings.get("method")
    if method is not None:
        parser.set_defaults_with_config(**preset(method))
    if named is not None:  # it replaces what the recipe says is trained, of which `credit` is a part
        arguments = ["--credit", preset(named)["credit"], *arguments]
    try:
        run, trainer, model, from_recipe, from_line = parser.parse_args_and_config(
            arguments, return_remaining_strings=True, separate_remaining_strings=True
        )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"These settings cannot work: {error}", "See `scgrpo train --help`.") from error
    if [*from_recipe, *from_line]:
        raise _unknown([a for a in [*from_recipe, *from_line] if a.startswith("--")] or list(from_line))
    return Parsed(recipe, run, trainer, model)


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(p.name.removesuffix(".yaml") for p in files("scgrpo.recipes").iterdir() if p.name.endswith(".yaml"))


def find_recipe(name: str) -> Path:
    """A recipe file: a path that exists, or a shipped one by its name (with or without folder and suffix)."""
    if Path(name).is_file():
        return Path(name)
    stem = Path(name).name.removesuffix(".yaml")
    if stem in recipe_names():
        return Path(str(files("scgrpo.recipes") / f"{stem}.yaml"))
    near = difflib.get_close_matches(stem, recipe_names(), n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"No recipe {name!r}.", f"{hint}Give a YAML file or one of: {', '.join(recipe_names())}.")


def known_keys() -> set[str]:
    """Every setting a recipe may hold."""
    return {f.name for cls in DATACLASSES for f in fields(cls)} | {"config", "env"}


def _last(arguments: Sequence[str], flag: str) -> str | None:
    """The value argparse will take: the last `--flag value` or `--flag=value`."""
    value = None
    for place, argument in enumerate(arguments):
        if argument == flag and place + 1 < len(arguments):
            value = arguments[place + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
    return value


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings of a recipe file.

    Raises:
        ConfigError: not a YAML mapping, or unknown keys.
    """
    try:
        recipe = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}", "Fix the line it names.") from error
    if not isinstance(recipe, dict):
        raise ConfigError(f"{path} does not hold a mapping of settings.", "Write one `key: value` per line.")
    unknown = [key for key in recipe if key not in known_keys()]
    if unknown:
        raise _unknown(unknown)
    return recipe


def _unknown(keys: Sequence[str]) -> ConfigError:
    hints = []
    for key in keys:
        near = difflib.get_close_matches(key.lstrip("-").replace("-", "_"), known_keys(), n=1)
        hints.append(f"{key} (did you mean {near[0]}?)" if near else key)
    return ConfigError(f"Unknown setting(s): {', '.join(hints)}.", "See `scgrpo train --help`.")
