"""LiveCodeBench's compressed tests: base64 of zlib of a pickle, read without unpickling anything.

Pickles are programs. The ones in question only build text, lists and mappings, so a small machine for exactly these
opcodes reads them; whatever could import, call or construct something else is refused unread.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import zlib
from typing import Any

from scgrpo.errors import DataError

MAX_DECODED_BYTES = 1 << 30
_MOST_OPCODES = 1_000_000  # the real ones have ten; a gigabyte of them would take hours
_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Opcodes whose argument is the value.
_TEXTS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"})
_NUMBERS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT"})
_STORES = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_LOADS = frozenset({"GET", "BINGET", "LONG_BINGET"})


def decode_tests(text: str, where: str, max_bytes: int = MAX_DECODED_BYTES) -> Any:
    """The JSON value in a column of tests: JSON itself, or base64 of zlib of a pickle of it or of its text.

    Args:
        text: the column.
        where: what to call the item in messages.
        max_bytes: more than this is not decompressed.

    Raises:
        DataError: it is neither, it is larger than `max_bytes`, or the pickle holds more than plain values.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass  # not JSON: the compressed form
    try:
        value = plain_pickle(_decompress(base64.b64decode(text, validate=True), max_bytes))
        return json.loads(value) if isinstance(value, str) else value
    except (binascii.Error, zlib.error, ValueError, UnicodeError, RecursionError) as error:
        raise DataError(
            f"{where}: the test cases are neither JSON nor compressed JSON ({error}).",
            "Download the file again, or leave the item out with exclude=[...].",
        ) from error


def _decompress(data: bytes, max_bytes: int) -> bytes:
    stream = zlib.decompressobj()
    plain = stream.decompress(data, max_bytes)
    if stream.unconsumed_tail:
        raise ValueError(f"more than {max_bytes} bytes when decompressed")
    if not stream.eof:
        raise ValueError("cut off")
    return plain


def plain_pickle(data: bytes) -> Any:
    """The value of a pickle made of text, numbers, True, False, None, lists and mappings with text keys.

    Raises:
        ValueError: any other opcode, or a pickle that does not end in one value.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count == _MOST_OPCODES:
                raise ValueError(f"a pickle of more than {_MOST_OPCODES} opcodes")
            machine.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a damaged pickle ({error!r})") from error
    if len(machine.stack) != 1 or machine.stack[0] is _MARK:
        raise ValueError("the pickle does not end in one value")
    return machine.stack[0]


class _Machine:
    """A stack, a memo, and the opcodes that need no more."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _TEXTS or name in _NUMBERS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _STORES:
            self._memo[len(self._memo) if argument is None else int(argument)] = self.stack[-1]
        elif name in _LOADS:
            value = self._memo[int(argument)]
            if isinstance(value, list | dict):  # could be made to contain itself
                raise ValueError("the pickle repeats a list or mapping")
            self.stack.append(value)
        elif name not in ("PROTO", "FRAME", "STOP"):
            self._build(name)

    def _build(self, name: str) -> None:
        if name == "MARK":
            self.stack.append(_MARK)
        elif name == "EMPTY_LIST":
            self.stack.append([])
        elif name == "EMPTY_DICT":
            self.stack.append({})
        elif name == "APPEND":
            self._extend([self.stack.pop()])
        elif name == "APPENDS":
            self._extend(self._since_mark())
        elif name == "SETITEM":
            value, key = self.stack.pop(), self.stack.pop()
            self._update([key, value])
        elif name == "SETITEMS":
            self._update(self._since_mark())
        else:
            raise ValueError(f"the pickle does more than hold plain values ({name})")

    def _since_mark(self) -> list[Any]:
        start = max(index for index, value in enumerate(self.stack) if value is _MARK)
        values = self.stack[start + 1 :]
        del self.stack[start:]
        return values

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("the pickle appends to what is not a list")
        self.stack[-1].extend(values)

    def _update(self, items: list[Any]) -> None:
        pairs = dict(zip(items[::2], items[1::2], strict=True))
        if not isinstance(self.stack[-1], dict) or not all(isinstance(key, str) for key in pairs):
            raise ValueError("the pickle sets keys that are not text, or of what is not a mapping")
        self.stack[-1].update(pairs)
