"""Whatever a model writes, a visit goes on: nothing raises, and scores stay in range."""

from __future__ import annotations

import pytest

pytest.importorskip("nltk")
pytest.importorskip("thefuzz")

from hypothesis import given, settings
from hypothesis import strategies as st

from scgrpo.tasks.webshop import WebShopTask
from scgrpo.tasks.webshop.analysis import STOP_WORDS, terms, tokens
from scgrpo.tasks.webshop.prompts import admissible_actions, parse_action
from scgrpo.tasks.webshop.ranking import SearchIndex

TASK = WebShopTask(catalogue="mini", max_steps=15)
ROWS = [*TASK.rows("train"), *TASK.rows("eval")]


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_any_conversation_ends_with_a_verdict(data: st.DataObject) -> None:
    row = data.draw(st.sampled_from(ROWS))
    world = TASK.environment(row)
    done = False
    while not done:
        before, invalid = world.visit.page, world.num_invalid
        allowed = admissible_actions(before)
        action = data.draw(
            st.one_of(
                st.sampled_from(allowed).map(lambda a: f"<action>{a}</action>"),
                st.sampled_from(["search[kettle]", "search[kettle] click[x]", "click[buy now]"]).map(
                    lambda a: f"<think></think><action>{a}</action>"
                ),
                st.text(max_size=30),
                st.text(max_size=30).map(lambda a: f"<action>{a}</action>"),
            )
        )
        observation, done = world.step(action)
        if world.num_invalid > invalid:
            assert world.visit.page == before
            assert parse_action(action) not in allowed
        assert observation.startswith("Page: ")
        assert observation.endswith("]")
    verdict = world.verdict()
    assert 0.0 <= verdict.score <= 1.0
    assert verdict.status == "graded"
    assert world.num_steps <= 15


@given(st.text(max_size=60))
@settings(deadline=None)
def test_tokens_are_parts_of_the_text_in_order(text: str) -> None:
    position = 0
    for token in tokens(text):
        position = text.index(token, position) + len(token)
    assert all((term and term not in STOP_WORDS) or len(term) < 4 for term in terms(text))


@given(
    st.lists(
        st.lists(st.sampled_from(["red", "blue", "hat", "shoe", "kettle", "lamp"]), max_size=6),
        min_size=1,
        max_size=8,
    )
)
@settings(deadline=None)
def test_search_finds_exactly_what_has_a_word_in_descending_order(documents: list[list[str]]) -> None:
    names = [f"d{number}" for number in range(len(documents))]
    index = SearchIndex(names, [" ".join(words) for words in documents])
    found = index.scores("red kettle", limit=len(names))
    assert {name for name, _ in found} == {
        name for name, words in zip(names, documents, strict=True) if {"red", "kettle"} & set(words)
    }
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    for k in range(1, len(found)):
        assert index.scores("red kettle", limit=k) == found[:k]
