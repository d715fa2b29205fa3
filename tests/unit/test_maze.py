"""The maze and its transcripts: literal games, first errors by brute force, replay."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

import pytest

from scgrpo.errors import DataError, ShapeError
from scgrpo.tasks import Status, get_task
from scgrpo.tasks.environment import Environment, Step, actions, scripted
from scgrpo.tasks.maze import MAX_MOVES, MOVES, Maze, MazeTask

TASK = MazeTask()
#  0  L  G  3  4        start 8, key 16, goal 2
#  5  6  7  S  L
# 10 11 12  L 14
# 15  K 17 18 19
# 20  L 22 23  L
ROW = TASK.row((8, 16, 2, 1, 9, 13, 21, 24))
WAY = "left down left down up right up up"


def first_error(completion: Any, row: Mapping[str, Any] = ROW) -> int | None:
    return TASK.first_errors([completion], [row])[0]


def transcript(moves: str) -> list[dict[str, Any]]:
    remaining = iter(moves.split(" "))
    return scripted(Maze(ROW), lambda _: next(remaining))


def test_a_game_step_by_step() -> None:
    maze = Maze(ROW)
    answers = [maze.step(move) for move in WAY.split(" ")]
    assert answers == [Step(cell) for cell in ("7", "12", "11", "16*", "11*", "12*", "7*")] + [Step("2*", done=True)]
    assert maze.verdict().score == 1


@pytest.mark.parametrize(
    ("moves", "last", "score"),
    [
        ("down", Step("13", done=True), 0.0),  # lava
        ("right", Step("9", done=True), 0.0),
        ("left up", Step("2"), 0.0),  # the goal without the key is a cell like others
        ("up up", Step("3"), 0.0),  # the edge
        ("left north", Step("", done=True), 0.0),
        ("", Step("", done=True), 0.0),
        ("up down left down left down up right up up", Step("2*", done=True), 1.0),  # ten moves, the last one wins
        ("left right left right left right left right left right", Step("8", done=True), 0.0),  # ten moves
    ],
)
def test_how_games_go(moves: str, last: Step, score: float) -> None:
    maze = Maze(ROW)
    words = moves.split(" ")
    for move in words[:-1]:
        assert not maze.step(move).done
    assert maze.step(words[-1]) == last
    assert maze.verdict().score == score


def test_white_space_around_a_move_does_not_matter() -> None:
    assert Maze(ROW).step(" left\n") == Step("7")


def test_the_first_error_is_the_move_after_which_no_continuation_wins() -> None:
    """Every continuation is tried, from mazes and walks that leave few moves."""
    rng = random.Random(0)

    def some_continuation_wins(row: Mapping[str, Any], taken: list[str]) -> bool:
        for length in range(MAX_MOVES - len(taken) + 1):
            for rest in itertools.product(MOVES, repeat=length):
                maze, done = Maze(row), False
                for move in (*taken, *rest):
                    if done:
                        break
                    done = maze.step(move).done
                if maze.verdict().score == 1:
                    return True
        return False

    checked = 0
    for row in TASK.rows("train", 60):
        attempt = TASK.attempt(row, rng)
        walk, error = actions(attempt), first_error(attempt, row)
        assert error is None or 0 <= error < MAX_MOVES
        # With at most five moves left there are 1365 continuations.
        for taken in range(5, len(walk) + 1):
            alive = error is None or taken <= error
            assert some_continuation_wins(row, walk[:taken]) == alive
            checked += 1
    assert checked > 100


def test_first_errors_of_known_games() -> None:
    assert first_error(transcript(WAY)) is None
    assert first_error(transcript("down")) == 0
    assert first_error(transcript("left up north")) == 2
    # Eight moves are needed, ten allowed: one step aside and back is free, a third lost move is not.
    assert first_error(transcript("up down left down left down up right up up")) is None
    assert first_error(transcript("up up down left down left down up right up")) == 1
    assert first_error("down") == 0


def test_transcripts_are_replayed() -> None:
    right = transcript(WAY)
    assert [m["role"] for m in right] == ["assistant", "user"] * 7 + ["assistant"]
    changed = [dict(message) for message in right]
    changed[3]["content"] = "12*"
    cases = [right, changed, right[:-1], right[:-2], right[1:], [*right, {"role": "assistant", "content": "up"}]]
    verdicts = TASK.verify(cases, [ROW] * len(cases))
    assert [verdict.score for verdict in verdicts] == [1, 0, 0, 0, 0, 0]


def test_what_cannot_be_verified() -> None:
    with pytest.raises(ShapeError, match="1 completions for 2 rows"):
        TASK.verify(["up"], [ROW, ROW])
    with pytest.raises(DataError, match="no column 'goal'"):
        TASK.verify(["up"], [{name: value for name, value in ROW.items() if name != "goal"}])

    class Broken(MazeTask):
        def environment(self, row: Mapping[str, Any]) -> Environment:  # type: ignore[override]
            class Down:
                def step(self, action: str) -> Step:
                    raise ConnectionError("no server")

            return Down()  # type: ignore[return-value]

    (verdict,) = Broken().verify([transcript(WAY)], [ROW])
    assert verdict.status is Status.ERROR
    assert "no server" in verdict.detail


def test_problems_and_generated_games() -> None:
    task = get_task("maze")
    assert isinstance(task, MazeTask)
    held_out, train = task.rows("eval"), task.rows("train")
    assert len(held_out) == 200
    assert len(task.rows("eval", 900)) == 900
    assert not {row["problem_id"] for row in task.rows("eval", 900)} & {row["problem_id"] for row in train}
    rng = random.Random(0)
    solved = recovered = 0
    for row in held_out:
        solution, attempt = task.solution(row, rng), task.attempt(row, rng)
        assert task.is_correct(solution, row)
        assert first_error(solution, row) is None
        won = task.is_correct(attempt, row)
        assert won == (first_error(attempt, row) is None)
        solved += won
        demonstration = task.demonstration(row, rng)
        recovery = task.recovery(row, demonstration, rng)
        assert task.is_correct(recovery, row)
        recovered += recovery != demonstration
    assert 0 < solved < 100
    assert recovered > 50
    lengths = {len(actions(task.solution(row, rng))) for row in held_out}
    assert {6, 7, 8, 9} <= lengths, "some stray and recover"


def test_the_canned_games() -> None:
    canned = TASK.canned()
    for wanted, completions in ((1, canned.right), (0, canned.wrong)):
        assert {v.score for v in TASK.verify(completions, [canned.row] * len(completions))} == {wanted}


def test_documents_are_tokenized_as_the_sampler_does() -> None:
    """Model's words and observations stand where a rollout has them, and only the former are labels."""
    from scgrpo.evaluation.conversation import Chat, Sampled
    from scgrpo.evaluation.episodes import play
    from scgrpo.tiny.documents import Document, conditioned
    from scgrpo.tiny.testbeds import get_testbed
    from scgrpo.tiny.train import tensors

    vocabulary = get_testbed("maze").recipe.vocabulary
    tokenizer, eos = vocabulary.tokenizer(), vocabulary.ids["<eos>"]
    solution = TASK.solution(ROW, random.Random(4))
    moves = iter(actions(solution))
    prompt = conditioned(ROW, "verified", transcript(WAY))
    turns = (Sampled([vocabulary.ids[move], eos]) for move in moves)
    (prompt_ids,), (episode,) = play(
        TASK, [ROW], [prompt], Chat(tokenizer, {eos}), lambda _: lambda *_: [next(turns)], 48
    )
    assert episode.messages == solution
    ids, labels = tensors([Document(prompt, solution)], vocabulary)
    assert ids[0].tolist() == [*prompt_ids, *episode.completion_ids]
    expected = [token if own else -100 for token, own in zip(episode.completion_ids, episode.mask, strict=True)]
    assert labels[0].tolist() == [-100] * len(prompt_ids) + expected
    assert vocabulary.ids["<unk>"] not in ids


def test_documents_show_demonstrations_as_the_trainer_does() -> None:
    from scgrpo.teacher.prompts import DemonstrationFormatter, control_tokens, get_template, teacher_prompt
    from scgrpo.tiny.documents import conditioned
    from scgrpo.tiny.testbeds import get_testbed
    from scgrpo.tiny.vocabulary import prompt_text

    tokenizer = get_testbed("maze").recipe.vocabulary.tokenizer()
    formatter = DemonstrationFormatter(
        encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        decode=tokenizer.decode,
        max_tokens=TASK.max_completion_length,
        special_tokens=control_tokens(tokenizer),
    )
    longest = transcript("up down left down left down up right up up")
    for kind in ("verified", "attempt"):
        demonstration = formatter(longest)
        assert not demonstration.truncated
        shown = teacher_prompt(
            ROW["prompt"], demonstration.text, get_template(TASK.template), verified=kind == "verified"
        )
        text = tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
        assert tokenizer(text)["input_ids"] == tokenizer(prompt_text(conditioned(ROW, kind, longest)))["input_ids"]
