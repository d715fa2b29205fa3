"""Large JSON files, one value at a time: the full catalogue is a list of 5 GB."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from scgrpo.errors import DataError

_CHUNK = 1 << 20
# No product is near this long: text that cannot be read as one by then is not JSON.
_MAX_VALUE = 16 * _CHUNK
_AGAIN = "Download the file again."


def json_object(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        DataError: it holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}.", _AGAIN) from error
    if not isinstance(value, dict):
        raise DataError(f"{path} does not hold an object.", _AGAIN)
    return value


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a file, each on a line.

    Raises:
        DataError: a line that holds something else.
    """
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error}).", _AGAIN) from error
            yield _checked(value, path, f"line {number}")


def json_list(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a file that is a list of them, without reading it whole.

    Raises:
        DataError: it is something else.
    """
    decoder = json.JSONDecoder()
    with _opened(path) as file:
        text = file.read(_CHUNK).lstrip("\ufeff \t\r\n")
        if not text.startswith("["):
            raise DataError(f"{path} does not hold a list.", _AGAIN)
        text, number = text[1:], 0
        while True:
            text = text.lstrip(" \t\r\n,")
            if text.startswith("]"):
                return
            try:
                value, end = decoder.raw_decode(text)
            except json.JSONDecodeError as error:
                text = _longer(text, file, path, number, error)
                continue
            yield _checked(value, path, f"item {number}")
            text, number = text[end:], number + 1


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8") as file:
            yield file
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text, or cut off ({error.reason}).", _AGAIN) from error


def _longer(text: str, file: TextIO, path: Path, number: int, error: json.JSONDecodeError) -> str:
    more = file.read(_CHUNK) if len(text) < _MAX_VALUE else ""
    if not more:
        raise DataError(f"{path}, item {number}: not JSON, or cut off ({error.msg}).", _AGAIN) from error
    return text + more


def _checked(value: Any, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{path}, {where}: not an object.", _AGAIN)
    return value
