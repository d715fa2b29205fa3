"""LiveCodeBench's compressed tests: base64 of zlib of a pickled string of JSON, read without unpickling anything."""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import zlib
from typing import Any

from scgrpo.errors import DataError

MAX_DECODED_BYTES = 1 << 30
# What pickling one string can produce; none of it imports, calls or builds anything.
_STRINGS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"})
_HARMLESS = frozenset({"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"})


def decode_tests(text: str, where: str, max_bytes: int = MAX_DECODED_BYTES) -> Any:
    """The JSON value in a column of tests: JSON itself, or base64 of zlib of a pickled string that is JSON.

    Args:
        text: the column.
        where: what to call the item in messages.
        max_bytes: more than this is not decompressed.

    Raises:
        DataError: it is neither, it is larger than `max_bytes`, or the pickle holds anything but one string.
    """
    try:
        return json.loads(text)
    except ValueError:
        pass  # not JSON: the compressed form
    try:
        return json.loads(_pickled_string(_decompress(base64.b64decode(text, validate=True), max_bytes)))
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


def _pickled_string(data: bytes) -> str:
    """The string that a pickle consists of. Opcodes are read, none is carried out."""
    found: list[str] = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _STRINGS:
            found.append(str(argument))
        elif opcode.name not in _HARMLESS:
            raise ValueError(f"the pickle does more than hold a string ({opcode.name})")
    if len(found) != 1:
        raise ValueError(f"the pickle holds {len(found)} strings instead of one")
    return found[0]
