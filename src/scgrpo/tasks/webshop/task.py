"""WebShop as a task."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from scgrpo.errors import ConfigError, DataError
from scgrpo.tasks.base import Canned, Completion, Message, Row, Split
from scgrpo.tasks.environment import EnvironmentTask, Prompting, scripted
from scgrpo.tasks.webshop import prompts
from scgrpo.tasks.webshop.catalogue import CatalogueName
from scgrpo.tasks.webshop.environment import RewardKind, WebShopEnvironment
from scgrpo.tasks.webshop.goals import Goal, GoalKind, SplitName, split_goals
from scgrpo.tasks.webshop.nouns import NounsName
from scgrpo.tasks.webshop.pages import ObservationMode
from scgrpo.tasks.webshop.player import transcript_actions, winning_actions
from scgrpo.tasks.webshop.stock import StockSettings, open_stock

# Steps of the shortest purchase: search, look at a product, buy.
SHORTEST = 3


class WebShopTask(EnvironmentTask):
    """Buy what an instruction asks for. Columns: `goal` (its number), `instruction`, `catalogue`.

    The score is the original's reward, in [0, 1]; a rollout is solved with a reward of 1.

    Args:
        data_dir: folder with the files of the catalogue (docs/benchmarks/webshop.md says which); not for `mini`.
        catalogue: `1k` (1000 products), `full` (1.18 million), or `mini`: twelve made-up ones, in the box.
        num_products: the first so many products only.
        goals: `synthetic`, or `human`: the instructions that people wrote.
        split: which goals are for evaluation, see `split_goals`.
        train_goals: so many training goals; None: all.
        goal_seed: which ones these are.
        eval_goals: the first so many evaluation goals; None: all.
        price_seed, shuffle_seed: of the prices and their limits, and of the goals' order.
        observation: `text`, or `text_rich` with marks around what can be clicked.
        reward: `score`: the reward itself; `success`: 1 for a reward of 1, else 0.
        strict: the original's reward with its mistakes, see `scgrpo.tasks.webshop.reward`.
        nouns, spacy_model: see `scgrpo.tasks.webshop.nouns`.
        show_attributes: products' pages lead to their attributes.
        max_steps: answers of a visit.
        max_action_tokens: of one answer; None: no limit of its own.
        prompting: "concat" or "per_step" (verl-agent's), see `EnvironmentTask`.
        history_length: earlier steps that `step_prompt` tells.
        max_prompt_chars: a `step_prompt` that is longer leaves them out.
        think_tag: tag for thoughts. Chat templates that drop earlier thoughts (Qwen3's) do so with `think`; in a
            growing conversation they need another one, as `reasoning`.

    Raises:
        ConfigError: an option out of range.
    """

    name = "webshop"
    needs = "extra webshop, its files (docs/benchmarks/webshop.md)"
    template = "agent"
    success_threshold = 1.0

    def __init__(
        self,
        data_dir: str | Path | None = None,
        catalogue: CatalogueName = "1k",
        num_products: int | None = None,
        goals: GoalKind = "synthetic",
        split: SplitName = "verl-agent",
        train_goals: int | None = None,
        eval_goals: int | None = None,
        goal_seed: int = 0,
        price_seed: int = 0,
        shuffle_seed: int = 233,
        observation: ObservationMode = "text",
        reward: RewardKind = "score",
        strict: bool = True,
        nouns: NounsName = "rules",
        spacy_model: str = "en_core_web_sm",
        show_attributes: bool = False,
        max_steps: int = 15,
        max_action_tokens: int | None = 512,
        prompting: Prompting = "concat",
        history_length: int = 2,
        max_prompt_chars: int = 13_000,
        think_tag: str = "think",
    ) -> None:
        _check_choices(
            catalogue=(catalogue, CatalogueName),
            goals=(goals, GoalKind),
            split=(split, SplitName),
            observation=(observation, ObservationMode),
            reward=(reward, RewardKind),
            nouns=(nouns, NounsName),
            prompting=(prompting, Prompting),
        )
        _check_counts(num_products=num_products, train_goals=train_goals, eval_goals=eval_goals)
        if max_steps < SHORTEST:
            raise ConfigError(f"max_steps is {max_steps}.", f"A purchase takes at least {SHORTEST}.")
        self._settings = StockSettings(
            catalogue=catalogue,
            data_dir=None if data_dir is None else str(data_dir),
            num_products=num_products,
            goals=goals,
            price_seed=price_seed,
            shuffle_seed=shuffle_seed,
            strict=strict,
            nouns=nouns,
            spacy_model=spacy_model,
            show_attributes=show_attributes,
        )
        self._split, self._train_goals, self._eval_goals = split, train_goals, eval_goals
        self._goal_seed, self._mode, self._reward = goal_seed, observation, reward
        self.max_turns, self.max_action_tokens = max_steps, max_action_tokens
        self.prompting = prompting
        self._history_length, self._max_prompt_chars, self._think = history_length, max_prompt_chars, think_tag

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        """Rows of a split. Training goals that ask for the same as an evaluation goal, word for word, are left out.

        Raises:
            ConfigError: more goals wanted than there are.
            DataError: the catalogue cannot be read; says what to download.
        """
        goals = open_stock(self._settings).goals
        training, evaluation = split_goals(len(goals), self._split)
        if split == "eval":
            numbers = _part(list(evaluation), "eval_goals", self._eval_goals)
        else:
            held_out = {goals[number].instruction for number in evaluation}
            numbers = [number for number in training if goals[number].instruction not in held_out]
            if self._train_goals is not None:
                _part(numbers, "train_goals", self._train_goals)
                numbers = random.Random(self._goal_seed).sample(numbers, self._train_goals)
        return [self._row(number, goals[number], self._settings) for number in numbers[:limit]]

    def _row(self, number: int, goal: Goal, settings: StockSettings) -> Row:
        return {
            "problem_id": f"{settings.catalogue}-{settings.goals}-{number}",
            "prompt": prompts.first_prompt(goal.instruction, self._mode, self.max_turns, self._think),
            "goal": number,
            "instruction": goal.instruction,
            "catalogue": settings.catalogue,
        }

    def environment(self, row: Mapping[str, Any]) -> WebShopEnvironment:
        """A visit for the goal of a row.

        Raises:
            KeyError: the row lacks a column.
            DataError: the row was made with other options.
        """
        stock, goal = open_stock(self._settings_of(row)), self._goal(row)
        return WebShopEnvironment(stock.shop, goal, self._mode, self.max_turns, self._reward, self._settings.nouns)

    def _settings_of(self, row: Mapping[str, Any]) -> StockSettings:
        """Of the row's shop: the task's own, or the one in the box, from which canned rows are."""
        if row["catalogue"] == self._settings.catalogue:
            return self._settings
        if row["catalogue"] == "mini":
            return _canned_settings(self._settings)
        raise DataError(
            f"A row is from the catalogue {row['catalogue']!r}, the task has {self._settings.catalogue!r}.",
            "Use the task options that the rows were made with.",
        )

    def _goal(self, row: Mapping[str, Any]) -> Goal:
        goals, number = open_stock(self._settings_of(row)).goals, row["goal"]
        if not 0 <= number < len(goals) or goals[number].instruction != row["instruction"]:
            raise DataError(
                f"Goal {number} does not ask for {row['instruction']!r} here.",
                "Use the catalogue and the task options (goals, seeds) that the rows were made with.",
            )
        return goals[number]

    def step_prompt(
        self, row: Mapping[str, Any], history: Sequence[tuple[str, str]], observation: str | None
    ) -> list[Message]:
        """The prompt of one step, where every step has its own.

        Args:
            history: (observation, answer) of all steps so far; the last `history_length` are told.
            observation: the one to answer. None or empty, as the first of all: the search page.
        """
        first = prompts.first_observation(self._mode)
        return prompts.step_prompt(
            row["instruction"],
            [(seen or first, answer) for seen, answer in history],
            observation or first,
            history_length=self._history_length,
            max_steps=self.max_turns,
            max_chars=self._max_prompt_chars,
            think_tag=self._think,
        )

    def solution(self, row: Mapping[str, Any], rng: random.Random) -> Completion:
        """A transcript that buys the product in mind with the wanted options: a reward of 1, but for the goals with
        which the original's own reward fails (`strict`).

        Raises:
            DataError: it cannot be found within the steps.
        """
        shop, goal = open_stock(self._settings_of(row)).shop, self._goal(row)
        found = winning_actions(shop, goal, self.max_turns, rng)
        if found is None:
            raise DataError(
                f"Goal {row['goal']} takes more than {self.max_turns} actions.", "Allow more of them (max_steps)."
            )
        return self._played(row, found)

    def _played(self, row: Mapping[str, Any], actions: Sequence[str]) -> list[Message]:
        remaining = iter(transcript_actions(actions, self._think))
        return scripted(self.environment(row), lambda _: next(remaining), self.observer)

    def canned(self) -> Canned:
        """A row of the catalogue in the box, whichever catalogue the task has."""
        settings = _canned_settings(self._settings)
        stock = open_stock(settings)
        num_options = min(1, self.max_turns - SHORTEST)
        number = next(i for i, goal in enumerate(stock.goals) if len(goal.options) == num_options)
        goal = stock.goals[number]
        row = self._row(number, goal, settings)
        found = winning_actions(stock.shop, goal, self.max_turns, random.Random(0))
        assert found is not None
        right = self._played(row, found)
        other = next(p for p in stock.shop.products.values() if p.category != goal.product.category)
        wandering = [f"search[{other.title.lower()}]", f"click[{other.asin.lower()}]"]
        detour = [*wandering, "click[nothing]", "click[back to search]", *found]
        return Canned(
            row,
            right=(right, self._played(row, detour)) if len(detour) <= self.max_turns else (right,),
            wrong=(
                self._played(row, [*wandering, "click[buy now]"]),
                right[:-1],
                [*right[:1], {"role": self.observer, "content": "Page: 'Buy Now'"}, *right[2:]],
                "I would like to buy it, please.",
            ),
        )


def _canned_settings(settings: StockSettings) -> StockSettings:
    if settings.catalogue == "mini":
        return settings
    return replace(settings, catalogue="mini", data_dir=None, num_products=None, goals="synthetic", nouns="rules")


def _part(numbers: list[int], option: str, wanted: int | None) -> list[int]:
    if wanted is not None and wanted > len(numbers):
        raise ConfigError(f"{option} is {wanted}, but there are {len(numbers)}.", "Ask for fewer.")
    return numbers[:wanted]


def _check_choices(**choices: tuple[Any, Any]) -> None:
    for option, (value, literal) in choices.items():
        if value not in get_args(literal):
            raise ConfigError(f"Unknown {option} {value!r}.", f"Choose one of {', '.join(get_args(literal))}.")


def _check_counts(**counts: int | None) -> None:
    for option, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(f"{option} is {value}.", "It must be at least 1.")
