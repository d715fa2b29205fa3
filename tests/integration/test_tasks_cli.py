"""`scgrpo tasks`: what it lists, what it shows, and what it finds wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scgrpo.cli.main import main
from scgrpo.tasks import task_names
from scgrpo.tasks.math import SETS

MODULE = '''
from scgrpo.errors import MissingExtraError
from scgrpo.tasks import Canned, Task, Verdict


class Fine(Task):
    """Say yes."""

    name = "fine"

    def rows(self, split, limit=None):
        return [{"problem_id": f"{split}-{n}", "prompt": f"yes? {n}"} for n in range(4)][:limit]

    def verify(self, completions, rows):
        return [Verdict(float(c == "yes")) for c in completions]

    def canned(self):
        return Canned({"problem_id": "c", "prompt": "yes?"}, ("yes",), ("no",))


class Misjudges(Fine):
    def verify(self, completions, rows):
        return [Verdict(1.0) for c in completions]


class Half(Fine):
    """Half a point is not success here."""
    success_threshold = 1.0

    def verify(self, completions, rows):
        return [Verdict(1.0 if c == "yes" else 0.5) for c in completions]


class Ungraded(Fine):
    def verify(self, completions, rows):
        return [Verdict.error("no compiler") if c == "yes" else Verdict(0.0) for c in completions]


class Falls(Fine):
    def verify(self, completions, rows):
        return [Verdict(float(c[0] == "y")) for c in completions]


class Overlaps(Fine):
    def rows(self, split, limit=None):
        return [{"problem_id": str(n), "prompt": "?"} for n in range(3)][:limit]


class Repeats(Fine):
    def rows(self, split, limit=None):
        return [{"problem_id": split, "prompt": "?"}] * 2


class Wavers(Fine):
    count = 0

    def rows(self, split, limit=None):
        Wavers.count += 1
        return [{"problem_id": f"{split}{Wavers.count}", "prompt": "?"}]


class Numbered(Fine):
    def rows(self, split, limit=None):
        return [{"problem_id": 7, "prompt": "?"}]


class Unspeakable(Fine):
    def rows(self, split, limit=None):
        return [{"problem_id": split, "prompt": "?", "tests": {1, 2}}]


class Promptless(Fine):
    def rows(self, split, limit=None):
        return [{"problem_id": split, "prompt": [7]}]


class Empty(Fine):
    def rows(self, split, limit=None):
        return []


class Helpless(Fine):
    def verify(self, completions, rows):
        raise MissingExtraError("There is no judge.", "Start one.")


class Needs(Fine):
    needs = "extra nothing"

    def __init__(self, size: int = 3):
        raise MissingExtraError("It needs a thing.", "Install the thing.")
'''


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checked_tasks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_list_has_every_task(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "checked-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: checked\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[scgrpo.tasks]\nfine = checked_tasks:Fine\nbroken = nowhere:Task\n")
    assert main(["tasks", "list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(lines) == task_names()
    assert "environment" in lines["maze"]
    assert "download openai/gsm8k" in lines["gsm8k"]
    assert "GSM8K: word problems" in lines["gsm8k"]
    assert len({lines[name].split("download ")[-1] for name in SETS}) == len(SETS), "each says what it is"
    assert lines["fine"].endswith("Say yes. [package checked]")
    assert "broken" in lines["broken"].split()[1]
    assert "No module named 'nowhere'" in lines["broken"]


def test_a_task_is_shown_with_its_options_and_what_is_there(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert main(["tasks", "show", "reach", "--task_options", '{"eval_part": "tune"}']) == 0
    shown = capsys.readouterr().out
    assert "eval_part = 'all'" in shown
    assert "which held-out problems" in shown
    assert "[user] reach 5 > 24" in shown
    assert "target: int" in shown
    assert "train: 696 rows, 696 problems" in shown
    pytest.importorskip("math_verify")
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"question": f"{n} + {n}?", "answer": 2 * n}) for n in range(20))
    )
    options = json.dumps({"dataset_name": str(tmp_path / "rows.jsonl")})
    assert main(["tasks", "show", "math", "--task_options", options]) == 0
    assert "train: 18 rows, 18 problems" in capsys.readouterr().out


def test_what_is_missing_is_told(capsys: pytest.CaptureFixture) -> None:
    assert main(["tasks", "show", "checked_tasks:Needs"]) == 0
    shown = capsys.readouterr().out
    assert "needs: extra nothing" in shown
    assert "size = 3" in shown
    assert "It cannot be made like this: It needs a thing. Install the thing." in shown
    assert main(["tasks", "check", "checked_tasks:Needs"]) == 2
    assert "Install the thing." in capsys.readouterr().err
    assert main(["tasks", "check", "checked_tasks:Helpless"]) == 2
    shown = capsys.readouterr()
    assert "not graded here: There is no judge. Start one." in shown.out
    assert "train: 4 rows" in shown.out, "what can be looked at is"
    assert "Start one." in shown.err
    assert main(["tasks", "check", "raech"]) == 2
    assert main(["tasks", "show", "reach", "--task_options", '{"part": 1}']) == 2
    assert "has no option 'part'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["reach", "maze", "checked_tasks:Fine", "checked_tasks:Half"])
def test_a_good_task_passes(name: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["tasks", "check", name]) == 0
    shown = capsys.readouterr().out
    assert "BAD" not in shown
    assert "ok  answer of 5 MB -> graded" in shown
    assert "nothing found wrong" in shown
    assert len(shown) < 20_000


def test_data_that_is_not_here_is_not_a_fault(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("math_verify")
    assert main(["tasks", "check", "math"]) == 0
    shown = capsys.readouterr().out
    assert "train: not checked: Task 'math' has no data." in shown
    assert "nothing found wrong; not checked: 2 split(s)" in shown
    assert main(["tasks", "check", "math", "--task_options", '{"dataset_name": "nobody/has_this"}']) == 0
    assert "train: not checked: The data set 'nobody/has_this'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "1 + 1?", "answer": 2}\n{"question": ', "rows.jsonl, line 2: not JSON"),
        ('{"exercise": "1 + 1?", "answer": 2}', "no column for the prompt"),
        ("", "there are no rows"),
    ],
)
def test_data_that_is_here_and_malformed_is_a_fault(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("math_verify")
    (tmp_path / "rows.jsonl").write_text(text)
    options = json.dumps({"dataset_name": str(tmp_path / "rows.jsonl")})
    assert main(["tasks", "check", "math", "--task_options", options]) == 1
    shown = capsys.readouterr().out
    assert "BAD train: " in shown
    assert message in shown
    assert main(["train", "--config", "gsm8k-smoke", "--task", "math", "--dry-run", "--task_options", options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("Misjudges", "BAD wrong answer -> graded, score 1: 'no'"),
        ("Misjudges", "BAD empty answer -> graded, score 1"),
        ("Ungraded", "BAD right answer -> error, score none (no compiler): 'yes'"),
        ("Falls", "BAD the verifier raised IndexError"),
        ("Overlaps", "BAD 3 problems are in both splits"),
        ("Repeats", "BAD eval: 1 rows repeat a problem_id"),
        ("Wavers", "BAD train: the rows are not the same at every call"),
        ("Numbered", "BAD train, row 0: problem_id is 7, not text"),
        ("Unspeakable", "BAD train, row 0: not JSON values"),
        ("Promptless", "BAD train, row 0: A prompt is neither a string nor a list"),
        ("Empty", "BAD train: there are no rows"),
    ],
)
def test_faults_are_found(task: str, message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["tasks", "check", f"checked_tasks:{task}"]) == 1
    shown = capsys.readouterr().out
    assert message in shown
    assert "found wrong" in shown
