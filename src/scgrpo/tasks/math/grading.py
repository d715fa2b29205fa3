"""Algebraic comparison of answers with math-verify. Imported by the workers of a `VerifierPool` only."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import re
from typing import Any

from math_verify import parse, verify
from math_verify.errors import TimeoutException
from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

logging.getLogger("math_verify").setLevel(logging.ERROR)
logging.getLogger("latex2sympy2_extended").setLevel(logging.ERROR)

# All of a box is the answer. Where it cannot be read, the default is to look for a number or fraction anywhere in it:
# `\\frac{1}{3} E_{1}+\\frac{2}{3} E_{2}` would be 2/3.
_WHOLE = (LatexExtractionConfig(try_extract_without_anchor=False),)
_ANYWHERE = (LatexExtractionConfig(), ExprExtractionConfig())
_SCIENTIFIC = re.compile(r"(?<![\w.^\\])([-+]?(?:\d+\.?\d*|\.\d+))[eE]([-+]?\d{1,4})(?![\w.^])")
# Numbers are compared by absolute differences: below this, 1.6e-19 would equal 3e-25. There, three digits count.
_SMALL, _DIGITS = 1e-3, 1e-3


def grade(answer: str, gold: str, timeout_s: int) -> float:
    r"""1.0 if the answer equals the reference, else 0.0.

    The reference is put into `\boxed{}`: bare LaTeX would often not be recognised as such. Both are read with
    math-verify, a box as one LaTeX expression or else as its text, other answers with its default configuration
    (LaTeX and plain expressions). `2e5` is read both ways, with Euler's number and as a power of ten.

    Args:
        timeout_s: whole seconds for each parse and each comparison (SIGALRM: main thread only).

    Raises:
        TimeoutError: a parse or a comparison took longer, and no other reading of the answer is equal.
        ValueError: the reference cannot be read.
        Exception: whatever a comparison raised, if no other reading of the answer is equal.
    """
    golds = _parse_gold(gold, timeout_s)
    if not golds:
        raise ValueError(f"the reference answer {gold[:80]!r} cannot be read")
    failure: BaseException | None = None
    # Both sides are lists of readings of the same text (an expression and, behind it, the string).
    for expected, given in itertools.product(golds, _parse(answer, timeout_s)):
        try:
            equal = verify(expected, given, timeout_seconds=timeout_s, raise_on_error=True)
            if equal and _alike_if_small(expected, given):
                return 1.0
        except TimeoutException:
            failure = TimeoutError(f"comparing took longer than {timeout_s} s")
        except Exception as error:  # noqa: BLE001 (sympy raises many kinds; the pool makes a verdict of it)
            failure = failure or error
    if failure is not None:
        raise failure
    return 0.0


@functools.lru_cache(maxsize=256)
def _parse_gold(gold: str, timeout_s: int) -> list[Any]:
    return _parse(f"\\boxed{{{gold}}}", timeout_s)


def _parse(text: str, timeout_s: int) -> list[Any]:
    """Readings of a text."""
    powers = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    try:
        return [reading for form in dict.fromkeys((text, powers)) for reading in _readings(form, timeout_s)]
    except TimeoutException as error:
        raise TimeoutError(f"reading the answer took longer than {timeout_s} s") from error


def _readings(text: str, timeout_s: int) -> list[Any]:
    config = _WHOLE if text.startswith(("\\boxed{", "$\\boxed{")) else _ANYWHERE
    return parse(text, extraction_config=config, parsing_timeout=timeout_s, raise_on_error=True)


def _alike_if_small(expected: Any, given: Any) -> bool:
    if not (getattr(expected, "is_number", False) and getattr(given, "is_number", False)):
        return True
    try:
        sizes = float(expected.evalf()), float(given.evalf())
    except (TypeError, ValueError, ArithmeticError):  # complex, infinite
        return True
    return max(map(abs, sizes)) >= _SMALL or math.isclose(*sizes, rel_tol=_DIGITS)


# The first comparison loads parsers and tables: pay for it here, before deadlines count.
grade(r"\boxed{\frac{1}{2}x}", "x/2", timeout_s=60)
