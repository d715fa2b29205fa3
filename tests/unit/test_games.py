"""Frozen lake and number guessing: literal games, the rules against gymnasium's and textarena's own, replay."""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scgrpo.errors import ConfigError, DataError, MissingExtraError
from scgrpo.tasks import get_task
from scgrpo.tasks.environment import Step, actions, scripted
from scgrpo.tasks.games import frozen_lake
from scgrpo.tasks.games.actions import action_in, as_said
from scgrpo.tasks.games.frozen_lake import MOVES, FrozenLakeTask
from scgrpo.tasks.games.guess_number import GuessNumberTask

WORDS = FrozenLakeTask(form="words", max_turns=10)
# S F F F     gymnasium's own map: holes 5 7 11 12
# F H F H
# F F F H
# H F F G
ROW = WORDS.row((4, 5, 7, 11, 12))
WAY = "down down right right down right"
GUESSING = GuessNumberTask(form="plain")


def transcript(task: Any, row: Mapping[str, Any], said: str) -> list[dict[str, Any]]:
    remaining = iter(said.split(" "))
    return scripted(task.environment(row), lambda _: as_said(next(remaining), task.form))


@pytest.mark.parametrize(
    ("text", "tagged", "plain"),
    [
        ("<action>up</action>", "up", "<action>up</action>"),
        ("I go <ACTION> Up\n</ACTION> now", "up", "i go <action> up </action> now"),
        ("up", None, "up"),
        (" Go   West \n", None, "go west"),
        ("<action>up</action><action>down</action>", None, "<action>up</action><action>down</action>"),
        ("<action>up</action> so <action>up</action>", "up", "<action>up</action> so <action>up</action>"),
        ("<think><action>up</action></think><action>left</action>", "left", None),
        ("<action></action>", None, "<action></action>"),
        ("<action>up", None, "<action>up"),
        ("", None, None),
    ],
)
def test_what_counts_as_an_action(text: str, tagged: str | None, plain: str | None) -> None:
    assert action_in(text, "tagged") == tagged
    if plain is not None or not text:
        assert action_in(text, "plain") == plain


