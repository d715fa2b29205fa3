"""What there is to say of a task before it is made: kind, options, needs; read from its factory."""

from __future__ import annotations

import functools
import inspect
import re
from dataclasses import dataclass
from typing import Any

from scgrpo.tasks.base import Task
from scgrpo.tasks.environment import EnvironmentTask
from scgrpo.tasks.math.sets import SETS
from scgrpo.tasks.registry import TaskFactory, task_class, task_factory, task_origin, unwrapped

REQUIRED = inspect.Parameter.empty
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SOURCES = ("dataset_name", "eval_dataset_name")
# "name, other_name: text" in the section Args of a docstring
_ENTRY = re.compile(r" {4}(\w+(?:, \w+)*): (.*)")


@dataclass(frozen=True)
class Option:
    """One option of a task: its default (`REQUIRED`: none) and what its docstring says."""

    name: str
    default: Any
    text: str


@dataclass(frozen=True)
class Description:
    """Attributes:
    name: as it was asked for.
    origin: where it comes from, in words.
    kind: `answer` (one completion is graded), `environment` (a conversation), `?` (its factory does not say).
    summary: one line.
    needs: what it takes besides the package; "" for nothing.
    options: in order.
    """

    name: str
    origin: str
    kind: str
    summary: str
    needs: str
    options: tuple[Option, ...]


def describe(name: str) -> Description:
    """Of a task by name or import path. Its module is imported, the task is not made.

    Raises:
        ConfigError: unknown name, or it cannot be imported.
    """
    factory = task_factory(name)
    made = task_class(factory)
    kind = "?" if made is None else "environment" if issubclass(made, EnvironmentTask) else "answer"
    options = _options(factory, made)
    sources = [option.default for option in options if option.name in _SOURCES]
    ids = [SETS[source].hub_id if source in SETS else source for source in sources if isinstance(source, str)]
    downloads = [source for source in ids if _HUB_ID.fullmatch(source)]
    needs = [made.needs if made is not None and isinstance(made.needs, str) else "", *_downloads(downloads)]
    return Description(
        name=name,
        origin=task_origin(name),
        kind=kind,
        summary=_summary(factory),
        needs=", ".join(dict.fromkeys(need for need in needs if need)),
        options=options,
    )


def _downloads(sources: list[str]) -> list[str]:
    return [f"download {' and '.join(sources)}"] if sources else []


def _summary(factory: TaskFactory) -> str:
    own = factory.__doc__ if isinstance(factory, functools.partial) else None
    doc = own if own and own != functools.partial.__doc__ else inspect.getdoc(unwrapped(factory)) or ""
    return doc.split("\n\n")[0].replace("\n", " ")


def _options(factory: TaskFactory, made: type[Task] | None) -> tuple[Option, ...]:
    target = unwrapped(factory)
    texts: dict[str, str] = {}
    for source in (target, *(made.__mro__ if made is not None else ())):
        for doc in (source.__doc__, getattr(source, "__init__", None).__doc__ if inspect.isclass(source) else None):
            texts = {**documented(doc or ""), **texts}
    parameters = inspect.signature(factory).parameters.values()
    return tuple(
        Option(p.name, p.default, texts.get(p.name, ""))
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )


def documented(doc: str) -> dict[str, str]:
    """Texts of the arguments, by name, in the section `Args:` of a docstring."""
    lines = iter(inspect.cleandoc(doc).splitlines())
    found: dict[str, str] = {}
    names: list[str] = []
    if not any(line == "Args:" for line in lines):
        return {}
    for line in lines:
        if line.strip() and not line.startswith(" "):
            break
        entry = _ENTRY.fullmatch(line)
        if entry is not None:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found
