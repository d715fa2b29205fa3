"""Frozen lake: walk over ice to the goal, one step a turn, and fall into no hole. The game is gymnasium's.

    user         You are on a frozen lake ...           lake holes 5 7 11 12      (form "words")
    assistant    <action>down</action>                  down
    user         You are at P, row 2, column 1 ...      4

Each row has a map of its own, made by gymnasium's generator from a seed, and the seed of its slips, so that all
rollouts of a row meet the same world: their n-th steps slip to the same side. A step over the edge stays where it is.
A game is won at the goal, lost in a hole and after the last turn. What is no action costs a turn and is told, and the
verdict says how often it happened.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, Literal

from scgrpo.errors import ConfigError, MissingExtraError
from scgrpo.tasks.base import Canned, Completion, Message, Row, Verdict
from scgrpo.tasks.environment import Prompting, Step, actions, scripted
from scgrpo.tasks.games.actions import Form, TextGame, action_in, as_said, checked, how_to_answer, reciting
from scgrpo.tasks.procedural import EvalPart, Problem, ProceduralTask, user_prompt

LakeForm = Literal[Form, "words"]
# Numbers of the actions in gymnasium's game.
MOVES = {"left": 0, "down": 1, "right": 2, "up": 3}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
INVALID = "invalid"

# Maps drawn for each one that is wanted, before there are no more to be found.
_DRAWS_PER_MAP = 20
_FEWEST_MAPS = 8
_STRAY_PROBABILITY = 0.15
_AIMLESS_PROBABILITY = 0.5
_MAX_TRIES = 20
_TOKENS_PER_TURN = 200
_UNREACHABLE = 10**6


def _gymnasium() -> Any:
    """gymnasium's module of the game.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        from gymnasium.envs.toy_text import frozen_lake
    except ImportError as error:
        raise MissingExtraError(
            "The task 'frozen_lake' needs gymnasium.", 'Install it: pip install "scgrpo[games]".'
        ) from error
    return frozen_lake


@lru_cache(maxsize=512)
def _game(lines: tuple[str, ...], slippery: bool) -> Any:
    """gymnasium's game on a map, to be copied for each rollout."""
    return _gymnasium().FrozenLakeEnv(desc=list(lines), is_slippery=slippery)


@lru_cache(maxsize=4096)
def distances(lines: tuple[str, ...], target: int) -> dict[int, int]:
    """Fewest steps to the target from every cell from which dry ice leads there, breadth first."""
    size, tiles = len(lines), "".join(lines)
    found, queue = {target: 0}, [target]
    for reached in queue:
        row, column = divmod(reached, size)
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            cell = (row + down) * size + column + right
            inside = 0 <= row + down < size and 0 <= column + right < size
            if inside and cell not in found and tiles[cell] not in "HG":
                found[cell] = found[reached] + 1
                queue.append(cell)
    return found


class FrozenLake:
    """One game on the lake of a row.

    Attributes:
        cell, turns, invalid: where the player is, after how many turns, how many of them without an action.
    """

    def __init__(self, row: Mapping[str, Any], form: str, *, partial: bool = False) -> None:
        self.form, self.partial = form, partial
        self.map, self.max_turns = tuple(row["map"]), row["max_turns"]
        self._distances = distances(self.map, "".join(self.map).index("G"))
        self._game = copy.copy(_game(self.map, row["slippery"]))  # shares the transitions, which nobody changes
        self.cell = self.start = int(self._game.reset(seed=row["seed"])[0])
        self.turns = self.invalid = 0

    def step(self, action: str) -> Step:
        move = action_in(action, self.form)
        self.turns += 1
        if move in MOVES:
            self.cell = int(self._game.step(MOVES[move])[0])
        else:
            self.invalid += 1
        return Step(self._answer(move in MOVES), self.over)

    @property
    def tile(self) -> str:
        return "".join(self.map)[self.cell]

    @property
    def over(self) -> bool:
        return self.tile in "GH" or self.turns >= self.max_turns

    @property
    def steps_left(self) -> int:
        """Fewest steps to the goal, if every slip were for the better; a huge number if none lead there."""
        return self._distances.get(self.cell, _UNREACHABLE)

    @property
    def winnable(self) -> bool:
        """Whether some actions win in this world. Exact with slips too: one of four actions slips any wanted way."""
        return self.turns + self.steps_left <= self.max_turns

    def after(self, move: str) -> int:
        """The cell to which a move leads in this world, slips included."""
        ways = self._game.P[self.cell][MOVES[move]]
        if len(ways) == 1:
            return int(ways[0][1])
        game = copy.copy(self._game)
        game.np_random = copy.deepcopy(self._game.np_random)
        return int(game.step(MOVES[move])[0])

    def closer(self) -> list[str]:
        """The moves that lead closer to the goal in this world."""
        return [move for move in MOVES if self._distances.get(self.after(move), _UNREACHABLE) < self.steps_left]

    def verdict(self) -> Verdict:
        score = float(self.tile == "G")
        if self.partial and self.tile not in "GH":
            score = max(0.0, 1 - self.steps_left / self._distances[self.start])
        how = {"G": "goal", "H": "hole"}.get(self.tile, "not there")
        return Verdict(score, detail=f"{how} after {self.turns} turns; {self.invalid} without an action")

    def _answer(self, valid: bool) -> str:
        if self.form == "words":
            return str(self.cell) if valid else INVALID
        row, column = divmod(self.cell, len(self.map[0]))
        told = "" if valid else f"That is no action. {how_to_answer(self.form, 'up')}\n"
        tiles = [list(line) for line in self.map]
        tiles[row][column] = "P"
        return (
            f"{told}You are at P, row {row + 1}, column {column + 1}. Turns left: {self.max_turns - self.turns}.\n"
            f"{board(tiles)}"
        )


