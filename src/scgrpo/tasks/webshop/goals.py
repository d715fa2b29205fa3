"""What a customer wants: prices, instructions, their order and the splits, as the original WebShop draws them.

The original draws prices and limits of price from the global random state, which it does not seed, so that its goals
differ from one process to the next. Here they depend on `price_seed` alone: all processes, and all rollouts of a
group, have the same ones. `Random(seed)` draws what the original would after `random.seed(seed)`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from scgrpo.errors import ConfigError, DataError
from scgrpo.tasks.webshop.catalogue import HUMAN_FILE, Product

GoalKind = Literal["synthetic", "human"]
SplitName = Literal["verl-agent", "original", "original-val"]

# The limit of price is one of the four next multiples of ten above the price, up to 990 dollars; without two of them
# there is none.
_LIMITS = tuple(10.0 * n for n in range(1, 100))
_NUM_LIMITS = 4
NO_LIMIT = 1_000_000.0
# Goals before this number are for evaluation, in splits of the full table; and where the original's training ends.
_NUM_EVAL, _NUM_EVAL_AND_VAL = 500, 1500


@dataclass(frozen=True, slots=True)
class Goal:
    """One instruction, and what fulfils it.

    Attributes:
        product: the product that was in mind; another may do as well.
        attributes: wanted attributes.
        options: wanted options: (name, value) of a synthetic goal, values alone of one that a person wrote.
        price_limit: dollars.
    """

    product: Product
    instruction: str
    attributes: tuple[str, ...]
    options: tuple[tuple[str, str], ...] | tuple[str, ...]
    price_limit: float

    @property
    def option_values(self) -> tuple[str, ...]:
        return tuple(option if isinstance(option, str) else option[1] for option in self.options)


def draw_prices(products: Sequence[Product], rng: random.Random) -> dict[str, float]:
    """A price for each product: its own, or one of its range."""
    return {
        product.asin: product.prices[0] if len(product.prices) == 1 else rng.uniform(*product.prices)
        for product in products
    }


def draw_goals(
    products: Sequence[Product],
    prices: Mapping[str, float],
    kind: GoalKind,
    rng: random.Random,
    shuffle_seed: int,
) -> list[Goal]:
    """All goals, in the order that gives them their numbers.

    Args:
        prices: of `draw_prices`, with the same `rng` before.
        kind: `synthetic`: every combination of options of every product that has an instruction; `human`: what
            people wrote.
        shuffle_seed: the original's is 233.

    Raises:
        ConfigError: unknown kind.
        DataError: the catalogue has none of this kind.
    """
    if kind not in get_args(GoalKind):
        raise ConfigError(f"Unknown goals {kind!r}.", f"Choose one of {', '.join(get_args(GoalKind))}.")
    make = _synthetic if kind == "synthetic" else _human
    goals = [goal for product in products for goal in make(product, prices[product.asin], rng)]
    if not goals:
        missing = f" {HUMAN_FILE} must be in data_dir." if kind == "human" else ""
        raise DataError(f"No product of the catalogue has a {kind} instruction.", f"Check its files.{missing}")
    random.Random(shuffle_seed).shuffle(goals)
    return goals


def _limit(price: float, rng: random.Random) -> tuple[float, str]:
    """A limit above a price, and the words for it."""
    candidates = [limit for limit in _LIMITS if limit > price][:_NUM_LIMITS]
    if len(candidates) < 2:
        return NO_LIMIT, ""
    limit = max(rng.sample(candidates, 2))
    return limit, f", and price lower than {limit:.2f} dollars"


def _synthetic(product: Product, price: float, rng: random.Random) -> Iterator[Goal]:
    if product.instruction is None:
        return
    limit, limit_words = _limit(price, rng)
    names = sorted(product.options)
    for values in itertools.product(*(product.options[name] for name in names)):
        options = tuple(zip(names, values, strict=True))
        words = ", and ".join(f"{name}: {value}" for name, value in options)
        words = f" with {words}" if words else ""
        instruction = f"{product.instruction}{words}{limit_words}"
        yield Goal(product, instruction, product.instruction_attributes, options, limit)


def _human(product: Product, price: float, rng: random.Random) -> Iterator[Goal]:
    for written in product.human:
        if written.attributes:
            limit, limit_words = _limit(price, rng)
            instruction = written.text.strip(".") + limit_words
            yield Goal(product, instruction, written.attributes, written.options, limit)


def split_goals(num_goals: int, split: SplitName) -> tuple[range, range]:
    """Numbers of training and evaluation goals.

    `verl-agent`: evaluation 0-499, training the rest. `original`: evaluation 0-499 (its test split), training from
    1500; `original-val`: evaluation 500-1499, the same training. In a table of fewer than 2000 goals, which no split
    is made for, the first quarter is for evaluation and the rest for training.

    Raises:
        ConfigError: unknown split.
    """
    if split not in get_args(SplitName):
        raise ConfigError(f"Unknown split {split!r}.", f"Choose one of {', '.join(get_args(SplitName))}.")
    if num_goals < _NUM_EVAL_AND_VAL + _NUM_EVAL:
        quarter = (num_goals + 3) // 4
        return range(quarter, num_goals), range(quarter)
    evaluation = range(_NUM_EVAL, _NUM_EVAL_AND_VAL) if split == "original-val" else range(_NUM_EVAL)
    return range(_NUM_EVAL if split == "verl-agent" else _NUM_EVAL_AND_VAL, num_goals), evaluation
