"""The TextWorld adapter, with the package itself: its plans win, its answers are told, nothing else reaches it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from scgrpo.errors import ConfigError, MissingExtraError
from scgrpo.tasks import Status, get_task

SMALL: dict[str, Any] = {"num_rooms": 2, "num_objects": 4, "quest_length": 3, "num_train": 2, "num_eval": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("textworld", reason="the extra `textworld` is not installed")
    return tmp_path_factory.mktemp("games")


def test_it_is_missed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(MissingExtraError, match=r"scgrpo\[textworld\]"):
        get_task("textworld")


def test_plans_win_and_rows_are_the_same_every_time(folder: Path) -> None:
    task = get_task("textworld", **SMALL, folder=str(folder))
    rows = [*task.rows("train"), *task.rows("eval")]
    compiled = sorted(folder.iterdir())
    assert len({row["problem_id"] for row in rows}) == len(compiled) == 3
    assert rows[:1] == get_task("textworld", **SMALL, folder=str(folder)).rows("train", 1)
    assert sorted(folder.iterdir()) == compiled, "nothing is compiled twice"
    transcripts = [task.solution(row, random.Random(0)) for row in rows]
    assert [verdict.score for verdict in task.verify(transcripts, rows)] == [1.0] * 3
    assert all(len(transcript) >= 2 * SMALL["quest_length"] - 1 for transcript in transcripts)
    assert [verdict.score for verdict in task.verify(transcripts, rows[::-1])] != [1.0] * 3
    canned = task.canned()
    graded = task.verify([*canned.right, *canned.wrong], [canned.row] * (1 + len(canned.wrong)))
    assert [verdict.score for verdict in graded] == [1.0] + [0.0] * len(canned.wrong)


def test_what_is_no_command(folder: Path) -> None:
    task = get_task("textworld", **SMALL, folder=str(folder), max_turns=7, form="plain")
    row = task.rows("train", 1)[0]
    game = task.environment(row)
    before = sorted(Path.cwd().iterdir())
    for number, bad in enumerate(("quit", "save", "", "look. quit", "<action>look</action>", "x" * 10**6), 1):
        observation, done = game.step(bad)
        assert observation.startswith("You cannot do that here.")
        assert f"Turns left: {7 - number}." in observation
        assert not done
        assert game.invalid == number
    assert sorted(Path.cwd().iterdir()) == before
    observation, done = game.step(" LOOK\n")
    assert done, "the last turn"
    assert "-= " in observation
    assert "\n>" not in observation, "no status line"
    verdict = game.verdict()
    assert (verdict.score, verdict.status) == (0.0, Status.GRADED)
    assert "6 without a command" in verdict.detail
    game.close()


def test_impossible_games(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from textworld import generator

    with pytest.raises(ConfigError, match="at least 1"):
        get_task("textworld", quest_length=0, folder=str(folder))
    task = get_task("textworld", **{**SMALL, "quest_length": 9}, folder=str(folder))

    def fail(options: Any) -> None:
        raise generator.QuestGenerationError("No quest can be generated with the provided options")

    monkeypatch.setattr(generator, "make_game", fail)
    with pytest.raises(ConfigError, match="no quest of 9 commands with 2 rooms and 4 objects from seed 0"):
        task.rows("train", 1)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
