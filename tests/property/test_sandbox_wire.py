"""Values that cross between a candidate and its tests arrive as they were; bytes that mean nothing break nothing."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgrpo.sandbox.inside import wire

finite = st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False) | st.decimals(allow_nan=False)
exact = st.none() | st.booleans() | st.integers() | st.fractions() | st.dates() | st.timedeltas()
scalars = finite | exact | st.text() | st.binary()
keys = st.none() | st.booleans() | st.integers() | st.text() | st.tuples(st.integers(), st.text())
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner) | st.sets(keys),
    max_leaves=20,
)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(st.sampled_from(sorted(wire._DECODERS)), inner).map(list)
    | st.dictionaries(st.text(), inner),
    max_leaves=10,
)  # fmt: skip


def stays(value: Any) -> list[Any]:
    raise AssertionError(f"{value!r} is plain")


def find(tag: str, number: int) -> Any:
    raise ValueError(tag)


def through(value: Any) -> Any:
    return wire.decode(json.loads(json.dumps(wire.encode(value, stays))), find)


@given(values)
def test_plain_values_arrive_as_they_were(value: Any) -> None:
    back = through(value)
    assert type(back) is type(value)
    assert back == value
    assert repr(back) == repr(value) or isinstance(value, (set, dict, list, tuple))


@given(junk)
def test_junk_raises_only_what_is_announced(data: Any) -> None:
    try:
        wire.decode(data, find)
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, OverflowError):
        return


@given(st.lists(st.integers() | st.lists(st.integers())), st.lists(st.integers() | st.lists(st.integers())))
def test_refresh_makes_equal_and_keeps_identity(old: list[Any], new: list[Any]) -> None:
    inner = [item for item in old if isinstance(item, list)]
    matched = [pair for pair in zip(old, new, strict=False) if all(isinstance(item, list) for item in pair)]
    wire.refresh(old, json.loads(json.dumps(new)))
    assert old == new
    kept = [item for item in old if any(item is other for other in inner)]
    assert len(kept) >= len(matched)


def test_a_subclass_arrives_without_its_methods() -> None:
    class Yes(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

        def __index__(self) -> int:
            return 7

    class Liar(list[int]):
        def __iter__(self) -> Any:
            return iter([1, 2, 3])

    assert type(through(Yes(3))) is int
    assert through(Yes(3)) == 3
    assert through(Liar([9])) == [9]


@pytest.mark.parametrize(
    "sent", [b"", b"\0\0", struct.pack("!I", 2**31), struct.pack("!I", 4) + b"{{{{", struct.pack("!I", 9) + b"1"]
)
def test_a_broken_channel_is_one_error(sent: bytes) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, sent)
        os.close(writing)
        with pytest.raises(wire.ChannelError):
            wire.receive(reading)
    finally:
        os.close(reading)


def test_messages_go_through_a_pipe() -> None:
    reading, writing = os.pipe()
    try:
        for message in ([], ["ok", "ä\ud800", None], {"a": 1.5}):
            wire.send(writing, message)
            assert wire.receive(reading) == message
        os.close(reading)
        with pytest.raises(wire.ChannelError):
            wire.send(writing, [1])
    finally:
        os.close(writing)
