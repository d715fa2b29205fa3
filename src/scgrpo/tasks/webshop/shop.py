"""A shop, and a customer's way through it: the actions `search[words]` and `click[name]`.

As in the original, with two exceptions: `search[<r>]`, `search[<a> ...]`, `search[<c> ...]` and `search[<q> ...]`,
which there return random products or look up hidden attributes, are ordinary searches here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from scgrpo.tasks.webshop import pages
from scgrpo.tasks.webshop.catalogue import Product
from scgrpo.tasks.webshop.goals import Goal
from scgrpo.tasks.webshop.nouns import Nouns
from scgrpo.tasks.webshop.pages import Page, PartKind
from scgrpo.tasks.webshop.ranking import SearchIndex
from scgrpo.tasks.webshop.reward import Reward, purchase_reward, token_set_ratio

# Results that a search has at most.
MAX_RESULTS = 50

# Greedy on both sides, and anything may follow: the original's.
_ACTION = re.compile(r"(.+)\[(.+)\]")


class Shop:
    """Products with prices, and their search engine: read only, for any number of customers at once.

    Attributes:
        strict, nouns: see `purchase_reward`.
        show_attributes: whether a product's page leads to its attributes, as the original's option `show_attrs`.

    Raises:
        MissingExtraError: a package that search or reward need is not installed.
    """

    def __init__(
        self,
        products: Sequence[Product],
        prices: Mapping[str, float],
        nouns: Nouns,
        *,
        strict: bool = True,
        show_attributes: bool = False,
    ) -> None:
        token_set_ratio()  # what is missing is to be found out now, not in the middle of a rollout
        self.products = {product.asin: product for product in products}
        self.prices = prices
        self.nouns, self.strict, self.show_attributes = nouns, strict, show_attributes
        self.index = SearchIndex([p.asin for p in products], (p.contents for p in products))

    def search(self, words: str) -> list[Product]:
        """The best products for some words."""
        return [self.products[asin] for asin in self.index.search(words, MAX_RESULTS)]


class Visit:
    """One customer's way through the shop.

    Attributes:
        page: what the customer sees.
        visited: names of products looked at since the last search page.
        reward: of the purchase; None until then.
        bought: the product, with `chosen` options.
        num_ignored: actions that did nothing.
    """

    def __init__(self, shop: Shop, goal: Goal) -> None:
        self.shop, self.goal = shop, goal
        self.reward: Reward | None = None
        self.bought: Product | None = None
        self.num_ignored = 0
        self._go_to_search()

    def act(self, action: str) -> Page:
        """Do what `search[words]` or `click[name]` says; anything else does nothing. The page after it."""
        match = _ACTION.match(action)
        kind, argument = (match[1], match[2].lower()) if match else ("", "")
        if self.reward is not None:
            self.num_ignored += 1
        elif kind == "search":
            self._search(argument)
        elif kind == "click" and argument in self.page.clickables() and argument != "search":
            self._click(argument)
        else:
            self.num_ignored += 1
        return self.page

    def _go_to_search(self) -> None:
        self._words, self._number = "", 1
        self._product: Product | None = None
        self.chosen: dict[str, str] = {}
        self.visited: set[str] = set()
        self.page = pages.search_page(self.goal.instruction)

    def _search(self, words: str, number: int = 1) -> None:
        self._words, self._number, self._product, self.chosen = words, number, None, {}
        found = self.shop.search(words)
        shown = found[(number - 1) * pages.PAGE_SIZE : number * pages.PAGE_SIZE]
        self.page = pages.results_page(self.goal.instruction, shown, number, len(found))

    def _click(self, name: str) -> None:
        part, on = self.page.clickables()[name], self.page.kind
        # By name first: an option called "description" leads to the description.
        if name == pages.BUY.lower():
            self._buy()
        elif name == pages.BACK.lower():
            self._go_to_search()
        elif name == pages.NEXT.lower() and on == "results":
            self._search(self._words, self._number + 1)
        elif name == pages.PREVIOUS.lower() and on == "results":
            self._search(self._words, self._number - 1)
        elif name == pages.PREVIOUS.lower() and on == "item":
            self._search(self._words, self._number)
        elif name.title() in pages.DETAILS:
            self.page = pages.detail_page(self.goal.instruction, self._on_page(), name.title())
        else:
            if part.kind is PartKind.PRODUCT:
                self._product = self.shop.products[part.text]
                self.visited.add(part.text)
            elif part.kind is PartKind.OPTION:
                self.chosen[part.name] = name
            self._show_item()

    def _show_item(self) -> None:
        search = f"{self._words.replace(' ', '+')}/{self._number}"
        self.page = pages.item_page(
            self.goal.instruction,
            self._on_page(),
            self.chosen,
            search,
            show_attributes=self.shop.show_attributes,
        )

    def _buy(self) -> None:
        self.bought = self._on_page()
        price = self.shop.prices[self.bought.asin]
        self.reward = purchase_reward(
            self.bought, self.chosen, price, self.goal, self.shop.nouns, strict=self.shop.strict
        )
        self.page = pages.done_page()

    def _on_page(self) -> Product:
        assert self._product is not None  # pages on which this is asked are pages of a product
        return self._product
