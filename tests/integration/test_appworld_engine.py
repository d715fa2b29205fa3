"""AppWorld's own engine, in the small world that is built here. Skips where AppWorld is not installed:

scgrpo appworld setup --root ROOT
SCGRPO_APPWORLD_ROOT=ROOT pytest tests/integration/test_appworld_engine.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scgrpo.cli.main import main
from scgrpo.tasks import Row, Status, Verdict
from scgrpo.tasks.appworld import AppWorldTask, environment
from scgrpo.tasks.appworld.install import build_mini_world
from scgrpo.tasks.appworld.places import VARIABLE, Places
from scgrpo.tasks.appworld.prompts import action_of

ROOT = Path(os.environ.get(VARIABLE) or "/nonexistent")
pytestmark = pytest.mark.skipif(
    not (ROOT / "venv" / "bin" / "python").exists(),
    reason=f"AppWorld is not installed: scgrpo appworld setup --root ROOT, and {VARIABLE}=ROOT",
)
CODE_TIMEOUT_S = 20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the installed engine and a small world that was just built."""
    folder = tmp_path_factory.mktemp("appworld")
    for parent in (folder, folder.parent):
        parent.chmod(0o755)
    (folder / "venv").symlink_to((ROOT / "venv").resolve())
    build_mini_world(Places(folder))
    return folder


@pytest.fixture(scope="module")
def task(root: Path) -> Iterator[AppWorldTask]:
    task = AppWorldTask(root=str(root), mini=True, num_servers=2, code_timeout_s=CODE_TIMEOUT_S)
    yield task
    task.close()


def solution(root: Path, row: Row) -> str:
    path = root / "mini" / "data" / "tasks" / row["task_id"] / "ground_truth" / "compiled_solution.py"
    return action_of(f"{path.read_text()}\nsolution(apis, requester)")


def observed(task: AppWorldTask, *codes: str) -> list[str]:
    world = task.environment(task.rows("train")[0])
    seen = [world.step(action_of(code)).observation for code in codes]
    world.close()
    return seen


def test_solutions_pass_and_other_answers_do_not(task: AppWorldTask, root: Path) -> None:
    train, held_out = task.rows("train"), task.rows("eval")
    assert (len(train), len(held_out)) == (6, 3)
    rows = [*train, *held_out]

    def play(row: Row) -> Verdict:
        if row in held_out:
            return task.verify([action_of("apis.supervisor.complete_task(answer='nothing')")], [row])[0]
        return task.verify([solution(root, row)], [row])[0]

    with ThreadPoolExecutor(2) as threads:
        played = dict(zip([row["task_id"] for row in rows], threads.map(play, rows), strict=True))
    assert {row["task_id"]: played[row["task_id"]].score for row in train} == {row["task_id"]: 1.0 for row in train}
    assert {row["task_id"]: played[row["task_id"]].score for row in held_out} == {
        row["task_id"]: 0.0 for row in held_out
    }
    assert played["minitotal_3"].detail.startswith("0 of 3 tests pass")


def test_a_rollout_in_steps(task: AppWorldTask) -> None:
    row = next(row for row in task.rows("train") if row["task_id"] == "minilook_1")
    world = task.environment(row)
    apps = world.step(action_of("print(apis.api_docs.show_app_descriptions())", "which apps?"))
    assert "simple_note" in apps.observation
    doc = world.step(action_of("print(apis.api_docs.show_api_doc(app_name='simple_note', api_name='show_note'))"))
    assert "note_id" in doc.observation
    login = (
        "passwords = {a['account_name']: a['password'] for a in apis.supervisor.show_account_passwords()}\n"
        "token = apis.simple_note.login(username='ada.test@example.com', password=passwords['simple_note'])"
        "['access_token']\n"
        "print(apis.simple_note.search_notes(access_token=token, page_limit=20))"
    )
    notes = json.loads(world.step(action_of(login)).observation)
    note_id = next(note["note_id"] for note in notes if note["title"] == "Spare key")
    assert "422" in world.step(action_of("apis.simple_note.show_note(access_token=token)")).observation
    # Variables stay from step to step, also after an error.
    done = world.step(
        action_of(
            f"note = apis.simple_note.show_note(note_id={note_id}, access_token=token)\n"
            "apis.supervisor.complete_task(answer=note['content'])"
        )
    )
    assert done.done
    assert world.verdict() == Verdict(1.0, detail="2 of 2 tests pass")


