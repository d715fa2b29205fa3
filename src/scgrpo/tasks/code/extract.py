"""The program in a model's answer, and what is put in front of it."""

from __future__ import annotations

import re

# An answer longer than this holds no solution: what lies before its end is not even looked at.
MAX_ANSWER_CHARACTERS = 1_000_000
_FENCE = "```"
_FUTURE = re.compile(r"^from __future__ import [^\n]*\n?", re.MULTILINE)

# Python refuses to print and read integers of more than 4300 digits; judges of contests do not.
LONG_INTEGERS = "import sys\nsys.set_int_max_str_digits(0)\n"
# LiveCodeBench grades programs as if they began with imports of these. The order counts: a later module overwrites
# names of earlier ones (pow of math and operator, open of io), and the builtins nearly all of them.
# fmt: off
_STAR_MODULES = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "builtins", "typing",
)
# fmt: on
LCB_PRELUDE = "".join(
    [
        *(f"from {module} import *\n" for module in _STAR_MODULES),
        *(f"import {module}\n" for module in _STAR_MODULES if module not in ("builtins", "typing")),
        LONG_INTEGERS,
        "sys.setrecursionlimit(50000)\n",
    ]
)


def last_block(answer: str) -> str:
    """The lines between the last two lines that hold a fence; "" if there are fewer than two.

    The rule of LiveCodeBench. Only the last `MAX_ANSWER_CHARACTERS` are looked at.
    """
    lines = answer[-MAX_ANSWER_CHARACTERS:].split("\n")
    fences = [index for index, line in enumerate(lines) if _FENCE in line]
    if len(fences) < 2:
        return ""
    return "\n".join(lines[fences[-2] + 1 : fences[-1]])


def with_preamble(preamble: str, code: str) -> str:
    """A program whose first lines are `preamble`; its imports from `__future__` stay at the top, as they must."""
    future = "".join(line.rstrip("\n") + "\n" for line in _FUTURE.findall(code))
    rest = _FUTURE.sub("", code) if future else code
    return "\n".join(part for part in (future, preamble, rest) if part)


def defines(code: str, name: str) -> bool:
    """Whether a top-level function or class of this name, or an assignment to it, is in the code."""
    escaped = re.escape(name)
    return re.search(rf"^(?:(?:async )?def|class) {escaped}\b|^{escaped}\s*[:=](?!=)", code, re.MULTILINE) is not None
