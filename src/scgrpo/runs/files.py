"""Files that survive a crash: replaced whole, or appended line by line."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from scgrpo.errors import RunError
from scgrpo.runs.schema import check_version

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process works on this folder, which is made; the lock ends with the process, however it ends.

    Raises:
        RunError: another one does, or the folder cannot be written.
    """
    import fcntl  # not on every system, and reports need none of this

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise RunError(f"Cannot write {folder}: {error.strerror}.", "Choose another --out.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"Another process is working on {folder}.", "Wait for it, or choose another --out."
            ) from error
        yield


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside `path`, flush it to disk, then move it there: readers see the old or the new one, whole.

    Raises:
        RunError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"Cannot write {path}: {error.strerror}.", "Choose a folder you may write to.") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """`replace_file` with text (UTF-8)."""
    replace_file(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def to_json(
    record: Mapping[str, Any], *, indent: int | None = None, default: Callable[[Any], Any] | None = None
) -> str:
    """Strict JSON: NaN and infinities become null.

    Raises:
        RunError: a value JSON has no form for.
    """
    try:
        return json.dumps(_finite(record), allow_nan=False, indent=indent, default=default)
    except (TypeError, ValueError) as error:
        raise RunError(
            f"This record cannot be written as JSON: {error}.", "Give numbers, text, lists, mappings."
        ) from error


def append_line(path: Path, line: str) -> None:
    """Append one line in one write: a crash can cut the last line, never mix two."""
    append_lines(path, [line])


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append lines, all in one write where the system takes them at once.

    Raises:
        OSError: a full disk, for example. The last line may then be cut short; `mend_last_line` drops it.
    """
    left = memoryview("".join(f"{line}\n" for line in lines).encode())
    with path.open("ab", buffering=0) as file:
        while left:  # a disk that is nearly full takes a part, and says so at the next write
            left = left[file.write(left) :]


@dataclass(frozen=True)
class JsonLines:
    """Records of a JSONL file, the bytes of their lines, and what was wrong with its last line, if anything."""

    records: list[dict[str, Any]]
    lines: list[bytes]
    damage: str | None


def read_json_lines(path: Path) -> JsonLines:
    """Read a JSONL file, one record of some step per line; a missing file is empty.

    A last line that a crash cut short is left out and told in `damage`.

    Raises:
        RunError: any other line is not a JSON object, has no step, or is of a newer schema.
    """
    if not path.exists():
        return JsonLines([], [], None)
    numbered = [(n, line) for n, line in enumerate(path.read_bytes().split(b"\n"), start=1) if line.strip()]
    records: list[dict[str, Any]] = []
    lines: list[bytes] = []
    for number, line in numbered:
        record = _parse(line)
        if record is None:
            if number == numbered[-1][0]:
                return JsonLines(records, lines, f"{path.name}, line {number}: cut short by a crash, left out.")
            raise RunError(
                f"{path}, line {number} is not a JSON object.", "Repair or delete that line; the others are kept."
            )
        check_version(record.get("schema_version"), f"{path}, line {number},")
        if not isinstance(record.get("step"), int):
            raise RunError(f"{path}, line {number} has no step.", "It was not written by scgrpo, or it is damaged.")
        records.append(record)
        lines.append(line)
    return JsonLines(records, lines, None)


def read_json(path: Path) -> dict[str, Any]:
    """Read a versioned JSON object; {} when the file is missing.

    Raises:
        RunError: it is not a JSON object, or of a newer schema.
    """
    if not path.exists():
        return {}
    record = _parse(path.read_bytes())
    if record is None:
        raise RunError(f"{path} is not a JSON object.", "Restore it, or delete it to go on without.")
    check_version(record.get("schema_version"), str(path))
    return record


def mend_last_line(path: Path) -> None:
    """Make a JSONL file ready for appending: end a whole last line, drop one that was cut short.

    Only that line is read: sweeps call this before each of thousands of lines.
    """
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            is_ended = data[-1:] == b"\n"
            start = data.rfind(b"\n", 0, len(data) - is_ended) + 1
            last = data[start:]
        if last.strip() and _parse(last) is None:
            file.truncate(start)
        elif not is_ended:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")


def write_lines(path: Path, lines: list[bytes]) -> None:
    """Replace a JSONL file."""
    replace_file(path, lambda file: file.write(b"".join(line + b"\n" for line in lines)))


def _parse(data: bytes) -> dict[str, Any] | None:
    try:
        # Other writers may use the NaN and Infinity that Python's json knows; they read as null too.
        record = json.loads(data, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
