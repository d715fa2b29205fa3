"""The strict grader of DAPO: an `Answer:` line at the end, compared as text.

From the description in the DAPO paper (arXiv 2503.14476, rule-based reward) and of what its public evaluation and
verl (`math_dapo`) do; the normalisation is the one Minerva published (arXiv 2206.14858, appendix D.1). Differences:

1. Scores are 1 and 0, not 1 and -1: advantages of a group are the same.
2. A row without a reference answer is an error, not a comparison with nothing.
"""

from __future__ import annotations

import re

READ_CHARS = 300
NO_ANSWER = "[INVALID]"
_ANSWER = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)

# Applied one after the other: what an earlier one leaves is what a later one sees.
_REWRITTEN = (
    *(("an ", ""), ("a ", ""), (".$", "$"), ("\\$", ""), ("\\ ", ""), (" ", "")),
    *(("mbox", "text"), (",\\text{and}", ","), ("\\text{and}", ","), ("\\text{m}", "\\text{}")),
)
_UNITS = (
    *("square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", "\\ldots", "sue", "points"),
    *("feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges", "students"),
    *("childrentickets", "multiples"),
)
_NOISE = (
    *("\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}", "\\text{}", "\\mathrm{th}"),
    *("^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots"),
)
_WRAPPERS = tuple(re.compile(rf"\\{name}\{{(.*?)\}}") for name in ("text", "textbf", "overline"))
_BOX = re.compile(r"\\boxed\{(.*)\}")
_SHORT_FRACTION = re.compile(r"frac([^{])(.)")  # \frac12
_SHORT_ROOT = re.compile(r"sqrt([^{])")  # \sqrt2


def dapo_score(completion: str, gold: str) -> float:
    """1.0 if what follows the last `Answer:` in the last 300 characters is the reference as text, else 0.0.

    Both are normalised first (`normalised`). A completion without such a line is wrong, whatever it says.
    """
    return float(normalised(given_answer(completion)) == normalised(gold))


def given_answer(completion: str) -> str:
    """The rest of the line after the last `Answer:`, or `[INVALID]`."""
    found = _ANSWER.findall(completion[-READ_CHARS:])
    return found[-1] if found else NO_ANSWER


def normalised(answer: str) -> str:
    r"""An answer without what does not change it: what stands before the last `=`, articles, spaces, units, `\text`,
    `\boxed` and dollar signs around it, short forms such as `\frac12`, commas in integers."""
    text = answer.rpartition("=")[2]
    for old, new in (*_REWRITTEN, *((word, "") for word in (*_UNITS, *_NOISE))):
        text = text.replace(old, new)
    text = "\n".join(map(_formula, text.split("\n")))
    for wrapper in (*_WRAPPERS, _BOX):
        text = wrapper.sub(r"\1", text)
    text = _SHORT_FRACTION.sub(r"frac{\1}{\2}", text)
    text = _SHORT_ROOT.sub(r"sqrt{\1}", text).replace("$", "")
    digits = text.replace(",", "")
    return (digits if digits.isdigit() else text).strip()


def _formula(line: str) -> str:
    """The first formula of a line in its dollar signs, where there is one; else the line."""
    parts = line.split("$", 2)
    return f"${parts[1]}$" if len(parts) == 3 else line
