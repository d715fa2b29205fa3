"""Random walks through a shop, which ours and the original's must take alike.

`tests/fixtures/webshop/original_walks.json` has been recorded with the original engine (princeton-nlp/WebShop,
commit 64fa2a5) over the 1k catalogue, with our search engine (whose rankings another test compares with Lucene's),
our seeded prices, and the nouns below in place of spaCy's. It holds hashes, and nothing of the products.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

PRICE_SEED = 7
MAX_STEPS = 25
NUM_PAIRS = 20_000
NOT_ALLOWED = (
    "foo",
    "search[]",
    "click[search]",
    "search[a",
    "Search[x]",
    "search[a] click[b]",
    "click[buy now] ok",
    " click[buy now]",
    "click[nonsense]",
)


class Walker(Protocol):
    """A shop to walk through."""

    def start(self, goal: int) -> str: ...

    def clickables(self) -> list[str]: ...

    def act(self, action: str) -> tuple[str, float | None]:
        """Observation, and the reward after a purchase."""
        ...


def nouns(title: str) -> list[str]:
    return title.lower().split()


def walk_hashes(walker: Walker, queries: Sequence[Sequence[str]], num_walks: int, seed: int) -> list[str]:
    """A hash of all that is seen on each walk.

    Args:
        queries: for each goal, what may be searched for.
    """
    rng = random.Random(seed)
    return [_walk(walker, rng, queries) for _ in range(num_walks)]


def _walk(walker: Walker, rng: random.Random, queries: Sequence[Sequence[str]]) -> str:
    goal = rng.randrange(len(queries))
    seen = [walker.start(goal)]
    for _ in range(MAX_STEPS):
        names = walker.clickables()
        action = _action(rng, names, queries[goal])
        observation, reward = walker.act(action)
        seen += [repr(names), action]
        if reward is not None:
            seen.append(repr(reward))
            break
        seen.append(observation)
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:16]


def _action(rng: random.Random, names: Sequence[str], queries: Sequence[str]) -> str:
    kind = rng.random()
    if kind < 0.1:
        return rng.choice(NOT_ALLOWED)
    if names == ["search"] or kind < 0.15:
        return f"search[{rng.choice(queries)}]"
    if kind < 0.25 and "buy now" in names:
        return "click[buy now]"
    fixed = {"back to search", "description", "features", "reviews", "attributes", "next >", "< prev", "buy now"}
    others = [name for name in names if name not in fixed]
    return f"click[{rng.choice(others if others and kind < 0.8 else names)}]"


def reward_hash(
    goals: Sequence[Any], products: Sequence[Any], reward: Callable[[Any, Any, dict[str, str]], float]
) -> str:
    """A hash of the rewards of random purchases: a tenth of them of the product in mind.

    Args:
        goals, products: ours, in both cases.
        reward: product, goal, chosen options -> reward.
    """
    rng = random.Random(3)
    digest = hashlib.sha256()
    for _ in range(NUM_PAIRS):
        goal = rng.choice(goals)
        product = goal.product if rng.random() < 0.1 else rng.choice(products)
        options = {name: rng.choice(values) for name, values in product.options.items() if rng.random() < 0.7}
        digest.update(repr(float(reward(product, goal, options))).encode())
    return digest.hexdigest()[:16]


def queries_of(goal: Any) -> list[str]:
    """Of one of our goals."""
    title = goal.product.title
    return [
        title,
        goal.instruction,
        goal.product.query,
        " ".join(goal.attributes),
        title[:20],
        "zzzz",
        "THE of",
        "a  b",
    ]
