"""When an output is the expected one.

`same_lines` is LiveCodeBench's rule: equal lines, or lines of equal numbers. `same_tokens` is that of open-r1's
Codeforces: white space is all alike and "yes" is "YES"; numbers are compared as numbers in both.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

_YES_NO = re.compile(r"\b(?:yes|no)\b", re.IGNORECASE)


def same_lines(output: str, expected: str) -> bool:
    """Equally many lines, after stripping the whole and each; each pair equal as text, or as lists of decimals."""
    lines, wanted = _stripped_lines(output), _stripped_lines(expected)
    return len(lines) == len(wanted) and all(map(_same_line, lines, wanted))


def same_tokens(output: str, expected: str) -> bool:
    """Equally many words; each pair equal as text (yes and no in any case), or as decimals."""
    words, wanted = _words(output), _words(expected)
    return len(words) == len(wanted) and all(
        a == b or _same_numbers([a], [b]) for a, b in zip(words, wanted, strict=True)
    )


COMPARISONS: dict[str, Callable[[str, str], bool]] = {"lines": same_lines, "tokens": same_tokens}


def _stripped_lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_line(line: str, wanted: str) -> bool:
    return line == wanted or _same_numbers(line.split(), wanted.split())


def _words(text: str) -> list[str]:
    return _YES_NO.sub(lambda found: found[0].upper(), text).split()


def _same_numbers(words: list[str], wanted: list[str]) -> bool:
    if len(words) != len(wanted):
        return False
    try:
        return [Decimal(word) for word in words] == [Decimal(word) for word in wanted]
    except (InvalidOperation, ValueError):  # not numbers; comparing a signalling NaN
        return False