@pytest.mark.parametrize("piece", ["<action>", "</action>", "<action>up</action>x", "a", "</think>", "\n"])
def test_endless_texts_are_read_in_bounded_time(piece: str) -> None:
    """Searching all of it for pairs of tags would take hours."""
    text = piece * (5_000_000 // len(piece))
    started = time.process_time()
    for form in ("tagged", "plain"):
        action_in(text, form)
        GuessNumberTask(form=form).environment(GUESSING.row((1, 20, 13))).step(text)
    assert time.process_time() - started < 60


def test_a_lake_step_by_step() -> None:
    game = WORDS.environment(ROW)
    assert [game.step(move) for move in WAY.split(" ")] == [
        *(Step(cell) for cell in ("4", "8", "9", "10", "14")),
        Step("15", done=True),
    ]
    assert game.verdict().score == 1
    assert game.verdict().detail == "goal after 6 turns; 0 without an action"


@pytest.mark.parametrize(
    ("moves", "last", "detail"),
    [
        ("right down", Step("5", done=True), "hole after 2 turns; 0 without an action"),
        ("left up", Step("0"), "not there after 2 turns; 0 without an action"),
        ("down north", Step("invalid"), "not there after 2 turns; 1 without an action"),
        (" ".join(["up"] * 10), Step("0", done=True), "not there after 10 turns; 0 without an action"),
        (" ".join(["hm"] * 10), Step("invalid", done=True), "not there after 10 turns; 10 without an action"),
    ],
)
def test_how_lakes_go(moves: str, last: Step, detail: str) -> None:
    game = WORDS.environment(ROW)
    *before, move = moves.split(" ")
    for word in before:
        assert not game.step(word).done
    assert game.step(move) == last
    assert (game.verdict().score, game.verdict().detail) == (0.0, detail)


def test_chat_models_are_told_where_they_are_and_what_was_wrong() -> None:
    task = FrozenLakeTask(max_turns=10)
    row = task.row((4, 5, 7, 11, 12))
    (message,) = row["prompt"]
    assert "S F F F\nF H F H\nF F F H\nH F F G" in message["content"]
    assert message["content"].endswith("for example <action>up</action>")
    game = task.environment(row)
    here = "You are at P, row 2, column 1. Turns left: {}.\nS F F F\nP H F H\nF F F H\nH F F G"
    assert game.step("So I go <action>Down</action>").observation == here.format(9)
    told = game.step("down").observation
    assert told.startswith("That is no action. ")
    assert told.endswith(here.format(8))
    assert "slippery" not in message["content"]
    assert "slippery" in FrozenLakeTask(slippery=True).row((4, 5))["prompt"][0]["content"]


@pytest.mark.parametrize("slippery", [False, True])
def test_lakes_are_gymnasiums_environment(slippery: bool) -> None:
    """The same maps, seeds and actions in `gymnasium.make`, and its own generator's maps."""
    gymnasium = pytest.importorskip("gymnasium")
    from gymnasium.envs.toy_text.frozen_lake import generate_random_map

    task = FrozenLakeTask(form="words", slippery=slippery, num_maps=60)
    drawn = {tuple(generate_random_map(4, 0.8, seed=seed)) for seed in range(200)}
    rng, ended, slipped = random.Random(0), 0, 0
    for row in [*task.rows("train", 40), *task.rows("eval", 10)]:
        assert tuple(row["map"]) in drawn
        theirs = gymnasium.make("FrozenLake-v1", desc=row["map"], is_slippery=slippery, max_episode_steps=1000)
        cell, _ = theirs.reset(seed=row["seed"])
        ours = task.environment(row)
        assert ours.cell == cell == 0
        for _ in range(task.max_turns):
            move = rng.choice(list(MOVES))
            meant = ours.after(move)
            answer, done = ours.step(move)
            before = cell
            cell, reward, terminated, _, _ = theirs.step(MOVES[move])
            assert answer == str(cell) == str(meant)
            assert done == (terminated or ours.turns == task.max_turns)
            assert ours.verdict().score == reward
            slipped += cell not in (before, before + {"left": -1, "down": 4, "right": 1, "up": -4}[move])
            if terminated:
                ended += 1
                break
    assert ended > 20
    assert (slipped > 0) == slippery


@pytest.mark.parametrize("slippery", [False, True])
def test_the_first_error_is_the_action_after_which_nothing_wins(slippery: bool) -> None:
    """Every continuation of few turns is tried, with this world's slips."""
    task = FrozenLakeTask(form="words", slippery=slippery, max_turns=7, num_maps=40)
    rng, checked = random.Random(1), 0

    def some_continuation_wins(row: Mapping[str, Any], taken: list[str]) -> bool:
        for rest in itertools.product(MOVES, repeat=row["max_turns"] - len(taken)):
            game, done = task.environment(row), False
            for move in (*taken, *rest):
                if done:
                    break
                done = game.step(move).done
            if game.verdict().score == 1:
                return True
        return False

    for row in task.rows("train", 12):
        walk = task.attempt(row, rng)
        (error,) = task.first_errors([walk], [row])
        taken = actions(walk)
        for number in range(3, len(taken) + 1):
            assert some_continuation_wins(row, taken[:number]) == (error is None or number <= error)
            checked += 1
    assert checked > 20


@pytest.mark.parametrize(
    "options",
    [
        {"form": "words", "max_turns": 10, "frozen_probability": 0.7},
        {"form": "plain"},
        {"slippery": True},
        {"size": 6, "num_maps": 80, "partial": True},
    ],
    ids=lambda options: ",".join(options),
)
def test_lakes_are_split_and_their_scripted_games_are_graded(options: dict[str, Any]) -> None:
    task = get_task("frozen_lake", **{"num_maps": 300, **options})
    assert isinstance(task, FrozenLakeTask)
    train, held_out = task.rows("train"), task.rows("eval", 1000)
    assert len(train) + len(held_out) == task.num_maps
    assert not {tuple(row["map"]) for row in train} & {tuple(row["map"]) for row in held_out}
    assert train == get_task("frozen_lake", **{"num_maps": 300, **options}).rows("train")
    rng, won, strayed = random.Random(0), 0, 0
    for row in held_out[:40]:
        solution, attempt = task.solution(row, rng), task.attempt(row, rng)
        verdicts = task.verify([solution, attempt], [row, row])
        assert verdicts[0].score == 1
        won += verdicts[1].score == 1
        errors = task.first_errors([solution, attempt], [row, row])
        assert errors[0] is None
        assert (errors[1] is None) == (verdicts[1].score == 1)
        recovery = task.recovery(row, solution, rng)
        assert task.is_correct(recovery, row)
        strayed += recovery != solution
    assert 0 < won < 35
    assert strayed > 5 or task.slippery
    canned = task.canned()
    for wanted, completions in ((True, canned.right), (False, canned.wrong)):
        graded = task.verify(completions, [canned.row] * len(completions))
        assert {verdict.score >= task.success_threshold for verdict in graded} == {wanted}


def test_transcripts_of_lakes_are_replayed() -> None:
    right = transcript(WORDS, ROW, WAY)
    changed = [dict(message) for message in right]
    changed[3]["content"] = "9"
    cases = [right, changed, right[:-1], right[1:], [*right, {"role": "assistant", "content": "up"}]]
    assert [verdict.score for verdict in WORDS.verify(cases, [ROW] * 5)] == [1, 0, 0, 0, 0]
    with pytest.raises(DataError, match="no column 'seed'"):
        WORDS.verify([right], [{name: value for name, value in ROW.items() if name != "seed"}])


def test_partial_scores_of_lakes() -> None:
    task = FrozenLakeTask(form="plain", partial=True, max_turns=7)
    row = task.row((4, 5, 7, 11, 12))
    games = [transcript(task, row, said) for said in (WAY, "right down", "down down right left right left down")]
    games += [transcript(task, row, "down down right left right left right"), transcript(task, row, "up " * 6 + "up")]
    assert [verdict.score for verdict in task.verify(games, [row] * 5)] == [1, 0, 0, 0.5, 0]
    assert task.success_threshold == 1.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("frozen_lake", {"form": "spoken"}, "form is 'spoken'"),
        ("frozen_lake", {"prompting": "none"}, "prompting is 'none'"),
        ("frozen_lake", {"size": 2}, "size 2"),
        ("frozen_lake", {"max_turns": 5}, "6 steps away at least"),
        ("frozen_lake", {"frozen_probability": 0.0}, "frozen_probability 0.0"),
        ("frozen_lake", {"eval_part": "half"}, "eval_part"),
        ("frozen_lake", {"slipery": True}, "no option 'slipery'"),
        ("guess_number", {"form": "words"}, "form is 'words'"),
        ("guess_number", {"min_numbers": 1}, "min_numbers 1"),
        ("guess_number", {"max_turns": 0}, "max_turns is 0"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_task(name, **options)


def test_lakes_that_cannot_be_drawn() -> None:
    with pytest.raises(ConfigError, match="There are 1 lakes of size 3"):
        get_task("frozen_lake", size=3, frozen_probability=1.0, num_maps=8).rows("train")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen_lake._game.cache_clear()
    monkeypatch.setitem(sys.modules, "gymnasium.envs.toy_text", None)
    monkeypatch.setitem(sys.modules, "gymnasium.envs.toy_text.frozen_lake", None)
    with pytest.raises(MissingExtraError, match=r"scgrpo\[games\]"):
        FrozenLakeTask(num_maps=97).rows("train")
    with pytest.raises(MissingExtraError, match=r"scgrpo\[games\]"):
        FrozenLakeTask(form="words", slippery=True).verify(["up"], [{**ROW, "map": ["SFF", "FHF", "FHG"]}])


def test_steps_have_prompts_of_their_own() -> None:
    task = FrozenLakeTask(max_turns=10, history_turns=1, prompting="per_step")
    row = task.row((4, 5, 7, 11, 12))
    game = task.environment(row)
    said = ["Hm. <action>down</action>", "north"]
    answers = [game.step(text).observation for text in said]
    (message,) = task.step_prompt(row, [("", said[0]), (answers[0], said[1])], answers[1])
    assert message["role"] == "user"
    assert message["content"].startswith(row["prompt"][0]["content"])
    assert "You have taken 2 turns." in message["content"]
    assert f"Action 2: north\nAnswer 2: {answers[1]}" in message["content"]
    assert "Action 1" not in message["content"]
    (first,) = task.step_prompt(row, [("", said[0])], answers[0])
    assert f"Action 1: down\nAnswer 1: {answers[0]}" in first["content"]
    assert WORDS.step_prompt(ROW, [("", "down"), ("4", "up")], "0") == [
        *ROW["prompt"],
        {"role": "assistant", "content": "up"},
        {"role": "user", "content": "0"},
    ]


def test_guessing_step_by_step() -> None:
    row = {**GUESSING.row((1, 20, 13)), "max_turns": 5}
    game = GUESSING.environment(row)
    assert game.step("10") == Step("The number is higher than 10. Guesses left: 4.")
    assert game.step("15") == Step("The number is lower than 15. Guesses left: 3.")
    for bad in ("21", "ten"):
        told = game.step(bad)
        assert told.observation.startswith("That is no number from 1 to 20. ")
        assert not told.done
    assert game.step("13").done
    assert (game.verdict().score, game.verdict().detail) == (1.0, "guessed after 5 turns; 2 without a guess")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), low=st.integers(-50, 500), numbers=st.integers(2, 300))
