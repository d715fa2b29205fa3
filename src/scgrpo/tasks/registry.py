"""Tasks by name."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from scgrpo.errors import ConfigError
from scgrpo.tasks.base import Task

TaskFactory = Callable[..., Task]

# Built-in tasks as `module:factory`, imported when they are asked for.
_FACTORIES: dict[str, str | TaskFactory] = {
    "reach": "scgrpo.tasks.reach:ReachTask",
    "countdown": "scgrpo.tasks.countdown:CountdownTask",
    "countdown-undo": "scgrpo.tasks.countdown_undo:CountdownUndoTask",
    "style": "scgrpo.tasks.style:StyleTask",
    "maze": "scgrpo.tasks.maze:MazeTask",
    "math": "scgrpo.tasks.math:MathTask",
    "gsm8k": "scgrpo.tasks.math:gsm8k",
    "dapo_math": "scgrpo.tasks.math:dapo_math",
    "code": "scgrpo.tasks.code:code",
    "livecodebench": "scgrpo.tasks.code:livecodebench",
    "codeforces": "scgrpo.tasks.code:codeforces",
    "humaneval": "scgrpo.tasks.code:humaneval",
    "humanevalplus": "scgrpo.tasks.code:humanevalplus",
    "mbpp": "scgrpo.tasks.code:mbpp",
    "mbppplus": "scgrpo.tasks.code:mbppplus",
}


def task_names() -> list[str]:
    """Names that `get_task` knows."""
    return sorted(_FACTORIES)


def register_task(name: str, factory: str | TaskFactory, *, replace: bool = False) -> None:
    """Make a task known by name.

    Args:
        name: what `get_task` and `scgrpo train --task` will be given.
        factory: returns the task; its keyword arguments are the task's options. A class, a function, or the import
            path `package.module:callable` of one.
        replace: allow a name that is taken.

    Raises:
        ConfigError: the name is taken.
    """
    if name in _FACTORIES and not replace:
        raise ConfigError(f"There is already a task {name!r}.", "Choose another name, or pass replace=True.")
    _FACTORIES[name] = factory


def get_task(name: str, /, **options: Any) -> Task:
    """A task by its registered name, or by the import path `package.module:callable` of its factory.

    Raises:
        ConfigError: unknown name (the nearest ones are named), a factory that cannot be imported or does not return
            a Task, or unknown options (the accepted ones are named).
    """
    factory = _find(name)
    _check_options(name, factory, options)
    task = factory(**options)
    if not isinstance(task, Task):
        raise ConfigError(
            f"Task {name!r} is a {type(task).__name__}.", "Its factory must return a scgrpo.tasks.Task."
        )
    return task


def _find(name: str) -> TaskFactory:
    if name not in _FACTORIES and ":" not in name:
        near = difflib.get_close_matches(name, task_names(), n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ConfigError(
            f"There is no task {name!r}.",
            f"{hint}Known: {', '.join(task_names())}; a task of your own is given as `package.module:factory`.",
        )
    entry = _FACTORIES.get(name, name)
    return _import(entry) if isinstance(entry, str) else entry


def _import(path: str) -> TaskFactory:
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"The task {path!r} cannot be imported: {error}.",
            "Give `package.module:factory`, and put the folder of the module on PYTHONPATH if it is not installed.",
        ) from error


def _check_options(name: str, factory: TaskFactory, options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(factory).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    accepted = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ConfigError(
            f"Task {name!r} has no option {', '.join(map(repr, unknown))}.",
            f"Its options: {', '.join(accepted) or 'none'}.",
        )
