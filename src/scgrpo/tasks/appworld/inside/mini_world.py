"""Makes a small world of our own for the AppWorld engine: `python mini_world.py DATA_FOLDER`.

Runs in AppWorld's own virtual environment. One person with notes, and nine tasks with their own evaluations: three
of each kind in `_KINDS`, of which the first two are in the split `train` and the third in `dev`. Nothing of the
benchmark is in it: people, notes, instructions and tests are made here.

The folder gets what the engine reads of its own data: `api_docs`, `base_dbs`, `datasets`, `tasks/<id>/{dbs,
ground_truth, specs.json}` and `version.txt`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

DATETIME = "2024-03-01T09:00:00"
PERSON = {"first_name": "Ada", "last_name": "Test", "email": "ada.test@example.com", "phone_number": "5550100100"}
ABOUT = {"birthday": "1990-01-01", "sex": "female"}
PASSWORD = "quiet-lamp-12"
NUM_PER_KIND = 3


class MiniTask(NamedTuple):
    """A task: notes as (title, content, tags, pinned), and what its evaluation and solution consist of."""

    instruction: str
    notes: list[tuple[str, str, list[str], bool]]
    answer: Any
    private: dict[str, Any]
    evaluation: str
    requirements: list[tuple[str, str]]
    solution: str
    difficulty: int


_LOGIN = """\
passwords = {a["account_name"]: a["password"] for a in apis.supervisor.show_account_passwords()}
token = apis.simple_note.login(username=EMAIL, password=passwords["simple_note"])["access_token"]
notes = apis.simple_note.search_notes(access_token=token, page_limit=20)
""".replace("EMAIL", repr(PERSON["email"]))
_ANSWER = """\
    with test("The answer is right."):
        test.answer(json.loads(models.end.supervisor.Task.all()[0].answer), ground_truth_answer)
"""
_UNCHANGED = """\
    with test("Nothing was changed."):
        test.case(models.changed_model_names(), "==", set())
"""
_ONLY_NOTES = """\
    with test("Nothing but notes was changed."):
        test.case(models.changed_model_names(), "==", {"simple_note.Note"})
