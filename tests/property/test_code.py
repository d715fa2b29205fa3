"""Comparison, decoding and halves of code tasks, for any input."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from scgrpo.tasks.code.compare import same_lines, same_tokens
from scgrpo.tasks.code.decode import decode_tests, plain_pickle
from scgrpo.tasks.code.extract import last_block, with_preamble
from scgrpo.tasks.code.suite import StdinCase, Suite

TEXT = st.text(alphabet=" \n\t01-.eEnNaAyYsSoO☃", max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(TEXT, TEXT)
def test_comparisons_are_symmetric_and_never_raise(a: str, b: str) -> None:
    assert same_lines(a, a)
    assert same_tokens(a, a)
    assert same_lines(a, b) == same_lines(b, a)
    assert same_tokens(a, b) == same_tokens(b, a)
    if same_lines(a, b):  # the stricter of the two
        assert same_tokens(a, b)


@settings(deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False), st.decimals(allow_nan=False, allow_infinity=False))
def test_numbers_are_compared_exactly(a: Decimal, b: Decimal) -> None:
    assert same_lines(f"x\n{a} 1", f"x\n{b} 1.0") == (a == b)
    assert same_lines(f"{a:e}", f" {a} ")


@settings(deadline=None)
@given(JSON, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_values_survive_compression(value: Any, protocol: int) -> None:
    text = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(value), protocol))).decode()
    assert decode_tests(text, "item") == value
    assert decode_tests(json.dumps(value), "item") == value


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_do_more_than_fail(data: bytes) -> None:
    try:
        value = plain_pickle(data)
    except ValueError:
        return
    assert isinstance(value, str | int | float | list | dict | None)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 5), st.text(max_size=5))
def test_halves(count: int, seed: int, problem_id: str) -> None:
    suite = Suite(tuple(StdinCase(str(n), str(n)) for n in range(count)))
    a, b = (suite.half(which, problem_id, seed).cases for which in ("A", "B"))
    assert min(len(a), len(b)) >= 1
    assert set(a) | set(b) == set(suite.cases)
    if count > 1:
        assert not set(a) & set(b)
        assert len(a) - len(b) == count % 2


@settings(deadline=None)
@given(st.text(alphabet="ab` \n", max_size=60), st.text(alphabet="ab \n", max_size=20))
def test_the_last_block_is_found_whatever_comes_before(before: str, code: str) -> None:
    assert last_block(f"{before}\n```python\n{code}\n```\nafter") == code


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["from __future__ import annotations", "import math", "x = 1", "", "# y"]), max_size=6)
)
def test_programs_compile_behind_a_preamble(lines: list[str]) -> None:
    compile(with_preamble("import os\nos.getpid()", "\n".join(lines)), "program", "exec")
