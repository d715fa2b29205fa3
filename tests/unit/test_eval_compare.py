"""Evaluations against each other: paired numbers known from elsewhere, and refusals that name what differs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from scgrpo.errors import RunError
from scgrpo.evaluation.compare import Evaluated, compare, in_words, load_evaluated
from scgrpo.runs import RunDirectory
from scgrpo.stats import mcnemar_p

SETTINGS = {"task": "letters", "temperature": 0.6, "num_samples": 4}


def record(scores: dict[str, list[float | None]], **more: Any) -> dict[str, Any]:
    """An evaluation with these scores by problem; None: no grade."""
    problems = []
    for name, given in scores.items():
        graded = [score for score in given if score is not None]
        problems.append(
            {
                "problem_id": name,
                "n": len(graded),
                "num_solved": sum(score >= 0.5 for score in graded),
                "mean_score": sum(graded) / len(graded) if graded else None,
                "num_errors": len(given) - len(graded),
            }
        )
    return {"task": "letters", "k": 2, "pass_at": {"1": {}, "2": {}}, **SETTINGS, "per_problem": problems, **more}


def side(
    name: str, scores: dict[str, list[float | None]], settings: dict[str, Any] = SETTINGS, **more: Any
) -> Evaluated:
    return Evaluated(name, record(scores, **more), settings)


def test_differences_are_paired_by_problem() -> None:
    a = side("a", {"x": [0.1] * 4, "y": [0.5] * 4, "z": [0.9] * 4, "gone": [1.0] * 4})
    b = side("b", {"z": [1.0] * 4, "y": [0.7] * 4, "x": [0.4] * 4, "new": [0.0] * 4, "more": [0.0] * 4})
    found = compare(a, b)
    assert (found.num_shared, found.num_only, found.task) == (3, (1, 2), "letters")
    score = found.differences["Avg@4"]
    # differences .3, .2, .1: mean .2, standard deviation .1, 2 degrees of freedom; all of one sign: p = 2 / 2^3
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (score.value, score.low, score.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=1e-6)
    assert (score.p, score.num_units) == (0.25, 3)
    assert found.values["Avg@4"] == pytest.approx((0.5, 0.7))
    assert list(found.differences) == ["Avg@4", "success rate", "Pass@2"]
    words = in_words(found)
    assert "Left out: 1 that only A has, 2 that only B has." in words
    assert words[-1] == "No difference in Avg@4 can be told from chance. 3 problems cannot give a p below 0.25."
    assert found.mcnemar is None


def test_pass_at_k_is_compared_too_and_problems_without_grades_are_counted() -> None:
    a = side("a", {"x": [1.0, 0.0, 0.0, 0.0], "y": [0.0] * 4, "z": [None] * 4, "w": [1.0, None, None, None]})
    b = side("b", {"x": [1.0, 1.0, 0.0, 0.0], "y": [1.0] * 4, "z": [1.0] * 4, "w": [1.0] * 4})
    found = compare(a, b)
    assert found.values["success rate"] == pytest.approx(((0.25 + 0 + 1) / 3, (0.5 + 1 + 1) / 3))
    # Pass@2 of 1 in 4: 1 - C(3,2)/C(4,2) = 1/2; of 2 in 4: 5/6. w has too few grades on one side.
    assert found.values["Pass@2"] == pytest.approx((0.25, (5 / 6 + 1) / 2))
    assert found.differences["Pass@2"].num_units == 2
    assert "Pass@2 is defined for 2 of them on both sides; the others lack grades." in in_words(found)


def test_many_problems_can_tell() -> None:
    a = side("a", {f"p{n}": [0.1 * (n % 8)] * 4 for n in range(40)})
    b = side("b", {f"p{n}": [0.1 * (n % 8) + 0.05 + 0.01 * (n % 3)] * 4 for n in range(40)})
    assert in_words(compare(a, b))[-1] == "B is better than A in Avg@4 on problems like these."
    assert in_words(compare(b, a))[-1] == "B is worse than A in Avg@4 on problems like these."


def test_mcnemar_only_for_one_greedy_completion() -> None:
    greedy = {"task": "letters", "temperature": 0.0, "num_samples": 1}
    a = side("a", {f"p{n}": [float(n < 10)] for n in range(20)}, greedy, **greedy)
    b = side("b", {f"p{n}": [float(n >= 8)] for n in range(20)}, greedy, **greedy)
    assert compare(a, b).mcnemar == (8, 10, pytest.approx(mcnemar_p(8, 10)))
    assert any(
        line.startswith("A alone solves 8 problems, B alone 10: McNemar p 0.8") for line in in_words(compare(a, b))
    )
    sampled = side("a", {f"p{n}": [float(n < 10)] for n in range(20)})
    assert compare(sampled, sampled).mcnemar is None


# R: binom.test(min, n)$p.value
@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (1, 1, 1.0),
        (0, 5, 0.0625),
        (10, 2, 0.03857421875),
        (2, 10, 0.03857421875),
        (5, 15, 0.04138946533),
    ],
)
def test_mcnemar_values(first: int, second: int, p: float) -> None:
    assert mcnemar_p(first, second) == pytest.approx(p, abs=1e-9)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"task": "words"}, 'task was "letters", is "words"'),
        ({"split": "train"}, 'split was "eval", is "train"'),
        ({"temperature": 1.0, "num_samples": 8}, r"num_samples was 4, is 8; temperature was 0\.6, is 1\.0"),
        ({"task_options": {"tests": "A"}}, r'task_options was \{"tests": "B"\}, is \{"tests": "A"\}'),
    ],
)
def test_what_is_not_evaluated_alike_is_refused(other: dict[str, Any], named: str) -> None:
    usual = {**SETTINGS, "split": "eval", "task_options": {"tests": "B"}}
    with pytest.raises(RunError, match=named):
        compare(side("a", {"x": [1.0]}, usual), side("b", {"x": [1.0]}, {**usual, **other}))
    compare(side("a", {"x": [1.0]}, usual), side("b", {"x": [1.0]}, SETTINGS))  # what one side does not know


def test_nothing_in_common() -> None:
    with pytest.raises(RunError, match="no problem in common"):
        compare(side("a", {"x": [1.0]}), side("b", {"y": [1.0]}))
    nothing = compare(side("a", {"x": [None]}), side("b", {"x": [1.0]}))
    assert in_words(nothing)[-1] == "Avg@4 cannot be compared: no problem is graded on both sides."


def test_rows_that_repeat_a_problem_pair_in_order() -> None:
    twice = record({"x": [1.0]})
    twice["per_problem"] = [*twice["per_problem"], *record({"x": [0.0]})["per_problem"]]
    a = Evaluated("a", twice, SETTINGS)
    found = compare(a, Evaluated("b", twice, SETTINGS))
    assert (found.num_shared, found.differences["Avg@4"].value) == (2, 0.0)


def test_files_folders_and_runs_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(record({"x": [1.0]}, settings={"split": "eval"})))
    assert load_evaluated(tmp_path / "a.json").settings["split"] == "eval"
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "settings.json").write_text("{}")
    with pytest.raises(RunError, match="is not finished"):
        load_evaluated(tmp_path / "e")
    (tmp_path / "e" / "result.json").write_text(json.dumps({"schema_version": 1, **record({"x": [1.0]})}))
    assert load_evaluated(tmp_path / "e").record["task"] == "letters"

    run = RunDirectory.create(tmp_path / "run")
    run.write_config({"task": {"name": "letters", "tests": "B"}})
    for step, score, task in ((0, 0.0, "letters"), (9, 1.0, "letters"), (9, 0.5, "words")):
        run.log_eval(record({"x": [score]}, step=step, task=task))
    own, other = load_evaluated(tmp_path / "run"), load_evaluated(tmp_path / "run", "words")
    assert (own.record["step"], own.record["per_problem"][0]["mean_score"]) == (9, 1.0)
    assert own.settings["task_options"] == {"tests": "B"}
    assert (other.record["task"], "task_options" in other.settings) == ("words", False)
    with pytest.raises(RunError, match="has no evaluation on 'maze'; it has some on: letters, words"):
        load_evaluated(tmp_path / "run", "maze")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no .*given.json"),
        ("[1]", "holds no single evaluation"),
        ("{", "cannot be read"),
        ('{"task": "letters"}', "lists no problems"),
        ('{"per_problem": [{"problem_id": "x"}]}', "lists no problems"),
        ('{"schema_version": 99, "per_problem": []}', "schema_version 99"),
    ],
)
def test_what_is_no_evaluation(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "given.json").write_text(text)
    with pytest.raises(RunError, match=message):
        load_evaluated(tmp_path / "given.json")