"""
_FAILS_AT_FIRST, _HOLDS_AT_FIRST = "no_op_fail", "no_op_pass"


def _look(number: int) -> MiniTask:
    """Easy: find one note and say what is in it."""
    place = ("the blue drawer", "the garden shed", "a tin on the shelf")[number]
    notes = [("Spare key", f"The spare key is in {place}.", ["home"], False), *_other_notes(number)]
    return MiniTask(
        "What does my Simple Note note with the title 'Spare key' say? Answer with its whole content.",
        notes,
        notes[0][1],
        {},
        _ANSWER + _UNCHANGED,
        [("The answer is right.", _FAILS_AT_FIRST), ("Nothing was changed.", _HOLDS_AT_FIRST)],
        _LOGIN
        + 'note_id = next(n["note_id"] for n in notes if n["title"] == "Spare key")\n'
        + "note = apis.simple_note.show_note(note_id=note_id, access_token=token)\n"
        + 'apis.supervisor.complete_task(answer=note["content"])\n',
        1,
    )


def _pin(number: int) -> MiniTask:
    """Several steps: change some notes and no others."""
    tag = ("garden", "travel", "music")[number]
    notes = [(f"{tag} {i}", f"About {tag}, part {i}.", [tag], i == 0) for i in range(3 + number)]
    notes += [(f"old {i}", "Nothing of interest.", ["home"], i == 1) for i in range(4)]
    pinned = sorted(title for title, _, tags, _ in notes if tag in tags)
    return MiniTask(
        f"In Simple Note, pin all my notes that have the tag '{tag}', and unpin all others.",
        notes,
        None,
        {"pinned": pinned},
        _ONLY_NOTES
        + '    with test("The right notes are pinned."):\n'
        + "        notes = models.end.simple_note.Note.all()\n"
        + '        test.case(sorted(n.title for n in notes if n.pinned), "==", list(private_data.pinned))\n'
        + '    with test("No note was added or removed."):\n'
        + '        added, _, removed = models.changed_records("simple_note.Note")\n'
        + '        test.case(len(added) + len(removed), "==", 0)\n',
        [
            ("Nothing but notes was changed.", _FAILS_AT_FIRST),
            ("The right notes are pinned.", _FAILS_AT_FIRST),
            ("No note was added or removed.", _HOLDS_AT_FIRST),
        ],
        _LOGIN
        + "for note in notes:\n"
        + f'    pinned = {tag!r} in note["tags"]\n'
        + '    if pinned != note["pinned"]:\n'
        + '        apis.simple_note.update_note(note_id=note["note_id"], pinned=pinned, access_token=token)\n'
        + "apis.supervisor.complete_task()\n",
        2,
    )


def _total(number: int) -> MiniTask:
    """Several steps: read many notes, compute, and write one."""
    tag = ("kitchen", "books", "tools")[number]
    amounts = [7 * i + 3 * number + 2 for i in range(6 + number)]
    notes = [(f"{tag} receipt {i}", f"Paid {a} dollars in shop {i}.", [tag], False) for i, a in enumerate(amounts)]
    notes += _other_notes(number)
    title, total = f"{tag} total", str(sum(amounts))
    return MiniTask(
        f"Each of my Simple Note notes with the tag '{tag}' says how many dollars I paid. Make a new note with the "
        f"title '{title}' whose content is the sum alone, for example 12.",
        notes,
        None,
        {"title": title, "total": total},
        _ONLY_NOTES
        + '    with test("One note was added, and none changed."):\n'
        + '        added, updated, removed = models.changed_records("simple_note.Note")\n'
        + '        test.case([len(added), len(updated), len(removed)], "==", [1, 0, 0])\n'
        + '    with test("It has the title and the sum."):\n'
        + '        added, _, _ = models.changed_records("simple_note.Note")\n'
        + "        wanted = [(private_data.title, private_data.total)]\n"
        + '        test.case([(n.title, n.content.strip()) for n in added], "==", wanted)\n',
        [
            ("Nothing but notes was changed.", _FAILS_AT_FIRST),
            ("One note was added, and none changed.", _FAILS_AT_FIRST),
            ("It has the title and the sum.", _FAILS_AT_FIRST),
        ],
        _LOGIN
        + "total = 0\n"
        + "for note in notes:\n"
        + f'    if {tag!r} in note["tags"]:\n'
        + '        content = apis.simple_note.show_note(note_id=note["note_id"], access_token=token)["content"]\n'
        + '        total += int(content.split("Paid ")[1].split(" ")[0])\n'
        + f"apis.simple_note.create_note(title={title!r}, content=str(total), access_token=token)\n"
        + "apis.supervisor.complete_task()\n",
        3,
    )


def _other_notes(number: int) -> list[tuple[str, str, list[str], bool]]:
    return [(f"idea {i}", f"An idea, number {i + number}.", ["ideas"], False) for i in range(5)]


_KINDS = {"minilook": _look, "minipin": _pin, "minitotal": _total}


def build(data: Path) -> None:
    """Write the world; a folder that is there is replaced."""
    root = data.parent
    shutil.rmtree(data, ignore_errors=True)
    (data / "tasks").mkdir(parents=True)
    (data / "datasets").mkdir()
    os.environ["APPWORLD_ROOT"] = str(root)
    from appworld import update_root
    from appworld.common.constants import DB_VERSION

    update_root(str(root))
    (data / "version.txt").write_text(DB_VERSION)
    from appworld.collections.api_docs import ApiDocCollection

    api_docs = json.loads(json.dumps(ApiDocCollection.build()))
    api_docs.pop("admin", None)
    _write_api_docs(data / "api_docs" / "standard", api_docs)
    _save_base(data / "base_dbs", api_docs)
    splits: dict[str, list[str]] = {"train": [], "dev": []}
    for kind, make in _KINDS.items():
        for number in range(NUM_PER_KIND):
            task_id, task = f"{kind}_{number + 1}", make(number)
            splits["train" if number < NUM_PER_KIND - 1 else "dev"].append(task_id)
            _save_state(data / "tasks" / task_id / "dbs", data / "base_dbs", task)
            _write_task(data / "tasks" / task_id, task, DB_VERSION)
    for split, task_ids in splits.items():
        (data / "datasets" / f"{split}.txt").write_text("\n".join(task_ids) + "\n")


def _write_api_docs(folder: Path, api_docs: dict[str, dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    for app, docs in api_docs.items():
        # The engine takes this key out of each entry when it loads them.
        _write_json(folder / f"{app}.json", {name: {**doc, "canary_string": ""} for name, doc in docs.items()})


def _save_base(folder: Path, api_docs: dict[str, dict[str, Any]]) -> None:
    """A database for each app; empty, but for the one from which the player reads what the APIs are."""
    from appworld.apps import get_all_apps
    from appworld.collections.models import ModelCollection

    apps, memory = list(get_all_apps()), ":memory:base"
    models = ModelCollection.load(
        to_db_home_path=memory, from_db_home_path=memory, load_apps=list(apps), create_db=True
    )
    fields = ("api_name", "path", "method", "description", "parameters", "response_schemas")
    for app, docs in api_docs.items():
        for doc in docs.values():
            models.api_docs.ApiDoc(app_name_=app, **{field: doc[field] for field in fields}).save()
    models.save(db_home_path=str(folder), format="full", app_names=apps)


def _save_state(folder: Path, base: Path, task: MiniTask) -> None:
    """What the task adds to the base. The engine saves what was played in the same form, as changes of the base."""
    from appworld.apps import get_all_apps
    from appworld.apps.model_lib import CachedDBHandler
    from appworld.collections.models import ModelCollection

    apps = list(get_all_apps())
    CachedDBHandler.reset()
    models = ModelCollection.load(to_db_home_path=":memory:mini", from_db_home_path=str(base), load_apps=list(apps))
    _fill(models, task)
    models.save(db_home_path=str(folder), format="changes", app_names=apps, save_model_hashes=True)


def _fill(models: Any, task: MiniTask) -> None:
    from appworld.common.datetime import DateTime

    written = DateTime(2024, 2, 1, 9, 0, 0)
    models.admin.MainUser(**PERSON, **ABOUT).save()
    supervisor = models.supervisor.Supervisor(**PERSON, **ABOUT)
    supervisor.save()
    models.supervisor.Task(supervisor_id=supervisor.id, instruction=task.instruction).save()
    account = models.supervisor.AccountPassword(
        supervisor_id=supervisor.id, account_name="simple_note", password=PASSWORD
    )
    account.save()
    name = {key: PERSON[key] for key in ("first_name", "last_name", "email")}
    user = models.simple_note.User(**name, password=PASSWORD, verified=True)
    user.save()
    for title, content, tags, pinned in task.notes:
        note = models.simple_note.Note(
            user_id=user.id,
            title=title,
            content=content,
            tags=tags,
            pinned=pinned,
            created_at=written,
            updated_at=written,
        )
        note.save()


def _write_task(folder: Path, task: MiniTask, version: str) -> None:
    truth = folder / "ground_truth"
    truth.mkdir()
    _write_json(
        folder / "specs.json",
        {"instruction": task.instruction, "supervisor": PERSON, "datetime": DATETIME, "db_version": version},
    )
    # What is missing here the engine would compute from the solution, with packages that it does not install.
    counts = {
        "num_apps": 1,
        "num_apis": 4,
        "num_api_calls": 4,
        "num_solution_code_lines": len(task.solution.splitlines()),
    }
    _write_json(truth / "metadata.json", {"difficulty": task.difficulty, "mode": "minimal", **counts})
    _write_json(truth / "required_apps.json", ["simple_note"])
    _write_json(truth / "public_data.json", {})
    _write_json(truth / "private_data.json", task.private)
    _write_json(truth / "answer.json", task.answer)
    requirements = [{"requirement": text, "label": label} for text, label in task.requirements]
    _write_json(truth / "test_data.json", requirements)
    header = "def evaluate(test, public_data, private_data, main_user, models, ground_truth_answer):\n"
    (truth / "evaluation.py").write_text(f"import json\n\n\n{header}{task.evaluation}")
    body = "".join(f"    {line}\n" for line in task.solution.splitlines())
    (truth / "compiled_solution.py").write_text(f"def solution(apis, requester):\n{body}")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


if __name__ == "__main__":
    build(Path(sys.argv[1]).resolve())
