"""WebShop's search engine: the words of a text, and Lucene's ranking, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("nltk")
pytest.importorskip("regex")

from scgrpo.tasks.webshop.analysis import MAX_TOKEN_LENGTH, terms, tokens
from scgrpo.tasks.webshop.ranking import K1, B, SearchIndex, stored_length


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("it's 3.5-inch, e.g. a_b", ["it's", "3.5", "inch", "e.g", "a_b"]),
        ("frame description:solid fir", ["frame", "description:solid", "fir"]),  # a colon between letters is inside
        ("10:30 1,000 1;2", ["10", "30", "1,000", "1;2"]),
        ("size 8.5 us|9w", ["size", "8.5", "us", "9w"]),
        ("x' 'y", ["x", "y"]),
        ("★detailed★ ♬", ["★", "detailed", "★", "♬"]),
        ("日本 カタカナ 한국어", ["日", "本", "カタカナ", "한국어"]),
        ("café naïve", ["café", "naïve"]),
        ("🇩🇪🇫🇷 1️⃣ 👩\u200d💻", ["🇩🇪", "🇫🇷", "1️⃣", "👩\u200d💻"]),
        ("_ -- !", []),
        ("", []),
    ],
)
def test_word_breaks(text: str, wanted: list[str]) -> None:
    assert tokens(text) == wanted


def test_long_words_are_cut() -> None:
    assert [len(token) for token in tokens("a" * 600)] == [MAX_TOKEN_LENGTH, MAX_TOKEN_LENGTH, 90]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The Women's running SHOES", ["women", "run", "shoe"]),
        ("us assembly", ["us", "assembl"]),  # Snowball's English and the paper's Porter make "u", "assembli"
        ("with of and", []),
        ("ΣΑΣ", ["σασ"]),  # no final sigma
        ("James’s", ["jame"]),
    ],
)
def test_terms(text: str, wanted: list[str]) -> None:
    assert terms(text) == wanted


def test_stored_lengths() -> None:
    # From Lucene's table of norms: exact below 40, then steps of 2, 4, 8, ...
    assert [stored_length(n) for n in range(40)] == list(range(40))
    assert [stored_length(n) for n in (40, 41, 42, 43, 55, 56, 57, 59, 60)] == [40, 40, 42, 42, 54, 56, 56, 56, 60]
    assert [stored_length(n) for n in (87, 88, 95, 96, 1000)] == [84, 88, 88, 96, 984]


def test_scores_are_bm25() -> None:
    index = SearchIndex(["a", "b", "c", "d"], ["red shoe", "red red hat", "blue shoe shoe shoe", ""])
    # Three documents have words; nine words in all.
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))

    def part(tf: int, length: int) -> float:
        return idf * tf / (tf + K1 * (1 - B + B * length / 3))

    assert index.scores("red") == [
        ("b", pytest.approx(part(2, 3), rel=1e-6)),
        ("a", pytest.approx(part(1, 2), rel=1e-6)),
    ]
    found = dict(index.scores("shoe red"))
    assert found == pytest.approx(
        {"a": 2 * part(1, 2), "b": part(2, 3), "c": part(3, 4)},
        rel=1e-6,
    )
    # A word that is asked for twice counts twice.
    assert dict(index.scores("red red"))["a"] == pytest.approx(2 * part(1, 2), rel=1e-6)
    assert index.search("nothing of this") == []
    assert index.search("the of") == []


def test_equal_scores_are_in_order_of_names() -> None:
    names = [f"n{number:03d}" for number in np.random.default_rng(0).permutation(200)]
    index = SearchIndex(names, ["same words"] * 100 + ["same words too"] * 100)
    shorter = sorted(names[:100])
    assert index.search("words", 30) == shorter[:30]
    assert index.search("words", 120) == shorter + sorted(names[100:])[:20]
    assert index.search("words", 500) == shorter + sorted(names[100:])


def test_an_empty_index_finds_nothing() -> None:
    assert SearchIndex([], []).search("red") == []
    assert SearchIndex(["a"], [""]).search("red") == []
