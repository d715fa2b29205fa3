"""WebShop against the original: Lucene's rankings, the original engine's pages and rewards, its counts of goals.

Skips without the shared data. `pytest tests/integration/test_webshop_conformance.py -n 0 -s` prints the numbers.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nltk")
pytest.importorskip("thefuzz")

import webshop_walks as walks

from scgrpo.tasks.webshop import WebShopTask
from scgrpo.tasks.webshop.catalogue import Product, load_catalogue
from scgrpo.tasks.webshop.goals import Goal, draw_goals, draw_prices
from scgrpo.tasks.webshop.nouns import by_rules
from scgrpo.tasks.webshop.player import winning_actions
from scgrpo.tasks.webshop.ranking import SearchIndex
from scgrpo.tasks.webshop.reward import purchase_reward
from scgrpo.tasks.webshop.shop import Shop, Visit
from scgrpo.tasks.webshop.stock import StockSettings, open_stock

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "webshop"
RECORDED = Path(__file__).parents[1] / "fixtures" / "webshop" / "original_walks.json"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the shared/ data folder is not beside this checkout")


@pytest.fixture(scope="module")
def products() -> list[Product]:
    return load_catalogue("1k", DATA)


def stock(products: list[Product], kind: Any = "synthetic") -> tuple[dict[str, float], list[Goal]]:
    rng = random.Random(walks.PRICE_SEED)
    prices = draw_prices(products, rng)
    return prices, draw_goals(products, prices, kind, rng, 233)


def test_contents_are_what_was_indexed(products: list[Product]) -> None:
    with (DATA / "products_1k_docs.jsonl").open(encoding="utf-8") as file:
        assert [p.contents for p in products] == [json.loads(line)["contents"] for line in file]


def test_rankings_are_lucenes(products: list[Product]) -> None:
    index = SearchIndex([p.asin for p in products], [p.contents for p in products])
    queries = (DATA / "conformance_queries.txt").read_text(encoding="utf-8").splitlines()
    lucene = (DATA / "conformance_lucene_top50.txt").read_text(encoding="utf-8").splitlines()
    identical, furthest = 0, 0.0
    for query, line in zip(queries, lucene, strict=False):
        wanted = [(name, float(score)) for name, _, score in (hit.rpartition(":") for hit in line.split())]
        found = index.scores(query)
        identical += [name for name, _ in found] == [name for name, _ in wanted]
        furthest = max([furthest, *(abs(a[1] - b[1]) for a, b in zip(found, wanted, strict=False))])
    print(f"\n{identical} of {len(queries)} top 50 identical to Lucene's; scores differ by {furthest:.1g} at most")
    assert len(queries) == 1915
    assert identical == len(queries)
    assert furthest < 1e-4  # the file has four decimals


def test_goals_are_counted_as_by_the_original(products: list[Product]) -> None:
    assert len(products) == 1000
    assert len(stock(products)[1]) == 6910
    assert len(stock(products, "human")[1]) == 13
    task = WebShopTask(DATA)
    # Two of the 6410 ask for what an evaluation goal asks for.
    assert (len(task.rows("train")), len(task.rows("eval"))) == (6408, 500)


def test_exact_purchases_are_not_all_worth_one_to_the_original(products: list[Product]) -> None:
    prices, goals = stock(products)
    for strict, failing in ((True, 458), (False, 0)):
        rewards = [
            purchase_reward(g.product, dict(g.options), prices[g.product.asin], g, by_rules, strict=strict).total
            for g in goals
        ]
        count = sum(reward < 1 for reward in rewards)
        print(f"\nstrict={strict}: {count} of {len(goals)} exact purchases are worth less than 1")
        assert count == failing


class Ours:
    """A walker through our shop."""

    def __init__(self, shop: Shop, goals: list[Goal], mode: str) -> None:
        self.shop, self.goals, self.mode = shop, goals, mode

    def start(self, goal: int) -> str:
        self.visit = Visit(self.shop, self.goals[goal])
        return self._seen()

    def clickables(self) -> list[str]:
        return list(self.visit.page.clickables())

    def act(self, action: str) -> tuple[str, float | None]:
        self.visit.act(action)
        return self._seen(), None if self.visit.reward is None else self.visit.reward.total

    def _seen(self) -> str:
        page = self.visit.page
        return page.text() if self.mode == "text" else page.rich_text(self.visit.visited)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_walks_are_those_of_the_original(products: list[Product], which: int) -> None:
    recorded = json.loads(RECORDED.read_text())["walks"][which]
    prices, goals = stock(products, recorded["goals"])
    shop = Shop(products, prices, walks.nouns, show_attributes=recorded["show_attributes"])
    ours = Ours(shop, goals, recorded["observation"])
    queries = [walks.queries_of(goal) for goal in goals]
    hashes = walks.walk_hashes(ours, queries, len(recorded["hashes"]), seed=1)
    same = sum(a == b for a, b in zip(hashes, recorded["hashes"], strict=True))
    print(f"\n{same} of {len(hashes)} walks ({recorded['goals']}, {recorded['observation']}) as in the original")
    assert same == len(hashes)


def test_rewards_are_those_of_the_original(products: list[Product]) -> None:
    prices, goals = stock(products)

    def reward(product: Product, goal: Goal, options: dict[str, str]) -> float:
        return purchase_reward(product, options, prices[product.asin], goal, walks.nouns).total

    assert walks.reward_hash(goals, products, reward) == json.loads(RECORDED.read_text())["rewards"]


def share_solved(strict: bool, every: int) -> tuple[int, int, int]:
    """Goals that the player buys with a reward of 1, those that can be bought so, and the longest way's steps."""
    shop, goals = open_stock(StockSettings(data_dir=str(DATA), strict=strict))
    rng, solved, solvable, longest = random.Random(0), 0, 0, 0
    for goal in goals[::every]:
        visit, found = Visit(shop, goal), winning_actions(shop, goal, 15, rng)
        for action in found or ():
            visit.act(action)
        solved += visit.reward is not None and visit.reward.total == 1.0
        exact = purchase_reward(goal.product, dict(goal.options), 0.0, goal, shop.nouns, strict=strict)
        solvable += exact.total == 1.0
        longest = max(longest, len(found or ()))
    asked = len(goals[::every])
    print(
        f"\nstrict={strict}: the player gets a reward of 1 for {solved} of {asked} goals, in {longest} steps at most"
    )
    return solved, solvable, longest


def test_the_player_solves_what_can_be_solved() -> None:
    solved, solvable, longest = share_solved(strict=True, every=20)
    assert (solved, longest <= 15) == (solvable, True)


@pytest.mark.slow
@pytest.mark.parametrize(("strict", "wanted"), [(True, 6910 - 458), (False, 6910)])
def test_the_player_solves_all_that_can_be_solved(strict: bool, wanted: int) -> None:
    assert share_solved(strict, every=1)[:2] == (wanted, wanted)
