"""What is read from a task's factory: kind, options with their texts, needs."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from scgrpo.errors import ConfigError
from scgrpo.tasks import Task, register_task, registry, task_names
from scgrpo.tasks.describe import REQUIRED, describe, documented
from scgrpo.tasks.maze import MazeTask


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))


class Words(Task):
    """Words from a list.

    Rows have the columns that
    they have.

    Args:
        dataset_name: where they
            come from.
        seed, size: how many, and
            which ones: at random.

    Raises:
        ConfigError: never.
    """

    needs = "a dictionary"

    def __init__(self, dataset_name: str, *, seed: int = 0, size: int = 5) -> None: ...

    rows = verify = canned = None  # type: ignore[assignment]


def test_arguments_in_docstrings() -> None:
    assert documented(Words.__doc__ or "") == {
        "dataset_name": "where they come from.",
        "seed": "how many, and which ones: at random.",
        "size": "how many, and which ones: at random.",
    }
    assert documented("No arguments.") == {}
    assert documented("Args:\n    one: text.\n\n    two: more.\nReturns:\n    three: no.") == {
        "one": "text.",
        "two": "more.",
    }


def test_a_class_says_it_all() -> None:
    register_task("words", Words)
    found = describe("words")
    assert (found.kind, found.summary, found.needs) == ("answer", "Words from a list.", "a dictionary")
    assert [(o.name, o.default) for o in found.options] == [("dataset_name", REQUIRED), ("seed", 0), ("size", 5)]
    assert found.options[0].text == "where they come from."
    assert found.origin == "registered"


def test_partials_and_functions_say_what_they_can() -> None:
    register_task("hub", partial(Words, dataset_name="owner/name", seed=3))
    found = describe("hub")
    assert found.needs == "a dictionary, download owner/name"
    assert {o.name: o.default for o in found.options} == {"dataset_name": "owner/name", "seed": 3, "size": 5}

    def annotated(rows: int = 3) -> MazeTask:
        """A maze.

        Args:
            rows: so many.
        """
        raise AssertionError

    def silent(**options: Any):  # type: ignore[no-untyped-def]
        raise AssertionError

    register_task("annotated", annotated)
    register_task("silent", silent)
    found = describe("annotated")
    texts = [(o.name, o.text) for o in found.options]
    assert (found.kind, found.summary, texts) == ("environment", "A maze.", [("rows", "so many.")])
    assert (describe("silent").kind, describe("silent").options) == ("?", ())


def test_every_task_can_be_described() -> None:
    for name in task_names():
        found = describe(name)
        assert found.kind in ("answer", "environment"), name
        assert found.summary.strip(), name
        for option in found.options:
            assert option.text, f"{name}: what does {option.name} do?"
    assert describe("maze").kind == "environment"
    assert describe("gsm8k").needs.endswith("download openai/gsm8k")
    assert describe("scgrpo.tasks.maze:MazeTask").origin == "import path"
    with pytest.raises(ConfigError, match="no task 'maaze'"):
        describe("maaze")
