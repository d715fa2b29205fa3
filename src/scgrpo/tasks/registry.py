"""Tasks by name: built-in ones, those that were registered, and those of installed packages.

A package adds tasks by an entry point, and nothing of it is imported before one of them is asked for:

    [project.entry-points."scgrpo.tasks"]
    backwards = "my_package.tasks:Backwards"
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import traceback
import typing
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from scgrpo.errors import ConfigError, ScgrpoError
from scgrpo.tasks.base import Task

TaskFactory = Callable[..., Task]
ENTRY_POINTS = "scgrpo.tasks"

# Built-in tasks as `module:factory`, imported when they are asked for.
_FACTORIES: dict[str, str | TaskFactory] = {
    "reach": "scgrpo.tasks.reach:ReachTask",
    "countdown": "scgrpo.tasks.countdown:CountdownTask",
    "countdown-undo": "scgrpo.tasks.countdown_undo:CountdownUndoTask",
    "style": "scgrpo.tasks.style:StyleTask",
    "maze": "scgrpo.tasks.maze:MazeTask",
    "frozen_lake": "scgrpo.tasks.games.frozen_lake:FrozenLakeTask",
    "guess_number": "scgrpo.tasks.games.guess_number:GuessNumberTask",
    "textworld": "scgrpo.tasks.games.textworld:TextWorldTask",
    "math": "scgrpo.tasks.math:MathTask",
    "gsm8k": "scgrpo.tasks.math:gsm8k",
    "exact": "scgrpo.tasks.exact:ExactTask",
    "dapo_math": "scgrpo.tasks.math:dapo_math",
    "dapo_math_raw": "scgrpo.tasks.math:dapo_math_raw",
    "hendrycks_math": "scgrpo.tasks.math:hendrycks_math",
    "aime24": "scgrpo.tasks.math:aime24",
    "aime25": "scgrpo.tasks.math:aime25",
    "math500": "scgrpo.tasks.math:math500",
    "amc23": "scgrpo.tasks.math:amc23",
    "minerva": "scgrpo.tasks.math:minerva",
    "olympiadbench": "scgrpo.tasks.math:olympiadbench",
    "webshop": "scgrpo.tasks.webshop:WebShopTask",
    "appworld": "scgrpo.tasks.appworld:AppWorldTask",
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
    return sorted({*_FACTORIES, *_installed()})


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
    if name in task_names() and not replace:
        raise ConfigError(f"There is already a task {name!r}.", "Choose another name, or pass replace=True.")
    _FACTORIES[name] = factory


def get_task(name: str, /, **options: Any) -> Task:
    """A task by its name, or by the import path `package.module:callable` of its factory.

    Raises:
        ConfigError: unknown name (the nearest ones are named), a factory that cannot be imported or does not return
            a Task, options that are unknown (the accepted ones are named), missing, or not of the right kind.
    """
    factory = task_factory(name)
    _check_options(name, factory, options)
    try:
        task = factory(**options)
    except ScgrpoError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename}, line {last.lineno}"
        raise ConfigError(
            f"Task {name!r} cannot be made with the options {options}: {error!r} ({place}).",
            f"`scgrpo tasks show {name}` lists its options with their defaults.",
        ) from error
    if not isinstance(task, Task):
        raise ConfigError(
            f"Task {name!r} is a {type(task).__name__}.", "Its factory must return a scgrpo.tasks.Task."
        )
    return task


def task_factory(name: str) -> TaskFactory:
    """What makes the task, imported.

    Raises:
        ConfigError: unknown name, or it cannot be imported, or is nothing that can be called.
    """
    factory = _found(name)
    if not callable(factory):
        raise ConfigError(
            f"The task {name!r} is a {type(factory).__name__}.", "Name a class or a function that makes it."
        )
    return factory


def _found(name: str) -> TaskFactory:
    if name in _FACTORIES:
        entry = _FACTORIES[name]
        return _import(entry) if isinstance(entry, str) else entry
    installed = _installed().get(name, [])
    if len(installed) > 1:
        raise ConfigError(
            f"{' and '.join(map(_package, installed))} both bring a task {name!r}.",
            f"Uninstall one, or name the one you mean: {' or '.join(entry.value for entry in installed)}.",
        )
    if installed:
        return _load(installed[0])
    if ":" in name:
        return _import(name)
    near = difflib.get_close_matches(name, task_names(), n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ConfigError(
        f"There is no task {name!r}.",
        f"{hint}Known: {', '.join(task_names())}; a task of your own is given as `package.module:factory`.",
    )


def training_defaults(name: str) -> dict[str, Any]:
    """What the task's class says about training on it, by the names of the trainer's settings. Empty for an unknown
    task, and for a factory that does not say what it makes (`task_class`)."""
    try:
        made = task_class(task_factory(name))
    except ConfigError:
        return {}
    return {} if made is None else {"teacher_template": made.template, "success_threshold": made.success_threshold}


def unwrapped(factory: TaskFactory) -> Any:
    """The class or function behind a `functools.partial`."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    return factory


def task_class(factory: TaskFactory) -> type[Task] | None:
    """The class of what a factory makes: itself, or what the function is annotated to return; None if neither."""
    made = unwrapped(factory)
    if not inspect.isclass(made):
        try:
            made = typing.get_type_hints(made).get("return")
        except (NameError, TypeError, AttributeError):  # names that exist for type checkers only
            return None
    return made if inspect.isclass(made) and issubclass(made, Task) else None


def task_origin(name: str) -> str:
    """Where a task comes from, in words."""
    if name in _FACTORIES:
        entry = _FACTORIES[name]
        return "scgrpo" if isinstance(entry, str) and entry.startswith("scgrpo.") else "registered"
    installed = _installed().get(name, [])
    return " and ".join(map(_package, installed)) if installed else "import path"


def _installed() -> dict[str, list[EntryPoint]]:
    """Entry points by name; those of several packages with one name stand together."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        same = found.setdefault(entry.name, [])
        if entry.value not in [other.value for other in same]:  # a path may be searched twice
            same.append(entry)
    return found


def _package(entry: EntryPoint) -> str:
    return f"package {entry.dist.name}" if entry.dist is not None else entry.value


def _load(entry: EntryPoint) -> TaskFactory:
    try:
        return entry.load()
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"The task {entry.name!r} of {_package(entry)} cannot be imported ({entry.value}): {error!r}.",
            "Mend or uninstall that package; other tasks are not affected.",
        ) from error


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
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    accepted = [p.name for p in named]
    missing = [p.name for p in named if p.default is p.empty and p.name not in options]
    if missing:
        raise ConfigError(
            f"Task {name!r} needs the option {', '.join(map(repr, missing))}.",
            f"Its options: {', '.join(accepted)}.",
        )
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ConfigError(
            f"Task {name!r} has no option {', '.join(map(repr, unknown))}.",
            f"Its options: {', '.join(accepted) or 'none'}.",
        )