def board(tiles: Sequence[Sequence[str]]) -> str:
    return "\n".join(" ".join(line) for line in tiles)


class FrozenLakeTask(TextGame, ProceduralTask):
    """Walk over ice to the goal, on maps of gymnasium's generator, each once.

    Columns: `map` (its lines), `slippery`, `seed` (of the slips), `max_turns`.

    Args:
        form: "tagged" and "plain" (`Form`) for chat models, "words" for the small models of the testbed, which know a
            word for every cell.
        size: side of the lake, cells.
        frozen_probability: of each cell; the others are holes.
        slippery: a step goes where it should one time in three, else to one of the two sides.
        max_turns: default: twice the direct way, and four times that on slippery ice. Maps whose shortest way is
            longer are left out.
        num_maps: maps to draw, a quarter of which is held out (200 of them are the evaluation rows, unless more are
            asked for); fewer if there are not so many.
        partial: where the goal is not reached and the player not drowned, the score is the share of the way that is
            done; else 0.
        prompting: "concat": a rollout is one growing conversation; "per_step": each turn has a prompt of its own.
        history_turns: turns before that a prompt per step tells.
        eval_part: all held-out maps, or one of two halves of them, "tune" and "final".

    Raises:
        ConfigError: a setting out of range; later, when there are hardly any such maps.
        MissingExtraError: later, when gymnasium is first needed and not installed.
    """

    name = "frozen_lake"
    needs = "extra games"
    form: LakeForm
    words: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        form: LakeForm = "tagged",
        size: int = 4,
        frozen_probability: float = 0.8,
        slippery: bool = False,
        max_turns: int | None = None,
        num_maps: int = 2000,
        partial: bool = False,
        prompting: Prompting = "concat",
        history_turns: int = 2,
        eval_part: EvalPart = "all",
    ) -> None:
        super().__init__(eval_part)
        self.form = checked("form", form, LakeForm)
        self.prompting = checked("prompting", prompting, Prompting)
        self.max_turns = (16 if slippery else 4) * (size - 1) if max_turns is None else max_turns
        if size < 3 or not 0 < frozen_probability <= 1 or num_maps < _FEWEST_MAPS or history_turns < 0:
            raise ConfigError(
                f"A lake of size {size}, frozen_probability {frozen_probability}, num_maps {num_maps}, "
                f"history_turns {history_turns}.",
                f"size >= 3, 0 < frozen_probability <= 1, num_maps >= {_FEWEST_MAPS}, history_turns >= 0.",
            )
        if self.max_turns < 2 * (size - 1):
            raise ConfigError(f"max_turns is {max_turns}.", f"The goal is {2 * (size - 1)} steps away at least.")
        self.size, self.frozen_probability, self.slippery = size, frozen_probability, slippery
        self.num_maps, self.partial, self.history_turns = num_maps, partial, history_turns
        self.max_completion_length = _TOKENS_PER_TURN * self.max_turns
        if form == "words":
            self.template = "tiny"
            cells = (str(cell) for cell in range(size * size))
            self.words = ("lake", "holes", *MOVES, *cells, INVALID, "assistant:", "user:")
            self.max_action_tokens = 4
            # Moves with their end tokens, answers with the marks of two roles; one more than can be needed.
            self.max_completion_length = 2 * self.max_turns + 3 * (self.max_turns - 1) + 1

    def problems(self) -> list[Problem]:
        return list(_problems(self.size, self.frozen_probability, self.max_turns, self.num_maps))

    def row(self, problem: Problem) -> Row:
        """Args: `problem` is the size and the cells of holes, row by row from the top left."""
        size, *holes = problem
        tiles = ["S", *("H" if cell in holes else "F" for cell in range(1, size * size - 1)), "G"]
        lines = ["".join(tiles[start : start + size]) for start in range(0, size * size, size)]
        prompt = " ".join(["lake holes", *map(str, holes)]) if self.form == "words" else self._prompt(lines)
        return {
            "problem_id": "-".join([self.name, *map(str, problem)]),
            "prompt": user_prompt(prompt),
            "map": lines,
            "slippery": self.slippery,
            "seed": int.from_bytes(self._hash(problem)[2:6]),
            "max_turns": self.max_turns,
        }

    def _prompt(self, lines: Sequence[str]) -> str:
        ice = (
            "The ice is slippery: a step goes where you want one time in three, else to one of the two sides. "
            if self.slippery
            else ""
        )
        return (
            f"You are on a frozen lake of {len(lines)} x {len(lines)} tiles. Walk from the start to the goal and "
            "fall into no hole.\n\nS: start, where you are; G: goal; F: frozen, safe to walk on; H: hole.\n"
            f"{board(lines)}\n\n"
            f"Each turn you take one step: left, down, right or up. At the edge a step leads nowhere. {ice}"
            f"You have {self.max_turns} turns. {how_to_answer(self.form, 'up')}"
        )

    def environment(self, row: Mapping[str, Any]) -> FrozenLake:
        return FrozenLake(row, self.form, partial=self.partial)

    def step_prompt(
        self, row: Mapping[str, Any], history: Sequence[tuple[str, str]], observation: str
    ) -> list[Message]:
        """In words: the conversation, with the last turn alone."""
        if self.form != "words":
            return super().step_prompt(row, history, observation)
        last = {"role": "assistant", "content": history[-1][1]}
        return [*row["prompt"], last, {"role": self.observer, "content": observation}]

    def is_correct(self, completion: Completion, row: Mapping[str, Any]) -> bool:
        return self.verify([completion], [row])[0].score == 1

    def is_solvable(self, words: Sequence[str], row: Mapping[str, Any]) -> bool:
        """Whether these actions can still win, in the world of the row."""
        game, done = self.environment(row), False
        for text in words:
            if done:  # nothing comes after the end
                return False
            done = game.step(text).done
        return game.winnable

    def attempt(self, row: Mapping[str, Any], rng: random.Random) -> Completion:
        """A walk of which every other step, on average, is random."""
        return self._walk(row, rng, _AIMLESS_PROBABILITY)

    def solution(self, row: Mapping[str, Any], rng: random.Random) -> Completion:
        """A walk that may stray and recover; the first that wins. Its player knows how the row's ice slips."""
        for _ in range(_MAX_TRIES):
            walk = self._walk(row, rng, _STRAY_PROBABILITY)
            if self.is_correct(walk, row):
                return walk
        return self._walk(row, rng, 0.0)

    def recovery(self, row: Mapping[str, Any], demonstration: Completion, rng: random.Random) -> Completion:
        """The demonstration with one step aside and back again; the demonstration itself where that cannot win."""
        moves = actions(demonstration)
        for _ in range(_MAX_TRIES):
            at, stray = rng.randrange(len(moves)), rng.choice(tuple(MOVES))
            said = [*moves[:at], *(as_said(move, self.form) for move in (stray, OPPOSITE[stray])), *moves[at:]]
            walk = scripted(self.environment(row), reciting(said))
            if self.is_correct(walk, row):
                return walk
        return demonstration

    def _walk(self, row: Mapping[str, Any], rng: random.Random, stray_probability: float) -> Completion:
        """A game of a player who knows the shortest ways and sometimes takes a random step."""
        game = self.environment(row)

        def player(_: str | None) -> str:
            strays = rng.random() < stray_probability
            return as_said(rng.choice(tuple(MOVES) if strays else game.closer()), self.form)

        return scripted(game, player)

    def canned(self) -> Canned:
        """On gymnasium's own map of this name, dry."""
        row = FrozenLakeTask(form=self.form, max_turns=10).row((4, 5, 7, 11, 12))

        def transcript(moves: str) -> list[Message]:
            return scripted(FrozenLake(row, self.form), reciting(as_said(move, self.form) for move in moves.split()))

        right = transcript("down down right right down right")
        return Canned(
            row,
            right=(right, transcript("left down north up down down right right down right")),
            wrong=(
                transcript("right down"),
                transcript("left left left left left left left left left left"),
                right[:-1],
                [*right[:1], {"role": "user", "content": "15"}, *right[2:]],
                as_said("down", self.form),
            ),
        )


@cache
def _problems(size: int, frozen_probability: float, max_turns: int, num_maps: int) -> tuple[Problem, ...]:
    """Size and holes of the first different maps of the generator whose shortest ways leave time to walk them."""
    module = _gymnasium()
    found: dict[Problem, None] = {}
    for seed in range(_DRAWS_PER_MAP * num_maps):
        lines = tuple(module.generate_random_map(size, frozen_probability, seed=seed))
        problem = (size, *(cell for cell, tile in enumerate("".join(lines)) if tile == "H"))
        if problem not in found and distances(lines, size * size - 1)[0] <= max_turns:
            found[problem] = None
        if len(found) == num_maps:
            break
    if len(found) < _FEWEST_MAPS:
        raise ConfigError(
            f"There are {len(found)} lakes of size {size} with frozen_probability {frozen_probability} whose goal is "
            f"at most {max_turns} steps away.",
            "Choose a larger size, a frozen_probability further from 1, or more turns.",
        )
    return tuple(found)
