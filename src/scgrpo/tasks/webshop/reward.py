"""The reward of a purchase, as in the original WebShop.

    reward = type * (attributes + options + [price <= limit]) / (num attributes + num options + 1)

where `attributes` and `options` count the wanted ones that the purchase has, by fuzzy comparison (thefuzz's token set
ratio above 85), and `type` in {0, 0.1, 0.5, 1} says how alike the two products are.

The original compares the options of a synthetic goal wrongly: not the wanted value, but the text of the pair, as in
`('size', 'standard')`, is compared with the chosen values, and of the chosen one only a colour's name, as in `tan`,
if it is in there somewhere. So buying exactly what was asked for is not always worth 1. `strict` says whether that
is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from scgrpo.errors import MissingExtraError
from scgrpo.tasks.webshop.catalogue import Product
from scgrpo.tasks.webshop.goals import Goal
from scgrpo.tasks.webshop.nouns import Nouns

_ALIKE = 85  # a ratio above this is a match

# Colours that the original knows, in its order, which decides where one is part of another or two are in one name.
_COLOURS = (
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel "
    "camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry "
    "cream crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey "
    "heather indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight "
    "mint mocha multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow "
    "red rose royal rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal "
    "tiger turquoise violet walnut wheat white wine yellow"
)
COLOURS = tuple(_COLOURS.split())


@dataclass(frozen=True)
class Reward:
    """A reward and what it is made of."""

    total: float
    type: float
    attributes: int
    num_attributes: int
    options: int
    num_options: int
    price_fits: bool

    def __str__(self) -> str:
        return (
            f"type {self.type:g}, attributes {self.attributes}/{self.num_attributes}, options "
            f"{self.options}/{self.num_options}, price {'fits' if self.price_fits else 'too high'}"
        )


def purchase_reward(
    product: Product, options: Mapping[str, str], price: float, goal: Goal, nouns: Nouns, *, strict: bool = True
) -> Reward:
    """The reward of buying a product with the chosen options (name -> value).

    Args:
        strict: as the original, mistakes included. Otherwise wanted values are compared with chosen ones, and equal
            ones match.
    """
    kind = type_score(product, goal.product, nouns)
    attributes = sum(_has_attribute(product, wanted) for wanted in goal.attributes)
    wanted = goal.options if strict else goal.option_values
    chosen = [_colour(value) for value in options.values()]
    matches = sum(_is_chosen(_colour(option), chosen, strict) for option in wanted)
    fits = price <= goal.price_limit
    share = (attributes + matches + fits) / (len(goal.attributes) + len(goal.options) + 1)
    return Reward(share * kind, kind, attributes, len(goal.attributes), matches, len(goal.options), fits)


def type_score(product: Product, wanted: Product, nouns: Nouns) -> float:
    """How alike two products are: 1 if they were found by the same search, share two departments, or more than a
    fifth of the wanted title's nouns; else 0.5. With less than a tenth of its nouns 0.1, without any 0."""
    found, sought = set(nouns(product.title)), nouns(wanted.title)
    shared = len(found & set(sought)) / len(sought) if sought else 0.2
    if shared == 0:
        return 0.0
    if shared < 0.1:
        return 0.1
    alike = product.query == wanted.query or len(_departments(product) & _departments(wanted)) >= 2
    return 1.0 if alike or shared > 0.2 else 0.5


def _departments(product: Product) -> set[str]:
    return {part.strip() for part in product.product_category.split("›")}


def _has_attribute(product: Product, wanted: str) -> bool:
    if any(_ratio(attribute, wanted) > _ALIKE for attribute in product.attributes):
        return True
    texts = (product.title, " ".join(product.bullets), product.description)
    return any(wanted in text.lower() for text in texts)


def _is_chosen(wanted: Any, chosen: Iterable[str], strict: bool) -> bool:
    return any(_ratio(value, wanted) > _ALIKE or (not strict and value == wanted) for value in chosen)


def _colour(option: Any) -> Any:
    """The first colour that is in a value (or equal to one part of a pair), else the option itself."""
    container: Collection[str] = option
    return next((colour for colour in COLOURS if colour in container), option)


def _ratio(text: str, wanted: Any) -> int:
    # thefuzz makes a text of whatever it is given, a pair too, and drops signs and accented letters.
    return int(token_set_ratio()(text, wanted))


@cache
def token_set_ratio() -> Callable[[Any, Any], int]:
    """thefuzz's: how much of the words of two texts is the same, in percent.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        from thefuzz import fuzz
    except ImportError as error:
        raise MissingExtraError(
            "WebShop's reward needs the package thefuzz, which is not installed.",
            'Install it: pip install "scgrpo[webshop]".',
        ) from error
    return fuzz.token_set_ratio
