"""Code tasks, without running anything: extraction, comparison, decoding, suites."""

from __future__ import annotations

import base64
import collections
import json
import os
import pickle
import re
import sys
import zlib
from typing import Any

import pytest

from scgrpo.errors import ConfigError, DataError
from scgrpo.tasks.code.compare import same_lines, same_tokens
from scgrpo.tasks.code.decode import decode_tests, plain_pickle
from scgrpo.tasks.code.extract import LCB_PRELUDE, MAX_ANSWER_CHARACTERS, defines, last_block, with_preamble
from scgrpo.tasks.code.numpy_standin import without_numpy
from scgrpo.tasks.code.suite import CallCase, StdinCase, Suite, assert_cases, call_cases, stdin_cases


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Sure:\n```python\nprint(1)\n```\nDone.", "print(1)"),
        ("```\na\n```\nthen\n```python\nb\nc\n```", "b\nc"),
        ("```python\nfirst\n```\nand cut off:\n```python\nprint(", "and cut off:"),  # the rule, not a wish
        ("```python\nx = '```'\n```", ""),
        ("<think>\n```python\ndraft\n```\n</think>\n```py\nfinal\n```", "final"),
        ("    ```python\n    indented\n    ```", "    indented"),
        ("print(1)", ""),
        ("```python\nprint(1)", ""),
        ("``` one line ```", ""),
        ("", ""),
    ],
)
def test_the_program_lies_between_the_last_two_fences(answer: str, code: str) -> None:
    assert last_block(answer) == code


def test_a_long_answer_is_read_from_its_end_only() -> None:
    end = "\n```python\nprint(1)\n```\n"
    assert last_block("x" * 5_000_000 + end) == "print(1)"
    assert last_block("```python\n" + "x" * MAX_ANSWER_CHARACTERS + "\n```") == ""


def test_future_imports_stay_at_the_top() -> None:
    code = '"""Doc."""\nfrom __future__ import annotations\nx: int = 1'
    source = with_preamble("import math", code)
    assert source.startswith("from __future__ import annotations\n")
    assert source.index("import math") < source.index("x: int")
    compile(source, "program", "exec")
    assert with_preamble("", code.replace("__future__", "future")).endswith("x: int = 1")


def test_the_prelude_leaves_builtins_as_they_are_and_has_what_solutions_expect() -> None:
    names: dict[str, Any] = {}
    recursion = "sys.setrecursionlimit(50000)\n"
    assert LCB_PRELUDE.endswith(recursion)
    most_digits = sys.get_int_max_str_digits()
    try:
        exec(LCB_PRELUDE.removesuffix(recursion), names)
        assert sys.get_int_max_str_digits() == 0
    finally:
        sys.set_int_max_str_digits(most_digits)
    assert names["pow"] is pow
    assert names["open"] is open
    assert names["datetime"].datetime  # the module, as in LiveCodeBench
    wanted = {"List", "Optional", "deque", "Counter", "heappush", "bisect_left", "gcd", "inf", "lru_cache", "reduce"}
    assert wanted | {"accumulate", "exit", "ascii_lowercase"} <= names.keys()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def f(x):", True),
        ("async def f():", True),
        ("class f:", True),
        ("f = lambda: 1", True),
        ("f: int = 3", True),
        ("    def f(x):", False),
        ("def ff(x):", False),
        ("g(f)", False),
        ("f == 1", False),
    ],
)
def test_what_defines_a_name(code: str, found: bool) -> None:
    assert defines(f"import os\n{code}", "f") is found


@pytest.mark.parametrize(
    ("output", "expected", "lines", "tokens"),
    [
        ("3\n", "3", True, True),
        (" 1 2 \n3", "1 2\n3\n\n", True, True),
        ("1  2", "1 2", True, True),  # as numbers
        ("a  b", "a b", False, True),
        ("1\n2", "1 2", False, True),
        ("0.50", "0.5", True, True),
        ("1e3", "1000", True, True),
        ("0.3000000001", "0.3", False, False),
        ("50000000000000001", "50000000000000000", False, False),
        ("YES\nno", "yes\nNO", False, True),
        ("yesterday", "YESterday", False, False),
        ("1 a", "1.0 a", False, True),
        ("", "\n", True, True),
        ("", "0", False, False),
        ("nan", "nan", True, True),
        ("nan", "NaN", False, False),
        ("snan", "1", False, False),
        ("1\n\n2", "1\n2", False, True),
        ("x", "y", False, False),
    ],
)
def test_comparisons(output: str, expected: str, lines: bool, tokens: bool) -> None:
    assert same_lines(output, expected) is lines
    assert same_tokens(output, expected) is tokens


TESTS = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]


def compressed(value: Any, protocol: int = 4) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_compressed_tests_are_read_without_unpickling(protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text, plain = compressed(json.dumps(TESTS), protocol), json.dumps(TESTS)
    monkeypatch.setattr(pickle, "loads", None)
    monkeypatch.setattr(pickle, "Unpickler", None)
    assert decode_tests(text, "item") == decode_tests(plain, "item") == TESTS


def test_pickles_of_plain_values() -> None:
    value = {"a": [1, -2, 3.5, True, None, "é", 2**70], "b": {}, "c": [[], ["a", "a"]]}
    assert plain_pickle(pickle.dumps(value)) == value


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


@pytest.mark.parametrize(
    "value",
    [Attack(), [Attack()], collections.OrderedDict(a=1), os.system, {1: 2}, (1, 2), {"a"}, b"bytes", 1j],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", repr(value)),
)
def test_pickles_of_anything_else_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match="problem 7"):
        decode_tests(compressed(value), "problem 7")


