"""A shop and its goals, opened once per process."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from scgrpo.tasks.webshop.catalogue import CatalogueName, load_catalogue
from scgrpo.tasks.webshop.goals import Goal, GoalKind, draw_goals, draw_prices
from scgrpo.tasks.webshop.nouns import NounsName, get_nouns
from scgrpo.tasks.webshop.shop import Shop


@dataclass(frozen=True)
class StockSettings:
    """All that a shop and its goals depend on: equal settings, equal goals, in every process."""

    catalogue: CatalogueName = "1k"
    data_dir: str | Path | None = None
    num_products: int | None = None
    goals: GoalKind = "synthetic"
    price_seed: int = 0
    shuffle_seed: int = 233
    strict: bool = True
    nouns: NounsName = "rules"
    spacy_model: str = "en_core_web_sm"
    show_attributes: bool = False


class Stock(NamedTuple):
    shop: Shop
    goals: list[Goal]


@lru_cache(maxsize=2)
def open_stock(settings: StockSettings) -> Stock:
    """Load, index and draw.

    Raises:
        ConfigError, DataError, MissingExtraError: as the parts do.
    """
    nouns = get_nouns(settings.nouns, settings.spacy_model)
    products = load_catalogue(settings.catalogue, settings.data_dir, settings.num_products)
    rng = random.Random(settings.price_seed)
    prices = draw_prices(products, rng)
    goals = draw_goals(products, prices, settings.goals, rng, settings.shuffle_seed)
    shop = Shop(products, prices, nouns, strict=settings.strict, show_attributes=settings.show_attributes)
    return Stock(shop, goals)
