"""TextWorld: generated text adventures with a quest, and the plan that solves it. The games are TextWorld's.

    user         You play a text adventure. ... Your task: ... open the locker ...
    assistant    <action>open locker</action>
    user         You open the locker, revealing a spork. ...

Every row is a game of its own, generated from its seed and compiled when it is first needed (some seconds of one
core), then kept. An action is one of the commands that the game admits at that moment, word for word; nothing else
reaches the game's interpreter (which also knows `save` and `quit`), costs a turn, and is told.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from scgrpo.errors import ConfigError, MissingExtraError
from scgrpo.tasks.base import Canned, Message, Row, Split, Verdict
from scgrpo.tasks.environment import Prompting, Step, scripted
from scgrpo.tasks.games.actions import Form, TextGame, action_in, as_said, checked, how_to_answer
from scgrpo.tasks.procedural import user_prompt

# Seeds of the eval games start here; there are never so many training games.
_EVAL_SEEDS = 10**6
_TURNS_PER_STEP = 4
# Where the interpreter's status line starts, at the end of each of its answers.
_STATUS_LINE = re.compile(r"\n>[^\n]*$")
_BLANK_LINES = re.compile(r"\n\s*\n+")


def _textworld() -> Any:
    """The package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import textworld
        import textworld.generator
    except ImportError as error:
        raise MissingExtraError(
            "The task 'textworld' needs TextWorld.", 'Install it: pip install "scgrpo[textworld]".'
        ) from error
    return textworld


class TextAdventure:
    """One game, played from its compiled file.

    Attributes:
        state: TextWorld's, after the last command.
        turns, invalid: actions so far, and how many of them were none.
    """

    def __init__(
        self, file: Path, max_turns: int, form: str, *, partial: bool = False, show_commands: bool = True
    ) -> None:
        textworld = _textworld()
        names = ("feedback", "description", "objective", "won", "lost", "score", "max_score")
        infos = textworld.EnvInfos(**dict.fromkeys(names, True), admissible_commands=True, policy_commands=True)
        self._game = textworld.start(str(file), request_infos=infos)
        self.state = self._game.reset()
        self.max_turns, self.form, self.partial, self.show_commands = max_turns, form, partial, show_commands
        self.turns = self.invalid = 0

    def step(self, action: str) -> Step:
        command = action_in(action, self.form)
        self.turns += 1
        # Case is lost in an action, and names may have capitals.
        known = {admitted.lower(): admitted for admitted in self.state.admissible_commands}
        if command in known and not self._ended:
            self.state, _, _ = self._game.step(known[command])
            told = _BLANK_LINES.sub("\n\n", _STATUS_LINE.sub("", self.state.feedback)).strip()
        else:
            self.invalid += 1
            told = "You cannot do that here. Use a command word for word."
        return Step(f"{told}\n\n{self.what_now()}", self._ended or self.turns >= self.max_turns)

    def what_now(self) -> str:
        """The commands, if they are shown, and the turns that are left."""
        commands = "; ".join(self.state.admissible_commands or [])
        shown = f"You can: {commands}\n" if self.show_commands else ""
        return f"{shown}Turns left: {self.max_turns - self.turns}."

    @property
    def plan(self) -> list[str]:
        """Commands that win from here."""
        return list(self.state.policy_commands)

    @property
    def _ended(self) -> bool:
        return bool(self.state.won or self.state.lost)

    def verdict(self) -> Verdict:
        score = float(bool(self.state.won))
        if self.partial:
            score = max(score, (self.state.score or 0) / max(1, self.state.max_score))
        how = "won" if self.state.won else "lost" if self.state.lost else "not won"
        return Verdict(score, detail=f"{how} after {self.turns} turns; {self.invalid} without a command")

    def close(self) -> None:
        self._game.close()


