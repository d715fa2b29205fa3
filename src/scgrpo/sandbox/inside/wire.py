"""How values travel between a candidate's process and the tests': JSON with tags, built and read without pickle.

Plain values arrive as what they are, and only as that: a subclass arrives as the plain type it derives from, with the
contents it claims, so that no method of the candidate's takes part in a comparison. Everything else is an object that
stays where it is, and a number for it.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import fractions
import json
import os
import struct
from collections.abc import Callable, Iterable
from typing import Any

LARGEST_MESSAGE = 64 << 20
TESTS = "tests"  # name of their module
_SMALL_INT_BITS = 64  # larger ones travel in hexadecimal, which has no limit on digits
_TYPES = {
    name: value
    for name, value in vars(builtins).items()
    if isinstance(value, type) and (name in ("bool", "bytes", "complex", "dict", "float", "frozenset", "int", "list")
    or name in ("bytearray", "object", "range", "set", "slice", "str", "tuple") or issubclass(value, Exception))
}  # fmt: skip
_TYPE_NAMES = {value: name for name, value in _TYPES.items()}


def builtin_type(name: Any) -> type:
    """Python's own type of that name, one of those that travel as their name.

    Raises:
        KeyError, TypeError: it is none.
    """
    return _TYPES[name]


def exception_type(name: Any) -> type[Exception] | None:
    """Python's exception of that name."""
    kind = _TYPES.get(name) if isinstance(name, str) else None
    return kind if kind is not None and issubclass(kind, Exception) else None


class ChannelError(Exception):
    """The other side is gone, or what it sends makes no sense."""


Keep = Callable[[Any], list[Any]]  # an object that stays -> the tag it travels as
Find = Callable[[str, Any], Any]  # such a tag, or that of a type -> the object, or what stands for it


def encode(value: Any, keep: Keep) -> Any:
    """JSON for a value."""
    kind = type(value)
    if value is None or kind is bool or kind is str or kind is float:
        return value
    if kind.__module__ == TESTS:
        return keep(value)  # a named tuple, say: it is more to them than the plain value
    if isinstance(value, int) and kind is not bool:
        value = int.__index__(value)
        return value if value.bit_length() <= _SMALL_INT_BITS else ["int", hex(value)]
    if isinstance(value, type):
        return ["type", _TYPE_NAMES[value]] if value in _TYPE_NAMES else keep(value)
    for base, tag, take in _ENCODERS:
        if isinstance(value, base):
            return [tag, *take(value, lambda item: encode(item, keep))]
    return keep(value)


def decode(data: Any, find: Find) -> Any:
    """The value of JSON.

    Raises:
        ValueError, TypeError, KeyError, IndexError, ArithmeticError, OverflowError: it is not what `encode` makes.
    """
    if not isinstance(data, list):
        if isinstance(data, dict):
            raise ValueError("a bare object")
        return data
    tag, *rest = data
    if tag in _DECODERS:
        return _DECODERS[tag](rest, lambda item: decode(item, find))
    return find(tag, rest[0])


Walk = Callable[[Any], Any]


def _each(iterate: Callable[[Any], Iterable[Any]]) -> Callable[[Any, Walk], list[Any]]:
    return lambda value, walk: [walk(item) for item in iterate(value)]


def _pairs(value: dict[Any, Any], walk: Walk) -> list[Any]:
    return [[walk(key), walk(item)] for key, item in dict.items(value)]


def _date(value: Any, _: Walk) -> list[Any]:
    return list(datetime.date.timetuple(value)[:3])


def _moment(value: Any, _: Walk) -> list[Any]:
    if value.tzinfo is not None:
        raise TypeError("a datetime with a time zone cannot be sent")
    return [*datetime.datetime.timetuple(value)[:6], int(value.microsecond)]


def _span(value: Any, _: Walk) -> list[Any]:
    return [int(value.days), int(value.seconds), int(value.microseconds)]


