"""The testbeds' own tasks: literal verdicts and first errors, solutions that find back."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scgrpo.errors import ConfigError
from scgrpo.tasks.countdown import CountdownTask
from scgrpo.tasks.countdown_undo import MAX_UNDOS, CountdownUndoTask
from scgrpo.tasks.reach import ReachTask
from scgrpo.tasks.style import STYLES, StyleTask, bin_of

STYLE, UNDO = StyleTask(), CountdownUndoTask()


RIGHT = "so ok 7 blue now then so so 2 red ok yes now ok 9 green so so"


@pytest.mark.parametrize(
    ("completion", "first_error"),
    [
        (RIGHT, None),
        ("qed so 9 green ok let so ok 7 blue ok ok ok ok 2 red ok gladly", None),
        ("", 0),
        (RIGHT.replace("blue", "red"), 3),
        (RIGHT.replace("9", "8"), 14),  # not one of the numbers
        (RIGHT.replace("9", "7"), 14),  # sorted already
        (RIGHT.replace("2 red", "red 2"), 8),
        (RIGHT.replace("ok 7", "7 ok"), 1),
        (RIGHT.removesuffix(" so"), 17),
        (f"{RIGHT} so", 18),  # one word too many
        (RIGHT.replace("so 2 red", "<user> 2 red"), 7),
    ],
)
def test_style(completion: str, first_error: int | None) -> None:
    row = STYLE.row((2, 7, 9, 4))
    assert STYLE.first_errors([completion], [row]) == [first_error]
    assert STYLE.verify([completion], [row])[0].score == float(first_error is None)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_style_solutions_follow_the_content_and_not_the_style(seed: int) -> None:
    rng = random.Random(seed)
    row = STYLE.row(rng.choice(STYLE.problems()))
    demonstration = STYLE.demonstration(row, rng)
    followed = [STYLE.followed(demonstration, rng) for _ in range(20)]
    assert all(verdict.score == 1 for verdict in STYLE.verify(followed, [row] * 20))
    used = {index for text in followed for index, style in enumerate(STYLES) if set(text.split(" ")) & set(style)}
    assert len(used) > 1
    attempt = STYLE.followed(STYLE.attempt(row, rng), rng).split(" ")
    decisive = [word for word in attempt if word not in STYLE.free_words]
    assert sorted(map(int, decisive[::2])) == row["numbers"]
    assert len(attempt) < STYLE.max_completion_length


def test_style_attempts_err_in_each_bin_by_itself() -> None:
    rng, row = random.Random(0), STYLE.row((2, 7, 9, 4))
    wrong = [0] * 4
    for _ in range(2000):
        decisive = [word for word in STYLE.attempt(row, rng).split(" ") if word not in STYLE.free_words]
        wrong[sum(bin_of(int(n), 4) != b for n, b in zip(decisive[::2], decisive[1::2], strict=True))] += 1
    expected = [8 / 27, 12 / 27, 6 / 27, 1 / 27]  # three decisions, each right two times in three
    assert all(abs(count / 2000 - share) < 0.05 for count, share in zip(wrong, expected, strict=True))


@pytest.mark.parametrize(
    ("completion", "first_error"),
    [
        ("3 * 7 = 21 ; 21 + 5 = 26 ;", None),
        ("3 + 7 = 10 undo 3 * 7 = 21 ; 21 - 5 = 16 undo 21 + 5 = 26 ;", None),
        ("3 + 7 = 10 ; 10 + 5 = 15 ;", 5),  # keeping it is what is fatal
        ("3 + 7 = 10 undo 3 + 7 = 10 undo 3 + 7 = 10 ;", 13),  # the third time there is no undo left
        ("3 * 7 = 21 ; 21 + 5 = 26 undo", 12),
        ("3 + 7 = 11 undo", 4),
        ("3 * 7 = 21 ; undo", 6),
        ("", 0),
    ],
)
def test_countdown_undo(completion: str, first_error: int | None) -> None:
    row = UNDO.row((3, 5, 7, 26))
    assert UNDO.first_errors([completion], [row]) == [first_error]
    assert UNDO.verify([completion], [row])[0].score == float(first_error is None)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_countdown_undo_without_undos_left_is_countdown(seed: int) -> None:
    rng, plain = random.Random(seed), CountdownTask()
    problem = rng.choice(UNDO.problems())
    row = UNDO.row(problem)
    assert row["prompt"][0]["content"] == f"countdown-undo {plain.row(problem)['prompt'][0]['content'][10:]}"
    spent = " ".join([*[" ".join([*plain.attempt(row, rng).split(" ")[:5], "undo"])] * MAX_UNDOS, ""])
    for completion in (plain.attempt(row, rng), plain.solution(row, rng)):
        (first,) = plain.first_errors([completion], [row])
        assert UNDO.first_errors([spent + completion], [row]) == [first if first is None else first + 6 * MAX_UNDOS]
        assert "undo" not in completion


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_recoveries_leave_the_demonstration_and_are_right(seed: int) -> None:
    rng = random.Random(seed)
    for task in (ReachTask(), UNDO):
        row = task.row(rng.choice(task.problems()))
        demonstration = task.demonstration(row, rng)
        recovery = task.recovery(row, demonstration, rng)
        # A stray instruction may by chance lead to where the right one leads, and a stray step be the one shown.
        assert recovery.count("undo") == MAX_UNDOS if task is UNDO else recovery != demonstration
        assert task.is_correct(recovery, row)
        assert len(recovery.split(" ")) < task.max_completion_length
    with pytest.raises(ConfigError, match="do not find back"):
        STYLE.recovery({}, "", rng)
