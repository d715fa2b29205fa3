"""The shop's products, from the files of the original WebShop (which the user downloads) or from the twelve made-up
ones in the box.

| catalogue | products | files in `data_dir` |
|---|---|---|
| `1k` | 1000 | `items_shuffle_1000.json` (or the search engine's documents of them), `items_ins_v2_1000.json` |
| `full` | 1.18 million | `items_shuffle.json` (or the documents), `items_ins_v2.json` |
| `mini` | 12 | none: invented, shipped with the package |

`items_human_ins.json` holds the instructions that people wrote, for either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from scgrpo.errors import ConfigError, DataError, MissingDataError
from scgrpo.tasks.webshop.reading import json_lines, json_list, json_object

CatalogueName = Literal["1k", "full", "mini"]

HUMAN_FILE = "items_human_ins.json"
_MINI = Path(__file__).parent / "mini"
_MAX_ASIN_LENGTH = 10
_PRICE_WITHOUT_ONE = 100.0


@dataclass(frozen=True)
class _Files:
    """Names of the files of a catalogue: products in either form, and their attributes."""

    items: str
    documents: tuple[str, ...]
    attributes: str
    setup: str


_FILES: dict[str, _Files] = {
    "1k": _Files(
        "items_shuffle_1000.json",
        ("products_1k_docs.jsonl", "resources_1k/documents.jsonl"),
        "items_ins_v2_1000.json",
        "setup.sh -d small",
    ),
    "full": _Files(
        "items_shuffle.json",
        ("products_docs.jsonl", "resources/documents.jsonl"),
        "items_ins_v2.json",
        "setup.sh -d all",
    ),
    "mini": _Files("items_shuffle_mini.json", (), "items_ins_v2_mini.json", ""),
}


@dataclass(frozen=True, slots=True)
class HumanInstruction:
    """What a person asked for: text, attributes and option values that the product has."""

    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """One product as the original's `load_products` makes it.

    Attributes:
        asin: its name, upper case.
        prices: one price, or the ends of a range, in dollars.
        price_tag: what the pages show.
        options: option name -> values, all lower case, in the order of the page.
        attributes: what it is said to be ("machine washable"); never shown on the standard pages.
        category, query, product_category: department, the search it was found by, path of departments ("A › B").
        instruction: the start of its synthetic instructions, None if it has none; with its attributes.
        human: instructions that people wrote for it.
    """

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    prices: tuple[float, ...]
    price_tag: str
    options: Mapping[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    category: str
    query: str
    product_category: str
    instruction: str | None = None
    instruction_attributes: tuple[str, ...] = ()
    human: tuple[HumanInstruction, ...] = field(default=())

    @property
    def contents(self) -> str:
        """What the search engine knows of it."""
        options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options.items())
        bullet = self.bullets[0] if self.bullets else ""
        return " ".join((self.title, self.description, bullet, options)).lower()


def load_catalogue(
    name: CatalogueName, data_dir: str | Path | None = None, num_products: int | None = None
) -> list[Product]:
    """Products in the order of their file, which decides the numbers of goals.

    Args:
        name: which catalogue.
        data_dir: folder with its files; not for `mini`.
        num_products: the first so many entries only, as the original's option of that name.

    Raises:
        ConfigError: unknown catalogue, or a folder where none is needed.
        DataError: no folder given, a missing file (says where to download it), or a malformed one (says where).
    """
    if name not in get_args(CatalogueName):
        raise ConfigError(f"Unknown catalogue {name!r}.", f"Choose one of {', '.join(get_args(CatalogueName))}.")
    if name == "mini":
        if data_dir is not None:
            raise ConfigError(
                "The catalogue `mini` is in the box, but a data_dir is given.", "Leave one of them out."
            )
        data_dir = _MINI
    files = _FILES[name]
    folder = _folder(data_dir, name)
    products_file = _first_file(folder, (files.items, *files.documents), name)
    attributes = json_object(_first_file(folder, (files.attributes,), name))
    human = json_object(folder / HUMAN_FILE) if (folder / HUMAN_FILE).is_file() else {}
    scraped = products_file.name == files.items
    read = json_list(products_file) if scraped else json_lines(products_file)
    make = _from_item if scraped else _from_document
    products = list(_products(read, make, attributes, human, products_file, num_products))
    if not products:
        raise DataError(f"{products_file} holds no products.", _download(name))
    return products


def _folder(data_dir: str | Path | None, name: str) -> Path:
    if data_dir is None:
        raise MissingDataError(
            f"The WebShop catalogue {name!r} needs data_dir, the folder of its files.", _download(name)
        )
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise MissingDataError(f"There is no folder {folder}.", _download(name))
    return folder


def _first_file(folder: Path, names: tuple[str, ...], catalogue: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise MissingDataError(f"{folder} has no {' or '.join(names)}.", _download(catalogue))


def _download(name: str) -> str:
    files = _FILES[name]
    return (
        f"Download {files.items} and {files.attributes} as the original does (github.com/princeton-nlp/WebShop, "
        f"`{files.setup}`; docs/benchmarks/webshop.md has the file ids and the licence), and set data_dir to their "
        "folder. To try WebShop without a download, set catalogue: mini."
    )


def _products(
    read: Iterable[Any],
    make: Callable[[Mapping[str, Any]], dict[str, Any]],
    attributes: Mapping[str, Any],
    human: Mapping[str, Any],
    path: Path,
    num_products: int | None,
) -> Iterator[Product]:
    seen: set[str] = set()
    for index, raw in enumerate(read):
        if num_products is not None and index >= num_products:
            return
        try:
            fields = make(raw)
            asin = fields["asin"]
            if asin == "nan" or len(asin) > _MAX_ASIN_LENGTH or asin in seen:
                continue
            seen.add(asin)
            found = attributes.get(asin, {})
            yield Product(
                **fields,
                attributes=tuple(found.get("attributes", ("DUMMY_ATTR",))),
                instruction=found.get("instruction"),
                instruction_attributes=tuple(found.get("instruction_attributes") or ()),
                human=_human(human.get(asin) or raw.get("product", raw).get("instructions") or ()),
            )
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise DataError(
                f"{path}, product {index}: not a WebShop product ({type(error).__name__}: {error}).",
                "Download the file again, or leave the product out.",
            ) from error


def _human(instructions: Iterable[Mapping[str, Any]]) -> tuple[HumanInstruction, ...]:
    return tuple(
        HumanInstruction(one["instruction"], tuple(one["instruction_attributes"]), tuple(one["instruction_options"]))
        for one in instructions
    )


def _from_document(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a product that the original had processed before it was indexed."""
    product = raw["product"]
    options = {name: tuple(values) for name, values in product["options"].items()}
    return _common(product, tuple(map(float, product["pricing"])), options)