# Methods of the plain types themselves, not those of a subclass.
_ENCODERS: tuple[tuple[type, str, Callable[[Any, Walk], list[Any]]], ...] = (
    (float, "float", lambda value, _: [float.__float__(value)]),
    (str, "str", lambda value, _: [str.__str__(value)]),
    (list, "list", _each(list.__iter__)),
    (tuple, "tuple", _each(tuple.__iter__)),
    (collections.OrderedDict, "ordered", _pairs),
    (collections.Counter, "counter", _pairs),
    (collections.defaultdict, "default", lambda value, walk: [walk(value.default_factory), *_pairs(value, walk)]),
    (dict, "dict", _pairs),
    (set, "set", _each(set.__iter__)),
    (frozenset, "frozenset", _each(frozenset.__iter__)),
    (collections.deque, "deque", lambda value, walk: [walk(value.maxlen), *map(walk, iter(value))]),
    (bytes, "bytes", lambda value, _: [bytes.hex(value)]),
    (bytearray, "bytearray", lambda value, _: [bytearray.hex(value)]),
    (complex, "complex", lambda value, _: [value.real, value.imag]),
    (range, "range", lambda value, walk: [walk(value.start), walk(value.stop), walk(value.step)]),
    (slice, "slice", lambda value, walk: [walk(value.start), walk(value.stop), walk(value.step)]),
    (decimal.Decimal, "decimal", lambda value, _: [decimal.Decimal.__str__(value)]),
    (fractions.Fraction, "fraction", lambda value, walk: [walk(value.numerator), walk(value.denominator)]),
    (datetime.datetime, "datetime", _moment),
    (datetime.date, "date", _date),
    (datetime.timedelta, "timedelta", _span),
    (type({}.keys()), "keys", _each(iter)),
    (type({}.items()), "items", _each(iter)),
)  # fmt: skip
_DECODERS: dict[str, Callable[[list[Any], Walk], Any]] = {
    "int": lambda rest, _: int(rest[0], 16),
    "float": lambda rest, _: float(rest[0]),
    "str": lambda rest, _: _text(rest[0]),
    "list": lambda rest, walk: [walk(item) for item in rest],
    "tuple": lambda rest, walk: tuple(walk(item) for item in rest),
    "ordered": lambda rest, walk: collections.OrderedDict((walk(key), walk(value)) for key, value in rest),
    "counter": lambda rest, walk: collections.Counter({walk(key): walk(value) for key, value in rest}),
    "default": lambda rest, walk: collections.defaultdict(
        walk(rest[0]), ((walk(key), walk(value)) for key, value in rest[1:])
    ),
    "dict": lambda rest, walk: {walk(key): walk(value) for key, value in rest},
    "set": lambda rest, walk: {walk(item) for item in rest},
    "frozenset": lambda rest, walk: frozenset(walk(item) for item in rest),
    "deque": lambda rest, walk: collections.deque(map(walk, rest[1:]), walk(rest[0])),
    "bytes": lambda rest, _: bytes.fromhex(rest[0]),
    "bytearray": lambda rest, _: bytearray.fromhex(rest[0]),
    "complex": lambda rest, _: complex(rest[0], rest[1]),
    "range": lambda rest, walk: range(*map(walk, rest)),
    "slice": lambda rest, walk: slice(*map(walk, rest)),
    "decimal": lambda rest, _: decimal.Decimal(rest[0]),
    "fraction": lambda rest, walk: fractions.Fraction(walk(rest[0]), walk(rest[1])),
    "datetime": lambda rest, _: datetime.datetime(*rest),
    "date": lambda rest, _: datetime.date(*rest),
    "timedelta": lambda rest, _: datetime.timedelta(*rest),
    "keys": lambda rest, walk: dict.fromkeys(map(walk, rest)).keys(),
    "items": lambda rest, walk: dict(map(walk, rest)).items(),
}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def refresh(old: Any, new: Any) -> None:
    """Give a mutable container the contents of another one, keeping the containers inside it where they match."""
    if isinstance(old, list) and isinstance(new, list):
        old[:] = [_merged(*pair) for pair in zip(old, new)] + new[len(old) :]  # noqa: B905 (lengths may differ)
    elif isinstance(old, dict) and isinstance(new, dict):
        merged = {key: _merged(old[key], value) if key in old else value for key, value in new.items()}
        old.clear()
        old.update(merged)
    elif isinstance(old, (set, collections.deque)) and isinstance(new, (set, collections.deque)):
        old.clear()
        (old.update if isinstance(old, set) else old.extend)(new)
    elif isinstance(old, bytearray) and isinstance(new, bytearray):
        old[:] = new
    elif isinstance(old, tuple) and isinstance(new, tuple):
        for before, after in zip(old, new):  # noqa: B905
            refresh(before, after)


def _merged(old: Any, new: Any) -> Any:
    if type(old) is not type(new) or not isinstance(old, (list, dict, set, collections.deque, bytearray)):
        return new
    refresh(old, new)
    return old


def send(descriptor: int, message: Any) -> None:
    """Write one message.

    Raises:
        ChannelError: nobody reads.
        ValueError: it is too large.
    """
    data = json.dumps(message).encode()
    if len(data) > LARGEST_MESSAGE:
        raise ValueError(f"a message of {len(data)} bytes is too large")
    rest = memoryview(struct.pack("!I", len(data)) + data)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError as error:
        raise ChannelError(f"the other process is gone: {error}") from None


def receive(descriptor: int) -> Any:
    """Read one message.

    Raises:
        ChannelError: there will be none.
    """
    (length,) = struct.unpack("!I", _exactly(descriptor, 4))
    if length > LARGEST_MESSAGE:
        raise ChannelError(f"a message of {length} bytes is too large")
    try:
        return json.loads(_exactly(descriptor, length))
    except (ValueError, RecursionError) as error:
        raise ChannelError(f"a message that is not JSON: {error}") from None


def _exactly(descriptor: int, length: int) -> bytes:
    parts, missing = [], length
    while missing:
        try:
            part = os.read(descriptor, min(missing, 1 << 20))
        except OSError as error:
            raise ChannelError(f"the other process is gone: {error}") from None
        if not part:
            raise ChannelError("the other process is gone")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