class TextWorldTask(TextGame):
    """Text adventures, generated, with a way that wins.

    Columns: `seed`, `max_turns`.

    Args:
        num_rooms: of each world.
        num_objects: of each world.
        quest_length: commands that a quest takes at least.
        num_train: games to train on.
        num_eval: games of the evaluation; their seeds are others.
        max_turns: default: four for each command of the quest.
        form: of a command (`Form`).
        show_commands: tell with each answer which commands the game admits. Without them a model must find out.
        partial: a game that is not won scores the share of its points; else 0.
        folder: where compiled games are kept. Default: `textworld` in `$SCGRPO_CACHE`, or in `~/.cache/scgrpo`.
        prompting: "concat": a rollout is one growing conversation; "per_step": each turn has a prompt of its own.
        history_turns: turns before that a prompt per step tells.

    Raises:
        ConfigError: a setting out of range; later, where no quest of this length can be made.
        MissingExtraError: TextWorld is not installed.
    """

    name = "textworld"
    needs = "extra textworld"

    def __init__(
        self,
        *,
        num_rooms: int = 3,
        num_objects: int = 5,
        quest_length: int = 4,
        num_train: int = 100,
        num_eval: int = 20,
        max_turns: int | None = None,
        form: Form = "tagged",
        show_commands: bool = True,
        partial: bool = False,
        folder: str | None = None,
        prompting: Prompting = "concat",
        history_turns: int = 2,
    ) -> None:
        self.form = checked("form", form, Form)
        self.prompting = checked("prompting", prompting, Prompting)
        self.max_turns = _TURNS_PER_STEP * quest_length if max_turns is None else max_turns
        if min(num_rooms, num_objects, quest_length, self.max_turns) < 1 or not 0 <= num_train < _EVAL_SEEDS:
            raise ConfigError(
                f"num_rooms {num_rooms}, num_objects {num_objects}, quest_length {quest_length}, max_turns "
                f"{self.max_turns}, num_train {num_train}.",
                "All are at least 1, and num_train is below a million.",
            )
        _textworld()
        self.num_rooms, self.num_objects, self.quest_length = num_rooms, num_objects, quest_length
        self.num_train, self.num_eval = num_train, num_eval
        self.show_commands, self.partial, self.history_turns = show_commands, partial, history_turns
        cache = Path(os.environ.get("SCGRPO_CACHE") or Path.home() / ".cache" / "scgrpo")
        self.folder = cache / "textworld" if folder is None else Path(folder)

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        """Rows of a split, the same at every call. Compiles the games that have not been compiled yet.

        Raises:
            ConfigError: unknown split; no quest can be made.
        """
        if split not in ("train", "eval"):
            raise ConfigError(f"There is no split {split!r}.", "Choose train or eval.")
        first, number = (0, self.num_train) if split == "train" else (_EVAL_SEEDS, self.num_eval)
        return [self.row(seed) for seed in range(first, first + number)[:limit]]

    def row(self, seed: int) -> Row:
        game = self._start(seed, self.max_turns)
        try:
            state = game.state
            prompt = (
                f"You play a text adventure. Each turn you give one command. You have {self.max_turns} turns.\n\n"
                f"Your task: {state.objective}\n\n{state.description.strip()}\n\n{game.what_now()}\n\n"
                f"{how_to_answer(self.form, 'look')}"
            )
        finally:
            game.close()
        key = "-".join(map(str, (self.num_rooms, self.num_objects, self.quest_length, seed)))
        return {
            "problem_id": f"textworld-{key}",
            "prompt": user_prompt(prompt),
            "seed": seed,
            "max_turns": self.max_turns,
        }

    def environment(self, row: Mapping[str, Any]) -> TextAdventure:
        return self._start(row["seed"], row["max_turns"])

    def solution(self, row: Mapping[str, Any], rng: random.Random) -> list[Message]:
        """The game's own plan."""
        game = self.environment(row)
        try:
            return scripted(game, lambda _: as_said(game.plan[0], self.form))
        finally:
            game.close()

    def canned(self) -> Canned:
        row = self.row(0)
        right = self.solution(row, random.Random(0))
        game = self.environment(row)
        try:
            lost = scripted(game, lambda _: as_said("look", self.form))
        finally:
            game.close()
        return Canned(row, right=(right,), wrong=(lost, right[:-1], as_said("quit", self.form)))

    def _start(self, seed: int, max_turns: int) -> TextAdventure:
        return TextAdventure(
            self._file(seed), max_turns, self.form, partial=self.partial, show_commands=self.show_commands
        )

    def _file(self, seed: int) -> Path:
        """The compiled game of a seed. It is there whole or not at all: two processes may compile the same one."""
        from importlib.metadata import version

        settings = (self.num_rooms, self.num_objects, self.quest_length, seed, version("textworld"))
        key = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
        kept = self.folder / key
        if not kept.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".making-") as scratch:
                made = Path(scratch) / "game"
                made.mkdir()
                self._make(seed, made / "game.z8")
                with suppress(OSError):  # another process was faster
                    made.rename(kept)
        return kept / "game.z8"

    def _make(self, seed: int, path: Path) -> None:
        generator = _textworld().generator
        options = _textworld().GameOptions()
        options.nb_rooms, options.nb_objects, options.quest_length = (
            self.num_rooms,
            self.num_objects,
            self.quest_length,
        )
        options.seeds, options.path = seed, str(path)
        try:
            generator.compile_game(generator.make_game(options), options)
        except generator.QuestGenerationError as error:
            raise ConfigError(
                f"TextWorld makes no quest of {self.quest_length} commands with {self.num_rooms} rooms and "
                f"{self.num_objects} objects from seed {seed}.",
                "Choose a shorter quest, or more rooms and objects.",
            ) from error
