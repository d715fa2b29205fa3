"""Nouns of a product's title: what two products' types are compared by.

The original asks a spaCy model (en_core_web_sm), which is not in the package index. `rules` takes every word that is
no number and no function word. The two differ in rewards of products other than the one in mind, and only where
query and departments differ too or hardly a word is shared: the right product has the same nouns either way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, get_args

from scgrpo.errors import ConfigError, MissingExtraError

Nouns = Callable[[str], list[str]]  # title -> its nouns in lower case, with repetitions
NounsName = Literal["rules", "spacy"]

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_NO_NOUN = (
    "a about above after all also am an and any are as at be because been before being below between both but by "
    "can could did do does down during each few for from had has have he her here his how i if in into is it its "
    "just me more most my no nor not now of off on once only or other our out over own per she should so some such "
    "than that the their them then there these they this those through to too under until up us very via was we "
    "were what when where which while who whom why will with without would you your new best great good perfect "
    "easy high low long short small large big little mini full extra super ultra soft hard heavy light slim thick "
    "thin wide deep fast quick multi double single dual adjustable portable wireless waterproof compatible natural "
    "organic durable comfortable casual fashionable elegant sexy cute funny vintage classic modern black white red "
    "blue green yellow brown grey gray pink purple orange beige x s m l xl xxl cm mm ft oz lb lbs ml kg inch inches "
    "pcs"
)
_NO_NOUNS = frozenset(_NO_NOUN.split())


def by_rules(title: str) -> list[str]:
    """Words of a title that are no numbers, function words, common adjectives or units."""
    return [word for word in _WORD.findall(title.lower()) if word not in _NO_NOUNS]


def get_nouns(name: NounsName, spacy_model: str = "en_core_web_sm") -> Nouns:
    """The extractor of this name.

    Raises:
        ConfigError: unknown name.
        MissingExtraError: spaCy, or its model, is not installed.
    """
    if name not in get_args(NounsName):
        raise ConfigError(f"Unknown nouns {name!r}.", f"Choose one of {', '.join(get_args(NounsName))}.")
    return by_rules if name == "rules" else _spacy_nouns(spacy_model)


def _spacy_nouns(model: str) -> Nouns:
    try:
        import spacy

        parse: Any = spacy.load(model)
    except (ImportError, OSError) as error:
        raise MissingExtraError(
            f"nouns: spacy needs spaCy and its model {model}: {error}.",
            f"Install them (pip install spacy; python -m spacy download {model}), or use nouns: rules.",
        ) from error

    @lru_cache(maxsize=100_000)
    def nouns(title: str) -> tuple[str, ...]:
        return tuple(token.text.lower() for token in parse(title) if token.pos_ in ("NOUN", "PROPN"))

    return lambda title: list(nouns(title))
