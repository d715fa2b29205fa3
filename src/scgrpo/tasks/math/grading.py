"""Algebraic comparison of answers with math-verify. Imported by the workers of a `VerifierPool` only."""

from __future__ import annotations

import functools
import itertools
import logging
from typing import Any

from math_verify import parse, verify
from math_verify.errors import TimeoutException

logging.getLogger("math_verify").setLevel(logging.ERROR)
logging.getLogger("latex2sympy2_extended").setLevel(logging.ERROR)


def grade(answer: str, gold: str, timeout_s: int) -> float:
    r"""1.0 if the answer equals the reference, else 0.0.

    The reference is put into `\boxed{}`: bare LaTeX would often not be recognised as such. Both are read with
    math-verify's default configuration (LaTeX and plain expressions).

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
            if verify(expected, given, timeout_seconds=timeout_s, raise_on_error=True):
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
    try:
        return parse(text, parsing_timeout=timeout_s, raise_on_error=True)
    except TimeoutException as error:
        raise TimeoutError(f"reading the answer took longer than {timeout_s} s") from error


# The first comparison loads parsers and tables: pay for it here, before deadlines count.
grade(r"\boxed{\frac{1}{2}x}", "x/2", timeout_s=60)
