"""Tasks by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scgrpo.errors import ConfigError
from scgrpo.tasks import Canned, Task, Verdict, get_task, register_task, registry, task_names
from scgrpo.tasks.math import SETS


class Echo(Task):
    """Correct is what repeats the word."""

    name = "echo"

    def __init__(self, word: str = "yes", *, times: int = 1) -> None:
        self.word = word * times

    def rows(self, split: str, limit: int | None = None) -> list[dict]:
        return []

    def verify(self, completions: list, rows: list) -> list[Verdict]:
        return [Verdict(float(c == self.word)) for c in completions]

    def canned(self) -> Canned:
        return Canned({"problem_id": "0", "prompt": "?"}, (self.word,), ("no",))


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))


def test_built_in_tasks() -> None:
    made = {"countdown", "countdown-undo", "maze", "reach", "style", "webshop"}
    assert made | {"math", *SETS} <= set(task_names())
    for name in task_names():
        task = get_task(name)
        assert task.name == name
        canned = task.canned()
        assert [v.score for v in task.verify(canned.right, [canned.row] * len(canned.right))] == [1.0] * len(
            canned.right
        )
        assert [v.score for v in task.verify(canned.wrong, [canned.row] * len(canned.wrong))] == [0.0] * len(
            canned.wrong
        )
        task.close()


def test_own_tasks_by_name_and_by_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_task("echo", Echo)
    assert get_task("echo", word="ab", times=2).verify(["abab"], [{}])[0].score == 1.0
    with pytest.raises(ConfigError, match="already a task 'echo'"):
        register_task("echo", Echo)
    register_task("echo", lambda: Echo("other"), replace=True)
    assert get_task("echo").canned().right == ("other",)
    (tmp_path / "registry_test_task.py").write_text("from scgrpo.tasks.math import MathTask\nvalue = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert get_task("registry_test_task:MathTask", name="mine").name == "mine"


def test_unknown_names_and_options_say_what_there_is() -> None:
    with pytest.raises(
        ConfigError, match=r"no task 'gsm8'. Did you mean 'gsm8k'\?.*Known: .*countdown, countdown-undo, dapo_math"
    ):
        get_task("gsm8")
    register_task("echo", Echo)
    with pytest.raises(ConfigError, match=r"no option 'tims', 'wrd'. Its options: word, times"):
        get_task("echo", tims=2, wrd="x")
    with pytest.raises(ConfigError, match="cannot be imported: No module named 'nowhere'"):
        get_task("nowhere:Task")
    with pytest.raises(ConfigError, match="has no attribute 'Missing'"):
        get_task("scgrpo.tasks.math:Missing")
    register_task("odd", lambda: 7)
    with pytest.raises(ConfigError, match="'odd' is a int"):
        get_task("odd")


def test_tasks_are_slim_to_import() -> None:
    heavy = ("torch", "transformers", "trl", "datasets", "pyarrow", "math_verify", "sympy")
    code = (
        "import sys, scgrpo.tasks, scgrpo.tasks.math, scgrpo.tasks.pool, scgrpo.tasks.reward, scgrpo.tasks.data; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