def _from_item(product: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a product as scraped."""
    return _common(product, _prices(product.get("pricing")), _options(product["customization_options"]))


def _common(
    product: Mapping[str, Any], prices: tuple[float, ...], options: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    bullets, prices = product["small_description"], (prices or (_PRICE_WITHOUT_ONE,))[:2]
    return {
        "asin": str(product["asin"]),
        "title": _text(product["name"]),
        "description": _text(product["full_description"]),
        "bullets": tuple(map(_text, bullets)) if isinstance(bullets, list) else (_text(bullets),),
        "prices": prices,
        "price_tag": " to ".join(f"${price}" for price in prices),
        "options": options,
        "category": _text(product["category"]),
        "query": _text(product["query"]).lower().strip(),
        "product_category": _text(product["product_category"]),
    }


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _prices(pricing: str | None) -> tuple[float, ...]:
    """Numbers after dollar signs: of `$1,234.50 - $2,000` 1234.5 and 2000."""
    return tuple(float(re.sub(r"[^\d.]", "", part)) for part in (pricing or "").split("$")[1:])


def _options(customization: Any) -> dict[str, tuple[str, ...]]:
    if not customization:
        return {}
    return {
        name.lower(): tuple(_option_value(entry["value"]) for entry in entries)
        for name, entries in customization.items()
        if entries is not None
    }


def _option_value(value: str) -> str:
    # The original puts options into addresses, where a slash would end them.
    return value.strip().replace("/", " | ").lower()
