"""The shop's pages as text.

The original renders HTML and takes the visible text out again; these pages are that text, made directly. What is left
of the detour is the white space: text of white space alone counts, unless it has a line break.

A page is a list of parts in reading order. What can be clicked are its buttons, then the products it links to, then
the options; names in lower case.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

from scgrpo.tasks.webshop.catalogue import Product

PageKind = Literal["search", "results", "item", "detail", "done"]
ObservationMode = Literal["text", "text_rich"]

SEPARATOR = " [SEP] "
BUY, NEXT, BACK = "Buy Now", "Next >", "Back to Search"
PREVIOUS = "< Prev"
DETAILS = ("Description", "Features", "Reviews", "Attributes")
# Products on a page of results.
PAGE_SIZE = 10

_WHITE = " \t\n\f\r"


class PartKind(StrEnum):
    TEXT = "text"
    BUTTON = "button"
    PRODUCT = "product"
    OPTION = "option"


class Part(NamedTuple):
    """A piece of text; `name` is the option that a value belongs to."""

    text: str
    kind: PartKind = PartKind.TEXT
    name: str = ""


@dataclass(frozen=True)
class Page:
    """What a customer sees.

    Attributes:
        address: the end of the page's address, in which the rich text looks up what has been chosen.
    """

    kind: PageKind
    parts: tuple[Part, ...]
    address: str = ""

    def text(self) -> str:
        """Observation mode `text`."""
        return SEPARATOR.join(self.texts())

    def texts(self) -> list[str]:
        """The visible parts, without white space around them."""
        return [part.text.strip() for part in self._visible()]

    def rich_text(self, visited: Collection[str]) -> str:
        """Observation mode `text_rich`: a part per line, with marks around what can be or has been clicked.

        Args:
            visited: names (asin) of products looked at since the last search page.
        """
        lines, chosen = [], ""
        for text, kind, _ in self._visible():
            if kind is PartKind.BUTTON:
                lines.append(f"[button] {text} [button_]")
            elif kind is PartKind.OPTION and f'"{text}"' in self.address:
                lines.append(f"  [clicked button] {text} [clicked button_]")
                chosen = f"You have clicked {text}.\n{chosen}"
            elif kind is PartKind.OPTION:
                lines.append(f"  [button] {text} [button_]")
            elif kind is PartKind.PRODUCT and text in visited:
                lines.append(f"\n[clicked button] {text} [clicked button_]")
            elif kind is PartKind.PRODUCT:
                lines.append(f"\n[button] {text} [button_]")
            else:
                lines.append(text)
        return chosen + "".join(f"{line}\n" for line in lines)

    def clickables(self) -> dict[str, Part]:
        """What can be clicked, by name. Where an option has another's name, or a button's, the last one counts."""
        found = {}
        for kinds in ((PartKind.BUTTON,), (PartKind.PRODUCT,), (PartKind.OPTION,)):
            for part in self.parts:
                if part.kind in kinds:
                    found[part.text if part.kind is PartKind.OPTION else part.text.lower()] = part
        return found

    def _visible(self) -> Iterator[Part]:
        for part in self.parts:
            if part.text.strip(_WHITE):
                yield part
            elif part.text and "\n" not in part.text:
                yield part._replace(text=" ")


def search_page(instruction: str) -> Page:
    parts = (Part("WebShop"), Part("Instruction: "), Part(instruction), _button("Search"))
    return Page("search", parts)


def results_page(instruction: str, products: Sequence[Product], number: int, total: int) -> Page:
    """One page of results.

    Args:
        products: those of this page.
        number: of the page, from 1.
        total: of products found.
    """
    parts = [*_head(instruction), Part(f"Page {number} (Total results: {total})")]
    parts += [_button(PREVIOUS)] * (number > 1) + [_button(NEXT)]
    for product in products:
        parts += [Part(product.asin, PartKind.PRODUCT), Part(product.title), Part(product.price_tag)]
    return Page("results", tuple(parts))


def item_page(
    instruction: str, product: Product, chosen: Mapping[str, str], search: str, *, show_attributes: bool
) -> Page:
    """A product's page.

    Args:
        chosen: option name -> value.
        search: words and page number as they are in the address.
    """
    parts = [*_head(instruction), _button(PREVIOUS)]
    for name, values in product.options.items():
        parts.append(Part(name))
        parts += [Part(value, PartKind.OPTION, name) for value in values]
    parts += [Part(product.title), Part(f"Price: {product.price_tag}"), Part("Rating: N.A.")]
    parts += [_button(detail) for detail in DETAILS if show_attributes or detail != "Attributes"]
    return Page("item", (*parts, _button(BUY)), f"{product.asin}/{search}/{json.dumps(dict(chosen))}")


def detail_page(instruction: str, product: Product, detail: str) -> Page:
    """A product's description, features, (always missing) reviews or attributes."""
    shown: dict[str, tuple[str, ...]] = {
        "Description": (product.description,),
        "Features": tuple(f" {bullet}" for bullet in product.bullets),
        "Reviews": (),
        "Attributes": (
            *(f" {attribute}" for attribute in product.attributes),
            product.category,
            product.query,
            product.product_category,
        ),
    }
    return Page("detail", (*_head(instruction), _button(PREVIOUS), *map(Part, shown[detail])))


def done_page() -> Page:
    return Page("done", (Part("Thank you for shopping with us!"),))


def _head(instruction: str) -> tuple[Part, ...]:
    return Part("Instruction:"), Part(instruction), _button(BACK)


def _button(text: str) -> Part:
    return Part(text, PartKind.BUTTON)
