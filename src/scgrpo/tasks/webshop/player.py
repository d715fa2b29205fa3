"""A player who knows which product is meant: for demonstrations, and to see how much can be reached at all."""

from __future__ import annotations

import random
from collections.abc import Sequence

from scgrpo.tasks.webshop.goals import Goal
from scgrpo.tasks.webshop.pages import BUY, NEXT, PAGE_SIZE
from scgrpo.tasks.webshop.shop import Shop


def winning_actions(shop: Shop, goal: Goal, max_steps: int, rng: random.Random) -> list[str] | None:
    """Actions that buy the product in mind with the wanted options; None if they are more than `max_steps`.

    It searches for the instruction or for the title, whichever finds the product within the steps, drawn at random if
    both do, and chooses the options in random order.
    """
    choices = wanted_options(goal)
    room = max_steps - len(choices) - 2  # for the search and next pages
    ways = []
    for words in (goal.instruction, goal.product.title):
        query = _searchable(words)
        page = _page_of(shop, query, goal)
        if page is not None and page <= room:
            ways.append([f"search[{query}]", *[f"click[{NEXT.lower()}]"] * (page - 1)])
    if not ways:
        return None
    rng.shuffle(choices)
    way = rng.choice(ways)
    return [*way, *(f"click[{name}]" for name in (goal.product.asin.lower(), *choices, BUY.lower()))]


def wanted_options(goal: Goal) -> list[str]:
    """Values to click: of a synthetic goal its own; of one that a person wrote those values of the product."""
    on_sale = {value for values in goal.product.options.values() for value in values}
    return [value for value in goal.option_values if value in on_sale]


def transcript_actions(actions: Sequence[str], think_tag: str) -> list[str]:
    """Answers as a model would write them."""
    return [f"<{think_tag}>{_thought(action)}</{think_tag}><action>{action}</action>" for action in actions]


def _thought(action: str) -> str:
    if action.startswith("search["):
        return "I look for what is wanted."
    name = action.partition("[")[2].removesuffix("]")
    if name == NEXT.lower():
        return "What I look for is not on this page."
    return "All that is wanted is chosen." if name == BUY.lower() else f"{name} is what the task asks for."


def _searchable(words: str) -> str:
    # An action ends at its last bracket, and nothing may follow a line break.
    return " ".join(words.replace("[", " ").replace("]", " ").lower().split())


def _page_of(shop: Shop, query: str, goal: Goal) -> int | None:
    """Page of results, from 1, on which the product is."""
    found = [product.asin for product in shop.search(query)]
    return found.index(goal.product.asin) // PAGE_SIZE + 1 if goal.product.asin in found else None
