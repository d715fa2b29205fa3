"""Maze: fetch a key and bring it to the goal on a 5 x 5 grid with lava, one move a turn.

    user         maze 8 key 16 goal 2 lava 1 9 13 21 24
    assistant    left
    user         7

Cells are numbered 0 to 24, row by row from the top left; the prompt gives start, key, goal and the cells of lava. The
answer to a move is the new cell, with a star once the key is held (`16*`). A move over the edge stays where it is.
A conversation is won at the goal with the key in hand. It is lost in lava, after `MAX_MOVES` moves, and with anything
that is no move. Every way that wins is correct.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from scgrpo.tasks.base import Canned, Completion, Row, Verdict
from scgrpo.tasks.environment import EnvironmentTask, Step, actions, scripted
from scgrpo.tasks.procedural import Problem, ProceduralTask, user_prompt

SIDE = 5
NUM_CELLS = SIDE * SIDE
NUM_LAVA = 5
MAX_MOVES = 10
# Moves of the shortest ways of the problems, and how many problems there are.
FEWEST, MOST = 5, 8
NUM_PROBLEMS = 4000
MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
CELLS = (*(str(cell) for cell in range(NUM_CELLS)), *(f"{cell}*" for cell in range(NUM_CELLS)))

# Generated conversations: how often a move is random.
_STRAY_PROBABILITY = 0.2
_AIMLESS_PROBABILITY = 0.5
_MAX_TRIES = 20
_UNREACHABLE = 10**6


def moved(cell: int, move: str) -> int:
    """The cell after a move; the same one at the edge."""
    down, right = MOVES[move]
    row, column = cell // SIDE + down, cell % SIDE + right
    return row * SIDE + column if 0 <= row < SIDE and 0 <= column < SIDE else cell


@cache
def _distances(target: int, lava: tuple[int, ...]) -> dict[int, int]:
    """Fewest moves to the target from every cell that can reach it, breadth first; moves can be taken back."""
    distances, queue = {target: 0}, [target]
    for reached in queue:
        for cell in {moved(reached, move) for move in MOVES} - distances.keys() - set(lava):
            distances[cell] = distances[reached] + 1
            queue.append(cell)
    return distances


def moves_to_win(row: Mapping[str, Any], cell: int, held: bool) -> int:
    """Fewest moves that still win, without a limit; a huge number if none do."""
    lava = tuple(row["lava"])
    to_goal = _distances(row["goal"], lava)
    if held:
        return to_goal.get(cell, _UNREACHABLE)
    return _distances(row["key"], lava).get(cell, _UNREACHABLE) + to_goal.get(row["key"], _UNREACHABLE)


class Maze:
    """One conversation in the maze of a row.

    Attributes:
        cell, held, moves: where the player is, with the key or not, after how many moves.
        lost: in lava, or after a word that is no move.
    """

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.row = {name: row[name] for name in ("start", "key", "goal", "lava")}
        self.cell, self.held, self.moves, self.lost = self.row["start"], False, 0, False

    def step(self, action: str) -> Step:
        move = action.strip()
        self.moves += 1
        if move not in MOVES:
            self.lost = True
            return Step("", done=True)
        self.cell = moved(self.cell, move)
        self.held = self.held or self.cell == self.row["key"]
        self.lost = self.cell in self.row["lava"]
        over = self.lost or self.won or self.moves >= MAX_MOVES
        return Step(f"{self.cell}*" if self.held else str(self.cell), over)

    @property
    def won(self) -> bool:
        return self.held and not self.lost and self.cell == self.row["goal"]

    @property
    def winnable(self) -> bool:
        """Whether some moves win within the limit."""
        return not self.lost and self.moves + moves_to_win(self.row, self.cell, self.held) <= MAX_MOVES

    def verdict(self) -> Verdict:
        return Verdict(float(self.won))


class MazeTask(EnvironmentTask, ProceduralTask):
    """Fetch a key and bring it to the goal: 4000 mazes whose shortest ways take five to eight moves.

    Columns: `start`, `key`, `goal`, `lava` (cells).
    """

    name = "maze"
    # The last two are what a transcript says in a demonstration.
    words = ("maze", "key", "goal", "lava", *MOVES, *CELLS, "assistant:", "user:")
    max_turns = MAX_MOVES
    max_action_tokens = 4
    # Ten moves with their end tokens, and nine answers with the marks of two roles; one more than can be needed.
    max_completion_length = 2 * MAX_MOVES + 3 * (MAX_MOVES - 1) + 1

    def problems(self) -> list[Problem]:
        return list(_problems())

    def row(self, problem: Problem) -> Row:
        start, key, goal, *lava = problem
        prompt = f"maze {start} key {key} goal {goal} lava {' '.join(map(str, lava))}"
        return {
            "problem_id": "-".join(["maze", *map(str, problem)]),
            "prompt": user_prompt(prompt),
            "start": start,
            "key": key,
            "goal": goal,
            "lava": lava,
        }

    def environment(self, row: Mapping[str, Any]) -> Maze:
        return Maze(row)

    def is_correct(self, completion: Completion, row: Mapping[str, Any]) -> bool:
        return self.verify([completion], [row])[0].score == 1

    def is_solvable(self, words: Sequence[str], row: Mapping[str, Any]) -> bool:
        maze, done = Maze(row), False
        for move in words:
            if done:  # nothing comes after the end
                return False
            done = maze.step(move).done
        return maze.winnable

    def attempt(self, row: Mapping[str, Any], rng: random.Random) -> Completion:
        """A walk of which every other move, on average, is random."""
        return _walk(row, rng, _AIMLESS_PROBABILITY)

    def solution(self, row: Mapping[str, Any], rng: random.Random) -> Completion:
        """A walk that may stray and recover; the first that wins."""
        while True:
            walk = _walk(row, rng, _STRAY_PROBABILITY)
            if self.is_correct(walk, row):
                return walk

    def recovery(self, row: Mapping[str, Any], demonstration: Completion, rng: random.Random) -> Completion:
        """A walk that follows the demonstration, strays, and returns to where it left it; the demonstration itself
        where that leaves no moves to stray."""
        if len(actions(demonstration)) > MAX_MOVES - 2:
            return demonstration
        for _ in range(_MAX_TRIES):
            walk = _return_walk(row, actions(demonstration), rng)
            if walk != demonstration and self.is_correct(walk, row):
                return walk
        return demonstration

    def canned(self) -> Canned:
        row = self.row((8, 16, 2, 1, 9, 13, 21, 24))

        def transcript(moves: str) -> Completion:
            remaining = iter(moves.split())
            return scripted(Maze(row), lambda _: next(remaining))

        right = transcript("left down left down up right up up")
        return Canned(
            row,
            right=(right, transcript("up down left down left down up right up up")),
            wrong=(
                transcript("down"),
                transcript("left up down left down down up up up north"),
                transcript("left right left right left right left right left right"),
                right[:-1],
                [*right[:1], {"role": "user", "content": "12"}, *right[2:]],
                "up",
            ),
        )


def _walk(row: Mapping[str, Any], rng: random.Random, stray_probability: float) -> Completion:
    """A conversation of a player who knows the shortest ways and sometimes makes a random move."""
    maze = Maze(row)

    def player(_: str | None) -> str:
        left = moves_to_win(row, maze.cell, maze.held)
        closer = [move for move in MOVES if _moves_after(row, maze, move) < left]
        strays = rng.random() < stray_probability
        return rng.choice(tuple(MOVES) if strays else closer)

    return scripted(maze, player)


def _return_walk(row: Mapping[str, Any], moves: Sequence[str], rng: random.Random) -> Completion:
    """A conversation of a player who repeats given moves, sometimes makes a random one, and then heads for the cell
    that the given move would have led to."""
    maze, lava = Maze(row), tuple(row["lava"])
    path = [row["start"]]
    for move in moves:
        path.append(moved(path[-1], move))
    done = 0

    def player(_: str | None) -> str:
        nonlocal done
        if maze.cell == path[done + 1]:  # where the last move was meant to lead
            done += 1
        aim = _distances(path[done + 1], lava)
        closer = [move for move in MOVES if aim.get(moved(maze.cell, move), _UNREACHABLE) < aim[maze.cell]]
        if maze.cell == path[done]:
            closer = [moves[done]]
        return rng.choice(tuple(MOVES) if rng.random() < _STRAY_PROBABILITY else closer)

    return scripted(maze, player)


def _moves_after(row: Mapping[str, Any], maze: Maze, move: str) -> int:
    cell = moved(maze.cell, move)
    return moves_to_win(row, cell, maze.held or cell == row["key"])


@cache
def _problems() -> tuple[Problem, ...]:
    """Start, key, goal and the cells of lava in ascending order."""
    rng = random.Random("maze")
    problems: dict[Problem, None] = {}
    while len(problems) < NUM_PROBLEMS:
        start, key, goal, *lava = rng.sample(range(NUM_CELLS), 3 + NUM_LAVA)
        lava.sort()
        maze = {"key": key, "goal": goal, "lava": lava}
        if FEWEST <= moves_to_win(maze, start, held=False) <= MOST:
            problems[(start, key, goal, *lava)] = None
    return tuple(problems)
