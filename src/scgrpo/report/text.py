"""Numbers and tokens as a reader sees them."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

NOTHING = "–"
TOKEN_CLASSES = ("words", "digits", "other", "whitespace", "special")
_MARKS = {"\n": "⏎", " ": "␣", "\t": "⇥", "\r": "␍"}


def number(value: Any, digits: int = 3) -> str:
    """A number with few significant digits; a dash for what is missing or not finite."""
    if value is None or isinstance(value, str):
        return value or NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not math.isfinite(value):
        return NOTHING
    if isinstance(value, int) or abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def estimate(record: Any) -> str:
    """`value [low, high]` of an estimate with its 95 % interval."""
    if not isinstance(record, dict) or record.get("value") is None:
        return NOTHING
    low, high = record.get("low"), record.get("high")
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{record['value']:.3f}{interval}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit a person would use."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 120:
        return f"{number(float(seconds))} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def shorten(name: str, longest: int = 34) -> str:
    """A name short enough for a picture: its middle left out."""
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


def visible(text: str) -> str:
    """Text in which spaces, line ends and characters without a shape of their own can be seen.

    Direction marks and the like become their code point: they could rearrange the page around them.
    """
    return "".join(_MARKS.get(char) or _shown(char) for char in text) or "∅"


def harmless(text: str) -> str:
    """Running text as it is, except for characters without a shape of their own."""
    return "".join(char if char in _MARKS else _shown(char) for char in text)


def token_class(text: str, is_special: bool) -> str:
    """One of TOKEN_CLASSES: words have a letter, digits a digit and no letter."""
    if is_special:
        return "special"
    if not text.strip():
        return "whitespace"
    if any(char.isalpha() for char in text):
        return "words"
    return "digits" if any(char.isdigit() for char in text) else "other"


def _shown(char: str) -> str:
    shapeless = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    return f"⟨U+{ord(char):04X}⟩" if shapeless else char
