"""Final answers of completions, and the comparisons that need no algebra. Pure text, nothing heavy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

TAIL_CHARS = 500  # of a completion that marks no answer
MAX_ANSWER_CHARS = 1000  # what is longer is no final answer; the longest reference of MATH-500 has 53
_SEARCHED_CHARS = 50_000  # a box further from the end than this is not the final one
_MAX_GOLD_WORDS = 15  # a reference with more is a worked solution; the longest of OlympiadBench's has 12
_MAX_BOXES = 6  # as many as the algebraic comparison joins into one answer
_BRACES = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|\\[{}]|[{}]")
_EMPTY_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{\s*\}")  # the instruction, repeated; never an answer
_BARE_BOX = re.compile(r"\\boxed\s*([^\s{}$]+)")  # MATH has a few `\boxed 5$`
_LAYOUT = re.compile(r"[\s$.}]|\\[()\[\],;:! ]|\\q?quad|\\text\s*\{")
_ANSWER_LINE = re.compile(r"(?:answer[\s*]*[:：]|####)[\s*]*([^\n]+)", re.IGNORECASE)  # DAPO-Math's and GSM8K's form
_PROSE = re.compile(
    r"(?<![\\A-Za-z])[A-Za-z]{2,}.*?[^\\A-Za-z][A-Za-z]{2,}|\$|\\[(\[]"
)  # two words, or a formula's ends
_FORMULA = re.compile(r"(\$\$?)([^$]*)\1\.?", re.DOTALL)
_INTEGER = re.compile(r"([-+]?)([1-9]\d{0,2}(?:,\d{3})+|\d+)")  # 0,111 is no integer
_SPACE = r"(?:\\[,:; ]|[~ \u00a0\u2009\u202f])"
_SPACED_NUMBER = re.compile(rf"[-+\u2212]?[1-9]\d{{0,2}}(?:{_SPACE}\d{{3}})+(?:\.\d+)?")  # 1\,000 or 1 000
_DRESS = re.compile(  # in front of an answer
    r"(?:(?:\\(?:approx|implies|Rightarrow|therefore|to|large|Large|bf|rm)(?![A-Za-z])|[=≈€£₹¥])\s*)+"
)
_BASED = re.compile(r"0*(\d+)_\{?(\d+)\}?")  # 101_2: algebra drops the base
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


class FinalAnswer(NamedTuple):
    """The part of a completion that is graded.

    Attributes:
        text: what the algebraic comparison reads: the last box (all of `a, b and c` if boxes are joined like that);
            without one what is marked as the answer, in a box unless it is a sentence; else the last characters.
        short: the bare answer where one is marked: the content of the last box, or what follows `Answer:` or `####`.
    """

    text: str
    short: str | None


class _Box(NamedTuple):
    """Positions in the text; the content is `text[content : end - 1]`."""

    start: int
    content: int
    end: int


def final_answer(completion: str) -> FinalAnswer:
    """The answer a completion ends with. What stands before a closing `</think>` is not looked at."""
    text = _EMPTY_BOX.sub("", completion[-_SEARCHED_CHARS:].rpartition("</think>")[2])
    boxes = _joined_boxes(text)
    if len(boxes) == 1:
        return FinalAnswer(f"\\boxed{{{boxes[0]}}}", boxes[0])
    if boxes:  # "540 or 541" is one answer of two parts, not the last of them
        return FinalAnswer(" and ".join(f"$\\boxed{{{box}}}$" for box in boxes), None)
    tail = text[-TAIL_CHARS:]
    marked = list(_ANSWER_LINE.finditer(tail))
    if not marked:
        return FinalAnswer(tail, None)
    bare = _plain(marked[-1][1])
    is_prose = _PROSE.search(bare) is not None
    return FinalAnswer(tail[marked[-1].start() :] if is_prose else f"Answer: \\boxed{{{bare}}}", marked[-1][1])


def clean_gold(value: object) -> str:
    r"""The reference answer in a data set's column: what follows `####` (GSM8K) or stands in the last `\boxed{}`
    (MATH; in all of those joined like `a, b and c`), else the value itself, or the only element of a list
    (OlympiadBench); without `$` around it, integers without commas or spaces, whole floats without `.0`.

    Raises:
        ValueError: there is no answer, there are several, or what is there is no answer: NaN, a dict, a text.
    """
    if isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise ValueError(f"{len(value)} answers, not one")
        value = value[0]
    if isinstance(value, (Mapping, list, tuple, bytes)):
        raise ValueError(f"a {type(value).__name__}, not an answer")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("no answer")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None else str(value)
    boxes = [] if "####" in text else _joined_boxes(text) or _BARE_BOX.findall(text)[-1:]
    text = ", ".join(boxes) if boxes else text.rpartition("####")[2].strip()
    formula = _FORMULA.fullmatch(text)
    text = _undressed(text if formula is None else formula[2].strip())
    if not _plain(text) or (not boxes and _EMPTY_BOX.search(text)):
        raise ValueError("no answer")
    if len(text) > TAIL_CHARS or len(_WORD.findall(text)) > _MAX_GOLD_WORDS:
        raise ValueError(f"a text of {len(text)} characters, but no \\boxed{{}} or #### that marks its answer")
    return _integer(text) or text


def text_score(answer: FinalAnswer, gold: str) -> float | None:
    """The score where text decides: `quick_score`, and 0.0 for an answer that is empty or longer than
    `MAX_ANSWER_CHARS`; None where algebra has to."""
    if not answer.text.strip():
        return 0.0
    score = None if answer.short is None else quick_score(answer.short, gold)
    return 0.0 if score is None and len(answer.text) > MAX_ANSWER_CHARS else score


def quick_score(answer: str, gold: str) -> float | None:
    """1.0 for equal strings or integers (thousands separators, leading zeros and currency signs aside), 0.0 for
    unequal integers, also with a base (`101_2`), or an empty answer, None where algebra has to decide."""
    plain, plain_gold = _plain(answer), _plain(gold)
    if not plain:
        return 0.0
    if plain == plain_gold:
        return 1.0
    based, gold_based = _BASED.fullmatch(plain), _BASED.fullmatch(plain_gold)
    if based is not None and gold_based is not None:
        return float(based.groups() == gold_based.groups())
    number, gold_number = _integer(plain), _integer(plain_gold)
    if number is None or gold_number is None:
        return None
    return float(number == gold_number)


def _plain(text: str) -> str:
    text = text.replace("{,}", ",").replace("\\!", "").replace("\\$", "").replace("\u2212", "-")
    return _undressed(text.strip(" \t\n$*").rstrip(" \t\n$*."))


def _undressed(text: str) -> str:
    """An answer without what algebra stumbles over: `\\approx` or a currency in front, a full stop behind, the sign
    `°`, spaces between thousands (`1 000` would be the product 0)."""
    text = text.strip()
    dress = _DRESS.match(text)
    text = text if dress is None else text[dress.end() :]
    bare = text.rstrip(".;, \t\n")
    text = (text if bare.endswith("\\") else bare).replace("°", "^\\circ")  # `\\,` is a space
    return re.sub(_SPACE, "", text) if _SPACED_NUMBER.fullmatch(text) else text


def _integer(text: str) -> str | None:
    """Canonical digits of an integer, compared as text: int() refuses very long ones."""
    match = _INTEGER.fullmatch(text)
    if match is None:
        return None
    digits = match[2].replace(",", "").lstrip("0") or "0"
    return f"-{digits}" if match[1] == "-" and digits != "0" else digits


def _joined_boxes(text: str) -> list[str]:
    """Contents of the last box and of those before it that are joined to it by a comma, `and` or `or`."""
    boxes = [box for box in _boxes(text) if text[box.content : box.end - 1].strip()]
    first = len(boxes) - 1
    while first > 0 and len(boxes) - first < _MAX_BOXES:
        gap = _LAYOUT.sub("", text[boxes[first - 1].end : boxes[first].start])
        if gap not in (",", "and", "or", ",and", ",or"):
            break
        first -= 1
    return [_content(text, box) for box in boxes[max(first, 0) :]]


def _content(text: str, box: _Box) -> str:
    return _undressed(text[box.content : box.end - 1])


def _boxes(text: str) -> list[_Box]:
    """Complete boxes by position, in one pass: hostile nesting must not cost the parent process more."""
    boxes: list[_Box] = []
    opened: list[tuple[bool, int, int]] = []
    for token in _BRACES.finditer(text):
        if len(token[0]) > 2:
            opened.append((True, token.start(), token.end()))
        elif token[0] == "{":
            opened.append((False, 0, 0))
        elif token[0] == "}" and opened:
            is_box, start, content = opened.pop()
            if is_box:
                boxes.append(_Box(start, content, token.end()))
    return sorted(boxes)
