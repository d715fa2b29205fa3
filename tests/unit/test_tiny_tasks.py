"""The two tiny tasks: literal verdicts, generated solutions, disjoint and stable splits."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scgrpo.errors import ConfigError, DataError, ShapeError
from scgrpo.tasks import get_task
from scgrpo.tasks.countdown import CountdownTask
from scgrpo.tasks.procedural import ProceduralTask
from scgrpo.tasks.reach import ReachTask

REACH, COUNTDOWN = ReachTask(), CountdownTask()
TASKS: list[ProceduralTask] = [REACH, COUNTDOWN]
both = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


def score(task: ProceduralTask, completion: str, problem: tuple[int, ...]) -> float:
    (verdict,) = task.verify([completion], [task.row(problem)])
    assert verdict.status == "graded"
    return verdict.score


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("inc7 12 dbl 24", 1.0),
        ("neg 26 inc7 2 inc7 9 neg 22 neg 9 neg 22 neg 9 tri 27 dec3 24", 1.0),  # nine steps, the most allowed
        ("dbl 10 tri 30 inc7 6 dbl 12 dbl 24", 1.0),
        ("inc7 12 dbl 24 neg 7 neg 24", 1.0),  # passing the target on the way is no error
        ("inc7 12 dbl 24 neg 7", 0.0),  # ... leaving it is
        ("inc7 12 dbl 24 neg", 0.0),  # a result is missing
        ("inc7 12 dbl 25", 0.0),
        ("inc7 13 dbl 24", 0.0),  # right end, wrong trace
        ("inc7 12 dbl 024", 0.0),
        ("inc7 12  dbl 24", 0.0),
        (" inc7 12 dbl 24", 0.0),
        ("inc7 12 dbl 24 <eos>", 0.0),
        ("inc9 12 dbl 24", 0.0),
        ("12 inc7 24 dbl", 0.0),
        ("neg 26 neg 5 neg 26 inc7 2 inc7 9 neg 22 neg 9 neg 22 neg 9 tri 27 dec3 24", 0.0),  # eleven steps
        ("24", 0.0),
        ("", 0.0),
    ],
)
def test_reach_verdicts(completion: str, expected: float) -> None:
    assert score(REACH, completion, (5, 24)) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("3 * 7 = 21 ; 21 + 5 = 26 ;", 1.0),
        ("7 * 3 = 21 ; 5 + 21 = 26 ;", 1.0),
        ("3 * 7 = 21 ; 21 + 5 = 26", 0.0),
        ("3 * 7 = 21 ; 21 + 5 = 25 ;", 0.0),
        ("3 * 7 = 21 ; 21 - 5 = 16 ;", 0.0),  # right arithmetic, another target
        ("3 * 7 = 21 ; 7 + 21 = 28 ;", 0.0),
        ("7 * 7 = 49 ; 21 + 5 = 26 ;", 0.0),  # 7 is there once
        ("21 + 5 = 26 ;", 0.0),
        ("3 * 7 = 21 ; 21 + 5 = 26 ; 26 + 0 = 26 ;", 0.0),
        ("3 * 7 = 21 , 21 + 5 = 26 ;", 0.0),
        ("3 x 7 = 21 ; 21 + 5 = 26 ;", 0.0),
        ("a * b = c ; c + d = e ;", 0.0),
        ("", 0.0),
    ],
)
def test_countdown_verdicts(completion: str, expected: float) -> None:
    assert score(COUNTDOWN, completion, (3, 5, 7, 26)) == expected


def test_countdown_results_stay_in_range() -> None:
    assert score(COUNTDOWN, "3 - 5 = -2 ; -2 + 7 = 5 ;", (3, 5, 7, 5)) == 0.0
    assert score(COUNTDOWN, "7 - 5 = 2 ; 2 + 3 = 5 ;", (3, 5, 7, 5)) == 1.0
    assert score(COUNTDOWN, "9 * 9 = 81 ; 81 - 9 = 72 ;", (9, 9, 9, 72)) == 0.0


@both
@settings(max_examples=60, deadline=None)
@given(index=st.integers(0, 10_000), seed=st.integers(0, 10_000))
def test_every_generated_solution_is_right_and_every_changed_result_is_wrong(
    task: ProceduralTask, index: int, seed: int
) -> None:
    rng = random.Random(seed)
    problems = task.problems()
    row = task.row(problems[index % len(problems)])
    solution = task.solution(row, rng)
    words = solution.split(" ")
    assert len(words) < task.max_completion_length
    results = range(1, len(words), 2) if task is REACH else range(4, len(words), 6)
    changed = []
    for position in results:
        wrong = str(rng.choice([value for value in range(41) if str(value) != words[position]]))
        changed.append(" ".join([*words[:position], wrong, *words[position + 1 :]]))
    verdicts = task.verify([solution, *changed], [row] * (1 + len(changed)))
    assert [verdict.score for verdict in verdicts] == [1.0] + [0.0] * len(changed)


@both
def test_splits_are_disjoint_and_cover_all_problems(task: ProceduralTask) -> None:
    train = {row["problem_id"] for row in task.rows("train")}
    held_out = {row["problem_id"] for row in task.rows("eval", limit=100_000)}
    assert not train & held_out
    assert len(train) + len(held_out) == len(task.problems())
    assert 0.2 < len(held_out) / len(task.problems()) < 0.3


def test_number_of_problems() -> None:
    assert [(len(task.rows("train")), len(task.rows("eval", limit=100_000))) for task in TASKS] == [
        (696, 234),
        (1155, 373),
    ]


@both
def test_rows_are_the_same_at_every_call_and_longer_limits_extend_shorter_ones(task: ProceduralTask) -> None:
    rows = task.rows("train", limit=3000)
    assert len(rows) == 3000
    assert rows == task.rows("train", limit=3000)
    assert rows[:50] == task.rows("train", limit=50)
    first = task.rows("train")
    assert rows[: len(first)] == first
    assert rows[len(first) : 2 * len(first)] != first  # a new order each time round
    assert len(task.rows("eval")) == 200
    assert task.rows("eval")[:7] == task.rows("eval", limit=7)
    assert task.rows("train", limit=0) == []


def test_first_rows_never_change() -> None:
    assert [task.rows("eval", limit=1)[0]["problem_id"] for task in TASKS] == ["reach-19-25", "countdown-2-2-4-0"]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("inc7 12 dbl 24", None),
        ("inc7 12 dbl 25", 3),
        ("inc7 12 dbl", 3),  # the result is missing
        ("inc7 12", 2),  # it ends too early
        ("", 0),
        ("12 inc7", 0),
        ("inc7 12 dbl 24 neg 7", 6),  # leaving the target can be made good
        ("inc7 12 dbl 24 neg 7 inc9", 6),
        # Eight steps, and the ninth alone could reach the target: only by `tri`.
        ("neg 26 neg 5 neg 26 inc7 2 inc7 9 neg 22 tri 4 dbl 8 tri 24", None),
        ("neg 26 neg 5 neg 26 inc7 2 inc7 9 neg 22 tri 4 dbl 8 neg 23", 16),
        ("neg 26 neg 5 neg 26 inc7 2 inc7 9 neg 22 tri 4 neg 27 neg 4", 16),  # 27 - 3 is the target
        ("neg 26 neg 5 neg 26 inc7 2 inc7 9 neg 22 neg 9 inc7 16 dbl 1", 14),  # one step from 16 leads nowhere
    ],
)
def test_reach_first_errors(completion: str, expected: int | None) -> None:
    assert REACH.first_errors([completion], [REACH.row((5, 24))]) == [expected]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("3 * 7 = 21 ; 21 + 5 = 26 ;", None),
        ("3 * 7 = 21 ; 21 - 5 = 16 ;", 7),
        ("3 + 7 = 10 ; 10 + 5 = 15 ;", 1),  # from 10 and 5 there is no way to 26
        ("3 * 7 = 22 ; 22 + 5 = 27 ;", 4),
        ("3 * 7 = 21 ; 21 + 5 = 26", 11),
        ("3 * 7 = 21 ; 21 + 5 = 26 ; ;", 12),
        ("", 0),
    ],
)
def test_countdown_first_errors(completion: str, expected: int | None) -> None:
    assert COUNTDOWN.first_errors([completion], [COUNTDOWN.row((3, 5, 7, 26))]) == [expected]


@both
def test_halves_of_the_held_out_problems(task: ProceduralTask) -> None:
    def problems(part: str) -> list[str]:
        halved = type(task)(eval_part=part)  # type: ignore[arg-type]
        assert halved.rows("train") == task.rows("train")
        return [row["problem_id"] for row in halved.rows("eval", limit=100_000)]

    tune, final = problems("tune"), problems("final")
    assert not set(tune) & set(final)
    assert sorted([*tune, *final]) == sorted(problems("all"))
    assert 0.4 < len(tune) / len(problems("all")) < 0.6
    assert get_task(task.name, eval_part="tune").rows("eval")[0]["problem_id"] in tune
    with pytest.raises(ConfigError, match="Choose one of all, tune, final"):
        type(task)(eval_part="test")  # type: ignore[arg-type]


@both
def test_canned_completions(task: ProceduralTask) -> None:
    canned = task.canned()
    verdicts = task.verify([*canned.right, *canned.wrong], [canned.row] * (len(canned.right) + len(canned.wrong)))
    assert [verdict.score for verdict in verdicts] == [1.0] * len(canned.right) + [0.0] * len(canned.wrong)
    assert len(canned.right) >= 2


@both
def test_bad_input_is_named(task: ProceduralTask) -> None:
    row = task.rows("train", limit=1)[0]
    with pytest.raises(ShapeError, match="2 completions for 1 rows"):
        task.verify(["a", "b"], [row])
    with pytest.raises(DataError, match="Row 1 has no column 'target'"):
        task.verify(["a", "b"], [row, {"start": 5, "numbers": [1, 2, 3]}])
    with pytest.raises(ConfigError, match="test"):
        task.rows("test")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="-1"):
        task.rows("eval", limit=-1)