@pytest.mark.parametrize(
    "data",
    [b"", b".", b"N", b"NN.", b"(.", b"]NN.", b"Na.", b"}NNs.", b"e.", b"h\x05.", b"]q\x00h\x00a.", b"\x80\x04\x95"],
)
def test_damaged_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        plain_pickle(data)


def test_what_is_no_test_column_is_named() -> None:
    whole = compressed(json.dumps(TESTS))
    for text in ("not json", "[1, 2", whole[:-8], whole[:20] + "*" + whole[21:], compressed("not json"), "AAAA"):
        with pytest.raises(DataError, match=r"file 1, problem 'x'.*neither JSON nor compressed"):
            decode_tests(text, "file 1, problem 'x'")


def test_a_bomb_is_not_decompressed() -> None:
    bomb = compressed("0" * 50_000_000)
    assert len(bomb) < 100_000
    with pytest.raises(DataError, match="more than 1000000 bytes"):
        decode_tests(bomb, "item", max_bytes=1_000_000)
    many = base64.b64encode(zlib.compress(b"]" * 10_000_000)).decode()
    with pytest.raises(DataError, match=r"item: .* more than 1000000 opcodes"):
        decode_tests(many, "item")
    with pytest.raises(DataError, match=r"item: .* neither JSON nor"):
        decode_tests("[" * 100_000, "item")


def test_cases_of_programs() -> None:
    wanted = (StdinCase("1\n2", "3"),)
    assert stdin_cases([{"input": "1\n2", "output": "3"}], "x") == wanted
    assert stdin_cases({"inputs": [["1", "2"]], "outputs": ["3"]}, "x") == wanted


def test_cases_of_functions() -> None:
    wanted = (CallCase(([1, 2], "a"), {"k": 1.5}),)
    assert call_cases([{"input": '[1, 2]\n"a"', "output": '{"k": 1.5}'}], "x") == wanted
    assert call_cases([{"arguments": [[1, 2], "a"], "expected": {"k": 1.5}}], "x") == wanted
    assert call_cases({"inputs": [[[1, 2], "a"]], "outputs": [{"k": 1.5}]}, "x") == wanted
    assert call_cases([{"arguments": ["a"], "expected": "b"}], "x") == (CallCase(("a",), "b"),)


@pytest.mark.parametrize(
    ("make", "tests", "message"),
    [
        (stdin_cases, [], "no tests"),
        (stdin_cases, None, "tests are a NoneType"),
        (stdin_cases, [{"input": "1"}], "test 0.* is no test"),
        (stdin_cases, [{"input": 1, "output": "1"}], "test 0.* is a int"),
        (stdin_cases, {"inputs": ["1"], "outputs": []}, "1 inputs and 0 outputs"),
        (call_cases, [{"input": "1", "output": "1"}, {"input": "[1", "output": "1"}], "test 1: not JSON"),
        (call_cases, [{"input": "1", "output": "yes"}], "test 0: not JSON"),
        (call_cases, [{"arguments": 3, "expected": 3}], "test 0: the arguments are a int"),
        (assert_cases, [], "no tests"),
        (assert_cases, ["assert f(1) == 1", "assert f(1"], "test 1: not Python"),
        (assert_cases, [1], "test 0: not Python"),
    ],
)
def test_tests_that_are_none_are_named(make: Any, tests: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"row 9.*{message}"):
        make(tests, "row 9")


def test_halves_share_no_test_and_miss_none() -> None:
    suite = Suite(stdin_cases([{"input": str(n), "output": str(n)} for n in [*range(9), 3, 3]], "x"))
    a, b = suite.half("A", "p", 0).cases, suite.half("B", "p", 0).cases
    assert (len(a), len(b)) == (5, 4)  # the repeated test counts once
    assert set(a) | set(b) == set(suite.cases)
    assert suite.half("all", "p", 0) is suite
    assert suite.half("A", "p", 0).cases == a
    assert {suite.half("A", "p", seed).cases for seed in range(5)} != {a}
    with pytest.raises(ConfigError, match="no tests 'C'"):
        suite.half("C", "p", 0)  # type: ignore[arg-type]


def test_a_single_test_is_in_both_halves() -> None:
    suite = Suite(stdin_cases([{"input": "1", "output": "1"}] * 2, "x"))
    assert suite.half("A", "p", 0).cases == suite.half("B", "p", 0).cases == suite.cases


def test_the_stand_in_for_numpy() -> None:
    source = without_numpy("import numpy as np\nclose = np.allclose\nkind = np.ndarray")
    names: dict[str, Any] = {}
    exec(source, names)
    close = names["close"]
    assert close(1 / 3, 0.3333333, rtol=1e-7, atol=1e-6)
    assert not close(0.3334, 0.3333, rtol=1e-7, atol=1e-6)
    assert close([1.0, (2, [3])], (1.0, [2.0, (3.0,)]))
    assert not close([1.0], [1.0, 1.0])
    assert not close(1.0, [1.0])
    assert close(float("inf"), float("inf"))
    assert not close(float("nan"), float("nan"))
    with pytest.raises(TypeError, match="not a number"):
        close("1", 1.0)
    assert without_numpy("import numpy") == "import numpy"
