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
    made = {"countdown", "countdown-undo", "exact", "maze", "reach", "style", "webshop"}
    assert made | {"math", *SETS} <= set(task_names())
    for name in set(task_names()) - {"appworld", "textworld"}:  # what these need has tests of its own
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
    with pytest.raises(ConfigError, match=r"options \{'min_numbers': '3'\}.*tasks show guess_number"):
        get_task("guess_number", min_numbers="3")
    register_task("odd", lambda: 7)
    with pytest.raises(ConfigError, match="'odd' is a int"):
        get_task("odd")
    with pytest.raises(ConfigError, match=r"'scgrpo.tasks.math:INSTRUCTION' is a str"):
        get_task("scgrpo.tasks.math:INSTRUCTION")


def test_options_that_lack_or_are_of_the_wrong_kind() -> None:
    register_task("needy", lambda word, times=1: Echo(word, times=times))
    with pytest.raises(ConfigError, match=r"needs the option 'word'. Its options: word, times"):
        get_task("needy")
    with pytest.raises(ConfigError, match=r"'needy' cannot be made .*TypeError.*test_registry.py, line \d+"):
        get_task("needy", word="a", times="many")
    with pytest.raises(ConfigError, match=r"cannot be made with the options \{'eval_fraction': '0.1'\}"):
        get_task("math", eval_fraction="0.1")
    with pytest.raises(ConfigError, match=r"num_workers=0"):
        get_task("math", num_workers=0)
    with pytest.raises(ConfigError, match=r"columns names promt. Known: prompt, answer"):
        get_task("math", columns={"promt": "question"})


def test_tasks_are_slim_to_import() -> None:
    heavy = ("torch", "transformers", "trl", "datasets", "pyarrow", "math_verify", "sympy")
    code = (
        "import sys, scgrpo.tasks, scgrpo.tasks.math, scgrpo.tasks.pool, scgrpo.tasks.reward, scgrpo.tasks.data; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def install(site: Path, package: str, entries: dict[str, str], module: str = "") -> None:
    """A package with entry points, as an installer leaves it."""
    info = site / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[scgrpo.tasks]", *lines]) + "\n")
    if module:
        (site / f"{package}.py").write_text(module)


def test_installed_packages_bring_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = (
        "import sys\nfrom scgrpo.tasks.maze import MazeTask\nsys.entry_test_imported = True\n"
        "class Ours(MazeTask):\n    '''A maze of ours.'''\n    name = 'ours'\n"
    )
    install(tmp_path, "entry_test_pack", {"ours": "entry_test_pack:Ours", "reach": "entry_test_pack:Ours"}, module)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "ours" in task_names()
    assert get_task("reach").name == "reach", "what is built in stays what it is"
    assert not hasattr(sys, "entry_test_imported"), "nothing is imported before it is asked for"
    try:
        assert get_task("ours", eval_part="tune").name == "ours"
    finally:
        del sys.entry_test_imported
    assert registry.task_origin("ours") == "package entry_test_pack"
    assert registry.training_defaults("ours")["teacher_template"] == "tiny"
    with pytest.raises(ConfigError, match="Did you mean 'ours'"):
        get_task("our")
    with pytest.raises(ConfigError, match="already a task 'ours'"):
        register_task("ours", Echo)
    register_task("ours", Echo, replace=True)
    assert get_task("ours").name == "echo"


def test_broken_packages_are_named_and_break_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "entry_test_bad", {"bad": "entry_test_bad:Task"}, "1 / 0\n")
    install(tmp_path, "entry_test_gone", {"gone": "entry_test_nowhere:Task"})
    install(tmp_path, "entry_test_less", {"less": "entry_test_less:Missing"}, "\n")
    install(tmp_path, "entry_test_quits", {"quits": "entry_test_quits:Task"}, "raise SystemExit(3)\n")
    install(tmp_path, "entry_test_module", {"module": "entry_test_module"}, "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert {"bad", "gone", "less", "quits", "module"} <= set(task_names())
    assert get_task("reach").name == "reach"
    with pytest.raises(ConfigError, match="The task 'module' is a module"):
        get_task("module")
    whys = {
        "bad": "ZeroDivisionError",
        "gone": "ModuleNotFoundError",
        "less": "AttributeError",
        "quits": "SystemExit",
    }
    for name, why in whys.items():
        with pytest.raises(ConfigError, match=rf"The task '{name}' of package entry_test_{name} cannot be.*{why}"):
            get_task(name)


def test_two_packages_with_one_name_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("entry_test_one", "entry_test_two"):
        install(tmp_path, package, {"same": f"{package}:Echo"}, "from scgrpo.tasks.maze import MazeTask as Echo\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"entry_test_\w+ and package entry_test_\w+ both bring a task 'same'"):
        get_task("same")
    assert get_task("entry_test_two:Echo").name == "maze"
