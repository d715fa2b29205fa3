"""Words as Lucene's English analysis makes them: the terms of a text, for `ranking`.

    text -> word breaks (UAX #29) -> drop 's -> lower case -> drop 33 stop words -> Porter's stemmer

This is what Anserini's default index and queries go through, hence the search engine of the original WebShop. Where
the rules leave room, what the real index does decides: test_webshop_conformance compares rankings.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

from scgrpo.errors import MissingExtraError

_STOP = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
    "this to was will with"
)
STOP_WORDS = frozenset(_STOP.split())
# Lucene cuts longer words into pieces of this length.
MAX_TOKEN_LENGTH = 255

# Extended_Pictographic as of Unicode 12.1: Lucene's tokenizer makes tokens of these, and later versions of Unicode
# have fewer of them, so the property of the `regex` package would not do.
_PICTOGRAPHS = (
    "©®‼⁉™ℹ↔-↙↩-↪⌚-⌛⌨⎈⏏⏩-⏳⏸-⏺Ⓜ▪-▫▶◀◻-◾☀-★☇-☒☔-⚅⚐-✅✈-✒✔✖✝✡✨✳-✴❄❇❌❎❓-❕❗❣-❧➕-➗➡➰➿⤴-⤵⬅-⬇⬛-⬜⭐⭕〰〽㊗㊙"
    "\U0001f000-\U0001f0ff\U0001f10d-\U0001f10f\U0001f12f\U0001f16c-\U0001f171\U0001f17e-\U0001f17f\U0001f18e"
    "\U0001f191-\U0001f19a\U0001f1ad-\U0001f1e5\U0001f201-\U0001f20f\U0001f21a\U0001f22f\U0001f232-\U0001f23a"
    "\U0001f23c-\U0001f23f\U0001f249-\U0001f3fa\U0001f400-\U0001f53d\U0001f546-\U0001f64f\U0001f680-\U0001f6ff"
    "\U0001f774-\U0001f77f\U0001f7d5-\U0001f7ff\U0001f80c-\U0001f80f\U0001f848-\U0001f84f\U0001f85a-\U0001f85f"
    "\U0001f888-\U0001f88f\U0001f8ae-\U0001f8ff\U0001f90c-\U0001f93a\U0001f93c-\U0001f945\U0001f947-\U0001fffd"
)


@cache
def _token_pattern() -> Any:
    """What Lucene's StandardTokenizer calls a token, as one regular expression.

    Names are those of UAX #29. Quantifiers are possessive: nothing after a word can make it shorter.
    """
    regex = _package("regex")
    tail = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*+"
    letter = rf"[\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}]{tail}"
    number = rf"\p{{WB=Numeric}}{tail}"
    katakana = rf"\p{{WB=Katakana}}{tail}"
    link = rf"\p{{WB=ExtendNumLet}}{tail}"
    # The colon is a MidLetter in Unicode 9, which Lucene follows; it may not stay one.
    mid_letter = rf"[:\p{{WB=MidLetter}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}]{tail}"
    mid_number = rf"[\p{{WB=MidNum}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}]{tail}"
    letters = rf"{letter}(?:(?:{mid_letter}|(?:{link})*+){letter})*+"
    numbers = rf"{number}(?:(?:{mid_number}|(?:{link})*+){number})*+"
    piece = rf"(?:{katakana}(?:(?:{link})*+{katakana})*+|(?:{numbers}|{letters})++)"
    word = rf"(?:{link})*+{piece}(?:(?:{link})++{piece})*+(?:{link})*+"
    pictograph = rf"[{_PICTOGRAPHS}]\p{{WB=Extend}}*+"
    alternatives = (
        rf"[0-9#*]\uFE0F?\u20E3{tail}",  # a key cap
        rf"(?:\p{{WB=Regional_Indicator}}{tail}){{2}}",  # a flag
        rf"{pictograph}(?:\u200D{pictograph})*+",
        word,
        rf"(?:\p{{LB=SA}}{tail})++",  # Thai and its neighbours, not split
        rf"[\p{{Script=Han}}\p{{Script=Hiragana}}]{tail}",
    )
    return regex.compile("|".join(alternatives), regex.V1)


def tokens(text: str) -> list[str]:
    """Words of a text in order, as written."""
    found: list[str] = []
    for match in _token_pattern().finditer(text):
        word = match.group()
        found += [word[start : start + MAX_TOKEN_LENGTH] for start in range(0, len(word), MAX_TOKEN_LENGTH)]
    return found


def terms(text: str) -> list[str]:
    """Index terms of a text, in order, with repetitions.

    Raises:
        MissingExtraError: regex or nltk is not installed.
    """
    return [term for token in tokens(text) if (term := _term(token))]


@lru_cache(maxsize=1 << 18)
def _term(token: str) -> str:
    """The term of a word; empty for a stop word."""
    if token[-1] in "sS" and token[-2:-1] in ("'", "’", "＇"):
        token = token[:-2]
    word = _lowered(token)
    return "" if word in STOP_WORDS else str(_stemmer().stem(word, to_lowercase=False))


def _lowered(word: str) -> str:
    """As Java does, character by character: a capital sigma has one small form, and no letter becomes two."""
    return word.lower() if word.isascii() else "".join(c.lower()[:1] for c in word)


@cache
def _stemmer() -> Any:
    # Lucene's PorterStemFilter is Martin Porter's own program, which departs from his paper; Snowball's "porter" does
    # not (us -> u).
    porter = _package("nltk.stem.porter").PorterStemmer
    return porter(mode=porter.MARTIN_EXTENSIONS)


def _package(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"WebShop's search needs the package {name.split('.')[0]}, which is not installed.",
            'Install it: pip install "scgrpo[webshop]".',
        ) from error
