"""WebShop's catalogue, goals, pages, actions and reward, on a few products that were made up to be awkward."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nltk")
pytest.importorskip("thefuzz")

from scgrpo.errors import ConfigError, DataError, MissingExtraError
from scgrpo.tasks.webshop.catalogue import Product, load_catalogue
from scgrpo.tasks.webshop.goals import NO_LIMIT, Goal, draw_goals, draw_prices, split_goals
from scgrpo.tasks.webshop.nouns import by_rules, get_nouns
from scgrpo.tasks.webshop.reward import purchase_reward, type_score
from scgrpo.tasks.webshop.shop import Shop, Visit

FIXTURE = Path(__file__).parents[1] / "fixtures" / "webshop"


@pytest.fixture(scope="module")
def products() -> list[Product]:
    return load_catalogue("1k", FIXTURE)


def goals_of(
    products: Sequence[Product], kind: Any = "synthetic", seed: int = 0
) -> tuple[dict[str, float], list[Goal]]:
    rng = random.Random(seed)
    prices = draw_prices(products, rng)
    return prices, draw_goals(products, prices, kind, rng, 233)


@pytest.fixture(scope="module")
def shop(products: list[Product]) -> Shop:
    return Shop(products, goals_of(products)[0], by_rules)


def visit(shop: Shop, asin: str = "LAMP000001") -> Visit:
    goal = next(g for g in goals_of(list(shop.products.values()))[1] if g.product.asin == asin)
    return Visit(shop, goal)


def test_products_are_read_as_the_original_reads_them(products: list[Product]) -> None:
    # Repeated, nameless and overlong names are left out.
    assert [p.asin for p in products] == ["LAMP000001", "SOFA000001", "TWIN000002", "TWIN000001", "CORD000001"]
    lamp, sofa = products[:2]
    assert lamp.options == {"color": ("red", "black | white"), "trim": ("red", "description")}
    assert (lamp.prices, lamp.price_tag) == ((100.0,), "$100.0")
    assert (sofa.prices, sofa.price_tag) == ((1200.0, 1300.5), "$1200.0 to $1300.5")
    assert (lamp.query, lamp.bullets) == ("lamps", ("Stands by itself",))
    assert products[2].attributes == ()
    assert products[4].attributes == ("DUMMY_ATTR",)
    assert lamp.contents == (
        "  tall lamp of ash wood  stands by itself color: red, black | white, and trim: red, description"
    )
    assert len(load_catalogue("1k", FIXTURE, num_products=5)) == 2


def test_documents_of_the_search_engine_are_the_same_products(products: list[Product], tmp_path: Path) -> None:
    lines = []
    for p in products:
        product = {
            "asin": p.asin,
            "name": p.title,
            "full_description": p.description,
            "small_description": list(p.bullets),
            "pricing": list(p.prices),
            "options": {name: list(values) for name, values in p.options.items()},
            "category": p.category,
            "query": p.query,
            "product_category": p.product_category,
        }
        lines.append(json.dumps({"id": p.asin, "contents": p.contents, "product": product}))
    (tmp_path / "products_1k_docs.jsonl").write_text("\n".join(lines))
    for name in ("items_ins_v2_1000.json", "items_human_ins.json"):
        (tmp_path / name).write_bytes((FIXTURE / name).read_bytes())
    assert load_catalogue("1k", tmp_path) == products


def test_a_catalogue_that_is_not_there_says_what_to_download(tmp_path: Path) -> None:
    for name, folder, wanted in (
        ("1k", None, "data_dir"),
        ("1k", tmp_path / "none", "no folder"),
        ("1k", tmp_path, "items_shuffle_1000.json or products_1k_docs.jsonl"),
        ("full", tmp_path, "items_shuffle.json"),
    ):
        with pytest.raises(DataError, match=wanted) as caught:
            load_catalogue(name, folder)
        assert "github.com/princeton-nlp/WebShop" in caught.value.remedy
        assert "catalogue: mini" in caught.value.remedy
    (tmp_path / "items_shuffle_1000.json").write_text("[]")
    with pytest.raises(DataError, match=r"no items_ins_v2_1000\.json"):
        load_catalogue("1k", tmp_path)
    with pytest.raises(ConfigError, match="Unknown catalogue"):
        load_catalogue("2k", tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="in the box"):
        load_catalogue("mini", tmp_path)


@pytest.mark.parametrize(
    ("items", "wanted"),
    [
        ("{}", "does not hold a list"),
        ("", "does not hold a list"),
        ('[{"asin": "A"', "item 0: not JSON, or cut off"),
        ('[{"asin": "A"}]', "product 0: not a WebShop product .KeyError"),
        ("[1]", "item 0: not an object"),
        ("[]", "holds no products"),
        (
            '[{"asin": "A", "name": null, "full_description": "", "small_description": [], '
            '"customization_options": ""}]',
            "product 0",
        ),
    ],
)
def test_malformed_catalogues_are_named(items: str, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "items_shuffle_1000.json").write_text(items)
    (tmp_path / "items_ins_v2_1000.json").write_text("{}")
    with pytest.raises(DataError, match=wanted):
        load_catalogue("1k", tmp_path)
    (tmp_path / "items_ins_v2_1000.json").write_text("[]")
    with pytest.raises(DataError, match="does not hold an object"):
        load_catalogue("1k", tmp_path)


def test_a_list_longer_than_a_chunk_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scgrpo.tasks.webshop import reading

    monkeypatch.setattr(reading, "_CHUNK", 7)
    values = [{"n": n, "text": "] , é" * n} for n in range(30)]
    (tmp_path / "list.json").write_text(json.dumps(values, indent=2), encoding="utf-8")
    assert list(reading.json_list(tmp_path / "list.json")) == values


def test_synthetic_goals_are_all_combinations(products: list[Product]) -> None:
    prices, goals = goals_of(products)
    assert len(goals) == 4 + 1 + 2
    lamps = {goal.option_values: goal for goal in goals if goal.product.asin == "LAMP000001"}
    assert set(lamps) == {(c, t) for c in ("red", "black | white") for t in ("red", "description")}
    goal = lamps["red", "description"]
    assert goal.options == (("color", "red"), ("trim", "description"))
    assert goal.price_limit in (120.0, 130.0, 140.0)  # the larger of two of 110 to 140
    assert goal.instruction == (
        f"Find me solid wood lamps with color: red, and trim: description, and price lower than "
        f"{goal.price_limit:.2f} dollars"
    )
    assert len({lamp.price_limit for lamp in lamps.values()}) == 1, "one limit for a product"
    sofa = next(goal for goal in goals if goal.product.asin == "SOFA000001")
    assert (sofa.instruction, sofa.price_limit) == ("Find me sofas", NO_LIMIT)
    assert 1200.0 <= prices["SOFA000001"] <= 1300.5
    assert goals_of(products) == goals_of(products)
    assert goals_of(products)[0] != goals_of(products, seed=1)[0]


def test_human_goals(products: list[Product], tmp_path: Path) -> None:
    _, goals = goals_of(products, "human")
    assert [goal.options for goal in goals] == [("standard",)]  # the one without attributes is left out
    assert goals[0].instruction.startswith("A big mug, please, and price lower than ")
    with pytest.raises(DataError, match="human instruction") as caught:
        goals_of(products[:2], "human")
    assert "items_human_ins.json" in caught.value.remedy
    with pytest.raises(ConfigError, match="Unknown goals"):
        goals_of(products, "robot")


def test_splits() -> None:
    assert split_goals(6910, "verl-agent") == (range(500, 6910), range(500))
    assert split_goals(6910, "original") == (range(1500, 6910), range(500))
    assert split_goals(6910, "original-val") == (range(1500, 6910), range(500, 1500))
    assert split_goals(30, "verl-agent") == (range(8, 30), range(8))
    with pytest.raises(ConfigError, match="Unknown split"):
        split_goals(30, "mine")  # type: ignore[arg-type]


def test_pages_as_text(shop: Shop) -> None:
    way = visit(shop)
    instruction = way.goal.instruction
    assert way.page.text() == f"WebShop [SEP] Instruction: [SEP] {instruction} [SEP] Search"
    assert list(way.page.clickables()) == ["search"]
    head = f"Instruction: [SEP] {instruction} [SEP] Back to Search"
    assert way.act("search[Tall LAMP]").text() == (
        f"{head} [SEP] Page 1 (Total results: 1) [SEP] Next > [SEP] LAMP000001 [SEP] Tall Lamp of Ash Wood "
        "[SEP] $100.0"
    )
    assert way.act("click[lamp000001]").text() == (
        f"{head} [SEP] < Prev [SEP] color [SEP] red [SEP] black | white [SEP] trim [SEP] red [SEP] description [SEP] "
        "Tall Lamp of Ash Wood [SEP] Price: $100.0 [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews "
        "[SEP] Buy Now"
    )
    assert list(way.page.clickables())[:6] == [
        "back to search",
        "< prev",
        "description",
        "features",
        "reviews",
        "buy now",
    ]
    assert way.act("click[features]").text() == f"{head} [SEP] < Prev [SEP] Stands by itself"
    assert way.act("click[< prev]").text().endswith("Buy Now")
    # What is empty, or white with a line break, is not there; a blank is.
    way.act("search[sofa]")
    way.act("click[sofa000001]")
    assert way.act("click[description]").text() == f"{head} [SEP] < Prev"
    way.act("click[< prev]")
    assert way.act("click[features]").text() == f"{head} [SEP] < Prev [SEP]  [SEP] Oak legs"


def test_rich_text_marks_what_was_clicked(shop: Shop) -> None:
    way = visit(shop)
    assert "[button] Search [button_]\n" in way.page.rich_text(way.visited)
    assert "\n\n[button] LAMP000001 [button_]\n  Tall Lamp" in way.act("search[lamp]").rich_text(way.visited)
    way.act("click[lamp000001]")
    page = way.act("click[black | white]").rich_text(way.visited)
    assert page.startswith("You have clicked black | white.\nInstruction:\n")
    assert "  [clicked button] black | white [clicked button_]\n" in page
    assert "  [button] red [button_]\n" in page
    page = way.act("click[< prev]").rich_text(way.visited)
    assert "\n[clicked button] LAMP000001 [clicked button_]\n" in page
    assert way.chosen == {}


def test_attributes_are_shown_on_request(products: list[Product]) -> None:
    prices, _ = goals_of(products)
    way = visit(Shop(products, prices, by_rules, show_attributes=True))
    way.act("search[lamp]")
    assert "click[attributes]" not in way.act("click[lamp000001]").text()
    assert "attributes" in way.page.clickables()
    assert (
        way.act("click[attributes]")
        .text()
        .endswith("< Prev [SEP] solid wood [SEP] easy clean [SEP] garden [SEP] lamps [SEP] Home › Lighting › Lamps")
    )


@pytest.mark.parametrize(
    "action",
    [
        "",
        "buy",
        "search[]",
        "search",
        "click[]",
        "click[search]",
        "click[nothing]",
        "Click[search]",
        "x search[lamp] ",
        "search[la\nmp]",
        "click[buy now]",
    ],
)
def test_what_is_not_allowed_changes_nothing(shop: Shop, action: str) -> None:
    way = visit(shop)
    before = way.page
    assert way.act(action) == before
    assert way.num_ignored == 1
    way.act("search[lamp]")
    assert (way.page.kind, way.num_ignored) == ("results", 1)


def test_options_with_the_names_of_others(shop: Shop) -> None:
    way = visit(shop)
    way.act("search[lamp]")
    way.act("click[lamp000001]")
    way.act("click[red]")
    assert way.chosen == {"trim": "red"}, "the last option of this name counts"
    way.act("click[description]")
    assert way.page.kind == "detail", "a button's name comes first"
    # A value with brackets cannot be clicked: the action would be named `click[x-large `.
    way = visit(shop, "TWIN000001")
    way.act("search[mug]")
    way.act("click[twin000001]")
    assert "x-large [2 pack]" in way.page.clickables()
    way.act("click[x-large [2 pack]]")
    assert (way.chosen, way.num_ignored) == ({}, 1)


def test_pages_of_results() -> None:
    many = [
        Product(
            f"MANY{n:06d}",
            f"cup number {n}",
            "",
            ("",),
            (5.0,),
            "$5.0",
            {},
            ("handy",),
            "x",
            "cups",
            "A › B",
            "Find me cups",
            ("handy",),
        )
        for n in range(70)
    ]
    way = visit(Shop(many, dict.fromkeys((p.asin for p in many), 5.0), by_rules), "MANY000003")
    way.act("search[cup]")
    assert "Page 1 (Total results: 50)" in way.page.text()
    assert "< prev" not in way.page.clickables()
    for number in (2, 3, 4, 5, 6):
        way.act("click[next >]")
        assert f"Page {number} (Total results: 50)" in way.page.text()
        assert sum(name.startswith("many") for name in way.page.clickables()) == (10 if number < 6 else 0)
    way.act("click[< prev]")
    way.act("click[many000044]")
    assert "Page 5" in way.act("click[< prev]").text(), "back to the page it was found on"
    way.act("click[back to search]")
    assert way.page.kind == "search"


def test_back_doors_are_shut(shop: Shop) -> None:
    way = visit(shop)
    assert "Total results: 0" in way.act("search[<r>]").text()
    assert "Total results: 0" in way.act("search[<a> easy clean]").text(), "attributes are not in the index"
    assert "Total results: 1" in way.act("search[<q> lamp]").text()


def buy(shop: Shop, asin: str, *options: str) -> Visit:
    way = visit(shop, asin)
    for action in (f"search[{way.goal.product.title}]", f"click[{asin.lower()}]", *(f"click[{o}]" for o in options)):
        way.act(action)
    way.act("click[buy now]")
    return way


def test_a_purchase_ends_the_visit(shop: Shop) -> None:
    way = buy(shop, "SOFA000001")
    assert way.reward is not None
    assert way.reward.total == 1.0
    assert way.bought is shop.products["SOFA000001"]
    assert way.page.kind == "done"
    assert way.act("search[lamp]").kind == "done"
    assert way.num_ignored == 1


def reward(product: Product, wanted: Goal, *, strict: bool = True, price: float = 1.0, **options: str) -> Any:
    return purchase_reward(product, options, price, wanted, by_rules, strict=strict)


def test_rewards_by_hand(products: list[Product]) -> None:
    lamp, _, _, mug, cord = products
    goal = Goal(lamp, "", ("solid wood", "itself", "missing"), (("color", "red"),), 50.0)
    found = reward(lamp, goal, color="red")
    assert (found.type, found.attributes, found.options, found.price_fits) == (1.0, 2, 1, True)
    assert found.total == pytest.approx(4 / 5)
    assert reward(lamp, goal, price=51.0, color="red").total == pytest.approx(3 / 5)
    assert reward(lamp, goal).total == pytest.approx(3 / 5)
    assert reward(cord, goal).total == 0.0, "no word in common"
    assert str(found) == "type 1, attributes 2/3, options 1/1, price fits"
    assert type_score(mug, mug, by_rules) == 1.0


def test_types() -> None:
    def product(title: str, query: str = "q", departments: str = "A › B") -> Product:
        return Product("P", title, "", (), (1.0,), "", {}, (), "c", query, departments)

    wanted = product("one two three four five six seven eight nine ten eleven twelve")
    assert type_score(product("one"), wanted, str.split) == 0.1, "one of twelve nouns"
    assert type_score(product("one two"), wanted, str.split) == 1.0, "the same query"
    assert type_score(product("one two", "other", "A › B › C"), wanted, str.split) == 1.0, "two departments"
    assert type_score(product("one two", "other", "A › C"), wanted, str.split) == 0.5
    assert type_score(product("one two three", "other", "A › C"), wanted, str.split) == 1.0, "a quarter of the nouns"
    assert type_score(product("none", "q"), wanted, str.split) == 0.0
    assert type_score(product("none", "q"), product("", "q"), str.split) == 1.0, "a title without nouns"


def test_the_originals_mistake_with_options(products: list[Product]) -> None:
    mug = products[3]
    goal = Goal(mug, "", ("dishwasher safe",), (("size", "standard"),), 50.0)
    # "standard" has "tan" in it, and "tan" is not like "('size', 'standard')".
    assert reward(mug, goal, size="standard").total == pytest.approx(2 / 3)
    assert reward(mug, goal, strict=False, size="standard").total == 1.0
    # The name alone is enough where the pair contains it.
    assert reward(mug, goal, other="size").total == 1.0
    assert reward(mug, goal, strict=False, other="size").total == pytest.approx(2 / 3)
    # Nothing is left of accented letters in the comparison.
    foreign = Goal(mug, "", ("dishwasher safe",), (("é", "éß"),), 50.0)
    assert reward(mug, foreign, strict=False, é="éß").total == 1.0
    assert reward(mug, foreign, é="éß").total == pytest.approx(2 / 3)
    # A person's options are values, in either mode.
    human = Goal(mug, "", ("dishwasher safe",), ("standard",), 50.0)
    assert reward(mug, human, size="standard").total == 1.0


def test_nouns() -> None:
    assert by_rules("The 2 Red Lamps for Women's Rooms, 12 inch") == ["lamps", "women's", "rooms"]
    assert get_nouns("rules") is by_rules
    with pytest.raises(ConfigError, match="Unknown nouns"):
        get_nouns("verbs")  # type: ignore[arg-type]
    with pytest.raises(MissingExtraError, match="no_such_model"):
        get_nouns("spacy", "no_such_model")
