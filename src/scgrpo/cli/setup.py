"""From parsed settings to the objects of a run: task, data, reward functions, model."""

from __future__ import annotations

import atexit
import importlib
import inspect
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scgrpo.cli.arguments import Parsed, RunArguments
from scgrpo.errors import ConfigError
from scgrpo.integrations.trl.presets import method_names, preset
from scgrpo.tasks import get_task
from scgrpo.tasks.base import Row, Task
from scgrpo.tasks.registry import task_factory
from scgrpo.tiny.base_models import PREFIX, base_model, parse_reference

# The model that a run fine-tunes for itself (`scgrpo.tiny.sft_model`).
SFT_MODEL = "tiny-sft"
_TASK_DATA_KEYS = ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split")


@dataclass
class Problem:
    """What is trained on: training rows, held-out rows, and how completions are graded."""

    task: Task | None
    train_rows: list[Row]
    eval_rows: list[Row]
    reward_funcs: list[Callable[..., Any]]


def make_task(parsed: Parsed) -> Task | None:
    """The configured task; TRL's dataset keys are its data source if it has one."""
    if parsed.run.task is None:
        return None
    return get_task(parsed.run.task, **task_options(parsed.run))


def task_options(run: RunArguments) -> dict[str, Any]:
    """What the configured task is made with."""
    options = run.task_settings
    if run.dataset_name is None or run.task is None:
        return options
    # What the task does not know is left out, unless it was set: then the task's error names it.
    known, unset = inspect.signature(task_factory(run.task)).parameters, RunArguments()
    given = {key: getattr(run, key) for key in _TASK_DATA_KEYS}
    return {key: value for key, value in given.items() if key in known or value != getattr(unset, key)} | options


def load_problem(parsed: Parsed, task: Task | None) -> Problem:
    """Rows and reward functions.

    Raises:
        ConfigError: neither a task nor a data set with reward functions is given.
    """
    extra = [import_callable(path) for path in parsed.run.reward_funcs or []]
    if task is not None:
        from scgrpo.tasks.reward import reward_function

        held_out = task.rows("eval", parsed.run.eval_problems) if parsed.run.eval_problems else []
        rows = task.rows("train", parsed.run.max_train_rows)
        if _needs_references(parsed):
            rows = with_references(rows, task, parsed.trainer.reference_column)
        return Problem(task, rows, held_out, [reward_function(task), *extra])
    if parsed.run.dataset_name is None or not extra:
        raise ConfigError(
            "Nothing to train on.", "Set task (reach, gsm8k, ...), or dataset_name together with reward_funcs."
        )
    from scgrpo.tasks.data import load_rows

    rows = load_rows(parsed.run.dataset_name, config=parsed.run.dataset_config, split=parsed.run.dataset_train_split)
    return Problem(None, rows[: parsed.run.max_train_rows], [], extra)


def with_references(rows: Sequence[Row], task: Task, column: str) -> list[Row]:
    """Rows with a solution of the task's, the same one for a problem at every call.

    Raises:
        ConfigError: the task has none.
    """
    solution = getattr(task, "solution", None)
    if solution is None:
        raise ConfigError(
            f"Task {task.name!r} has no reference solutions to show a teacher.", "Choose another distill_context."
        )
    return [{**row, column: solution(row, random.Random(f"solution/{row['problem_id']}"))} for row in rows]


def _needs_references(parsed: Parsed) -> bool:
    """Whether a run's teacher reads them: the configured one's, or that of a method to compare with."""
    methods = [name.partition("+")[0] for name in parsed.run.compare_with or []]
    compared = [preset(name) for name in methods if name in method_names()]
    contexts = [settings.get("distill_context") for settings in compared]
    return "reference" in (parsed.trainer.distill_context, *contexts)


def import_callable(path: str) -> Callable[..., Any]:
    """A function by its dotted import path; the current folder is searched too.

    Raises:
        ConfigError: there is no such module or function.
    """
    module, _, name = path.rpartition(".")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"Cannot import reward function {path!r}: {error}.",
            "Give a dotted path such as my_package.rewards.length.",
        ) from error


def resolve_model(name: str | None) -> str:
    """A model id or path; `tiny` is the embedded one, `tiny-random` a random one made on the spot, and
    `testbed:NAME:SEED` a testbed's base model, trained if it is not in the cache. (`tiny-sft` is made by the run.)

    Raises:
        ConfigError: no model given; `tiny-sft` outside a run.
    """
    if name is None:
        raise ConfigError("No model.", "Set model_name_or_path to a hub id, a folder, or `tiny`.")
    if name == "tiny":
        from scgrpo.tiny import tiny_model_path

        return str(tiny_model_path())
    if name == "tiny-random":
        from scgrpo.tiny.random_model import write_random_model

        folder = Path(tempfile.mkdtemp(prefix="scgrpo-random-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return str(write_random_model(folder))
    if name == SFT_MODEL:
        raise ConfigError(
            f"The model {SFT_MODEL!r} is made by a training run, for the rows it trains on.",
            "Use it with `scgrpo train`; to evaluate what came of it: `scgrpo eval --run RUN`.",
        )
    if name.startswith(PREFIX):
        return str(base_model(*parse_reference(name), progress=partial(print, file=sys.stderr)))
    return name