def test_guessing_solutions_always_find_the_number(seed: int, low: int, numbers: int) -> None:
    """As many guesses as halving needs are enough, whatever the number is, and one fewer is not always."""
    rng = random.Random(seed)
    row = GUESSING.row((low, low + numbers - 1, rng.randint(low, low + numbers - 1)))
    assert 2 ** row["max_turns"] - 1 >= numbers > 2 ** (row["max_turns"] - 1) - 1
    # The first try finds it: it does not depend on luck.
    assert GUESSING.is_correct(GUESSING._bisected(row, rng), row)
    solution = GUESSING.solution(row, rng)
    assert GUESSING.verify([solution], [row])[0].score == 1
    assert GUESSING.first_errors([solution], [row]) == [None]


def test_guessing_splits_by_range_and_hides_the_number() -> None:
    train, held_out = GUESSING.rows("train"), GUESSING.rows("eval", 10_000)
    assert len(train) + len(held_out) == GUESSING.num_games
    assert len(held_out) > 300
    assert not {(r["low"], r["high"]) for r in train} & {(r["low"], r["high"]) for r in held_out}
    assert train == GuessNumberTask(form="plain").rows("train")
    rng = random.Random(0)
    for row in held_out[:50]:
        other = GUESSING.row((row["low"], row["high"], row["low"]))
        assert other["prompt"] == row["prompt"]
        attempt = GUESSING.attempt(row, rng)
        (error,) = GUESSING.first_errors([attempt], [row])
        assert error in (None, row["max_turns"] - 1)
    for form in ("plain", "tagged"):
        task = GuessNumberTask(form=form, partial=True)
        canned = task.canned()
        for wanted, completions in ((True, canned.right), (False, canned.wrong)):
            graded = task.verify(completions, [canned.row] * len(completions))
            assert {verdict.score >= task.success_threshold for verdict in graded} == {wanted}


def test_guessing_is_textarenas_game() -> None:
    """Hints, ends and rewards, also partial ones, of games without repeated guesses. It says 10 turns, but ends a
    game after the eleventh guess."""
    textarena = pytest.importorskip("textarena", reason="no dependency: installed by hand to compare")
    task, rng = GuessNumberTask(form="plain", partial=True), random.Random(0)
    for seed in range(60):
        theirs = textarena.make("GuessTheNumber-v0-raw")
        theirs.reset(num_players=1, seed=seed)
        secret = theirs.state.game_state["game_number"]
        ours = task.environment({**task.row((1, 20, secret)), "max_turns": 11})
        for guess in rng.sample(range(1, 21), 11):
            answer, done = ours.step(str(guess))
            over, _ = theirs.step(f"[{guess}]")
            assert over == done
            if done:
                break
            said = [message for _, message, *_ in theirs.state.observations[0]][-1]
            assert said == f"The target number is {answer.split()[3]}."
        assert theirs.state.rewards[0] == pytest.approx(ours.verdict().score)