def test_the_share_of_tests_as_a_score(root: Path) -> None:
    task = AppWorldTask(root=str(root), mini=True, num_servers=1, reward="score")
    try:
        row = next(row for row in task.rows("train") if row["task_id"] == "minipin_1")
        (verdict,) = task.verify([action_of("apis.supervisor.complete_task()")], [row])
    finally:
        task.close()
    assert verdict.score == pytest.approx(1 / 3)
    assert verdict.detail.startswith("1 of 3 tests pass; failed: Nothing but notes was changed.")


def test_tests_and_solutions_are_out_of_reach(task: AppWorldTask, root: Path) -> None:
    truth = root / "mini" / "data" / "tasks" / "minilook_1" / "ground_truth"
    load = "from appworld.task import Task\nprint(Task.load('minilook_1', load_ground_truth={}).{})"
    by_file, by_engine, specs, shell = observed(
        task,
        f"import pathlib\nprint(pathlib.Path('{truth}/answer.json').read_text())",
        load.format(True, "ground_truth.answer"),
        load.format(False, "instruction"),
        "import os\nprint(os.system('id'))",
    )
    assert "blue drawer" not in by_file + by_engine
    assert "PermissionError" in by_file
    assert "PermissionError" in by_engine
    assert "Spare key" in specs
    assert "not allowed: os.system" in shell


def test_code_that_never_ends_is_stopped_and_the_model_is_told(task: AppWorldTask) -> None:
    stopped, after = observed(task, "while True: pass", "print('still here')")
    assert f"timed out after {CODE_TIMEOUT_S} seconds" in stopped
    assert after.strip() == "still here"


def test_code_that_cannot_be_stopped_costs_its_own_rollout(
    task: AppWorldTask, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_GRACE_S", 5.0)
    row = task.rows("train")[0]
    other, stubborn = task.environment(row), task.environment(row)
    other.step(action_of("x = 1"))
    forever = "sum(range(10**13))"  # in C, where no signal is looked at
    assert stubborn.step(action_of(forever)).done
    assert stubborn.verdict().status is Status.TIMEOUT
    assert stubborn.verdict().detail.startswith(f"{row['task_id']}: ")
    assert other.step(solution(root, row)).done
    assert other.verdict().score == 1.0


def test_memory_and_output_are_bounded(task: AppWorldTask) -> None:
    big, long, after = observed(task, "x = bytearray(10**11)", "print('y' * 100_000)", "print('still here')")
    assert "MemoryError" in big
    assert len(long) < 10_100
    assert long.endswith("more characters were cut off]")
    assert after.strip() == "still here"


def test_code_may_print_anything(task: AppWorldTask) -> None:
    """A printed character that UTF-8 does not hold must not take the episode's verdict away."""
    world = task.environment(task.rows("train")[0])
    seen = [
        world.step(action_of(code)).observation for code in ('print("a\\ud800b", "é\\x00")', "print('still here')")
    ]
    assert [text.strip() for text in seen] == ["a\\ud800b é\x00", "still here"]
    assert world.verdict().status is Status.GRADED


def test_a_world_knows_nothing_of_the_one_before(task: AppWorldTask) -> None:
    observed(task, "import json\njson.planted = 1", "y = 1")
    planted, variable = observed(task, "import json\nprint(hasattr(json, 'planted'))", "print(y)")
    assert planted.strip() == "False"
    assert "NameError" in variable


def test_check_says_that_all_is_well(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["appworld", "check", "--mini", "--root", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "all as it should be" in printed
    assert "0.1.3.post1" in printed
