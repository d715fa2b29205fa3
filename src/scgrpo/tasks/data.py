"""Rows of a data set: a local JSON Lines, JSON or Parquet file, a folder with one file per split, or a hub id."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from scgrpo.errors import ConfigError, DataError, MissingDataError, MissingExtraError

logger = logging.getLogger(__name__)

RawRow = dict[str, Any]
Where = Callable[[int], str]  # row index -> "file, line 3", for messages
_Item = TypeVar("_Item")
_AnyRow = TypeVar("_AnyRow", bound=Mapping[str, Any])


def load_rows(
    source: str | Path, *, config: str | None = None, split: str = "train", columns: Mapping[str, str] | None = None
) -> list[RawRow]:
    """All rows of one split.

    Args:
        source: a `.jsonl`, `.json` (a list of objects) or `.parquet` file, which is one split by itself; a folder
            that holds `<split>.jsonl` (or `.json`, `.parquet`, `<split>-*.parquet`), in a sub-folder named `config`
            if there is one; or the id of a data set on the Hugging Face hub.
        config: the data set's configuration, where it has several.
        split: which split.
        columns: new name -> column of the data, dotted for a field inside a column (`reward_model.ground_truth`). The
            rows then have these columns only. Without it they are returned as they are.

    Raises:
        MissingDataError: there is no such file or split, or the hub cannot be reached.
        DataError: a malformed line, or a missing column; names file, line, column and what exists.
        MissingExtraError: a package that reads this kind of source is not installed.
    """
    rows, where = read_rows(source, config, split)
    if not rows:
        raise DataError(f"{where(0)}: there are no rows.", "Check the file, the configuration and the split.")
    if columns is None:
        return rows
    return [select_columns(row, columns, where(index)) for index, row in enumerate(rows)]


def split_names(source: str | Path, config: str | None = None) -> list[str] | None:
    """Splits of a folder or hub data set; None for a single file, which has none.

    Raises:
        DataError, MissingExtraError: as `load_rows`.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = [f for f in sorted(_configured(path, config).iterdir()) if f.suffix in _READERS]
        return list(dict.fromkeys(f.stem.split("-")[0] for f in files))
    if _is_local(source):
        return None
    datasets = _datasets(source)
    return list(_from_hub(source, lambda: datasets.get_dataset_split_names(str(source), config)))


def find_column(row: Mapping[str, Any], candidates: Sequence[str], what: str, where: str) -> str:
    """The first candidate (dotted paths allowed) that the row has.

    Raises:
        DataError: none of them; names the columns that exist.
    """
    for name in candidates:
        if _lookup(row, name) is not None:
            return name
    raise DataError(
        f"{where}: no column for the {what}; looked for {', '.join(candidates)}, found {', '.join(row)}.",
        f'Name it, for example columns={{"{what}": "{next(iter(row), "my_column")}"}}.',
    )


def select_columns(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> RawRow:
    """A row with the wanted columns under their new names.

    Raises:
        DataError: a column is missing or empty (None).
    """
    selected = {name: _lookup(row, path) for name, path in columns.items()}
    for name, value in selected.items():
        if value is None:
            raise DataError(
                f"{where}: column {columns[name]!r} (the {name}) is missing or empty; found {', '.join(row)}.",
                "Fix the row, or name another column.",
            )
    return selected


def checked_columns(columns: Mapping[str, str] | None, known: Collection[str]) -> dict[str, str]:
    """A column map that renames nothing unknown.

    Raises:
        ConfigError: it is no mapping, or has other names than the known ones.
    """
    if not isinstance(columns or {}, Mapping):
        raise ConfigError(f"columns is {columns!r}.", f'Write {{"{next(iter(known))}": "its name in the data"}}.')
    unknown = sorted(set(columns or {}) - set(known))
    if unknown:
        raise ConfigError(f"columns names {', '.join(unknown)}.", f"Known: {', '.join(known)}.")
    return dict(columns or {})


def deduplicated(
    rows: Sequence[_AnyRow], key: Callable[[_AnyRow], Hashable], what: str = "the data"
) -> list[_AnyRow]:
    """The first row of each key, in order. How many were dropped is logged; `what` names the data there.

    Raises:
        DataError: there are no rows.
    """
    if not rows:
        raise DataError(f"{what}: there are no rows.", "Check the file, the configuration and the split.")
    first: dict[Hashable, _AnyRow] = {}
    for row in rows:
        first.setdefault(key(row), row)
    if len(first) < len(rows):
        dropped = len(rows) - len(first)
        logger.warning("%s: %d of %d rows repeat an earlier one; the first is kept.", what, dropped, len(rows))
    return list(first.values())


def in_window(
    rows: Sequence[_AnyRow], column: str, start_date: str | date | None = None, end_date: str | date | None = None
) -> list[_AnyRow]:
    """Rows with `start_date <= date <= end_date`, in order; None is no bound.

    Args:
        column: holds the date (dotted for a field inside a column): text in ISO format, of which a time of day is
            not looked at (`2025-02-01`, `2025-02-01T00:00:00`), or a date.
        start_date, end_date: ISO dates, or dates as YAML reads them, both included.

    Raises:
        ConfigError: a bound that is no date, or bounds the wrong way round.
        DataError: a row without a date, named; no row inside.
    """
    start, end = _bound("start_date", start_date), _bound("end_date", end_date)
    if start is None and end is None:
        return list(rows)
    if start is not None and end is not None and start > end:
        raise ConfigError(f"start_date {start} is after end_date {end}.", "Swap them.")
    dates = [_date_of(row, column, index) for index, row in enumerate(rows)]
    kept = [row for row, day in zip(rows, dates, strict=True) if (start or day) <= day <= (end or day)]
    if not kept:
        found = f"they are from {min(dates)} to {max(dates)}" if dates else "there are none at all"
        raise DataError(f"No row has its {column} from {start} to {end}; {found}.", "Choose other dates.")
    return kept


def halves(problem_id: str, items: Sequence[_Item], seed: int = 0) -> tuple[list[_Item], list[_Item]]:
    """A random half of a problem's items (its tests), and the others: A to train on, B to evaluate with.

    Which items are in A depends on `problem_id`, `seed` and the items' places alone, by a hash: not on other
    problems, nor on the Python version. Order is kept. Of an odd number A has one more.

    Raises:
        DataError: fewer than two items, one half would be empty.
    """
    if len(items) < 2:
        raise DataError(
            f"Problem {problem_id!r} has {len(items)} item(s): they cannot be split into halves.",
            "Leave it out, or use all of its tests on both sides.",
        )
    order = sorted(range(len(items)), key=lambda index: _hash(f"{seed}:{problem_id}:{index}"))
    chosen = set(order[: (len(items) + 1) // 2])
    first = [item for index, item in enumerate(items) if index in chosen]
    return first, [item for index, item in enumerate(items) if index not in chosen]


def train_eval_split(
    rows: Sequence[_AnyRow], eval_fraction: float, seed: int = 0, key: str = "problem_id"
) -> tuple[list[_AnyRow], list[_AnyRow]]:
    """Rows to train on and rows to evaluate with, both in order.

    The problems that come first when ordered by a seeded hash of `key` are held out, whatever the order of the rows:
    at least one (unless the share is 0) and never all. Rows with one key stay together.

    Raises:
        ConfigError: not 0 <= eval_fraction < 1.
        DataError: a row without the key.
    """
    if not 0 <= eval_fraction < 1:
        raise ConfigError(f"eval_fraction is {eval_fraction}.", "Give a share of the rows, 0 <= eval_fraction < 1.")
    for index, row in enumerate(rows):
        if key not in row:
            raise DataError(
                f"Row {index} has no {key!r}; found {', '.join(row)}.", "Name the key that tells problems apart."
            )
    names = sorted({str(row[key]) for row in rows}, key=lambda name: (_hash(f"{seed}:{name}"), name))
    held_out = set(names[: max(0, min(math.ceil(eval_fraction * len(names)), len(names) - 1))])
    train = [row for row in rows if str(row[key]) not in held_out]
    return train, [row for row in rows if str(row[key]) in held_out]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()


def _bound(name: str, value: str | date | None) -> date | None:
    if value is None:
        return None
    try:
        return date.fromisoformat(str(value)[:10] if isinstance(value, date) else value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is {value!r}, which is no date.", "Write it like 2025-02-01.") from error


def _date_of(row: Mapping[str, Any], column: str, index: int) -> date:
    value = _lookup(row, column)
    try:
        return date.fromisoformat(str(value)[:10])
    except ValueError as error:
        name = row.get("problem_id", row.get("question_id", index))
        raise DataError(
            f"Row {name!r}: column {column!r} holds {value!r}, which is no date; columns: {', '.join(row)}.",
            "Dates look like 2025-02-01. Fix the row, or name another column.",
        ) from error


def is_chat(prompt: Any) -> bool:
    """Whether a prompt is a list of chat messages rather than a string.

    Raises:
        DataError: it is neither.
    """
    if isinstance(prompt, str):
        return False
    if isinstance(prompt, Sequence) and prompt and all(_is_message(message) for message in prompt):
        return True
    raise DataError(
        f"A prompt is neither a string nor a list of chat messages: {str(prompt)[:80]!r}.",
        'Messages look like {"role": "user", "content": "..."}.',
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str) and "content" in value


def _lookup(row: Mapping[str, Any], path: str) -> Any:
    if path in row:
        return row[path]
    value: Any = row
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def read_rows(source: str | Path, config: str | None, split: str) -> tuple[list[RawRow], Where]:
    """As `load_rows` without columns, with a function that says where a row (by index) came from."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(_configured(path, config), split)
    if path.is_file():
        return _read_file(path)
    if _is_local(source):
        raise MissingDataError(f"There is no file {source}.", "Check the path; a hub id looks like `owner/name`.")
    datasets = _datasets(source)
    found = _from_hub(source, lambda: datasets.load_dataset(str(source), config, split=split))
    return found.to_list(), lambda index: f"{source} ({split}), row {index}"


def _is_local(source: str | Path) -> bool:
    text = str(source)
    return isinstance(source, Path) or Path(text).suffix in _READERS or text.startswith((".", "/", "~"))


def _configured(folder: Path, config: str | None) -> Path:
    return folder / config if config and (folder / config).is_dir() else folder


def _read_folder(folder: Path, split: str) -> tuple[list[RawRow], Where]:
    files = [folder / f"{split}{suffix}" for suffix in _READERS if (folder / f"{split}{suffix}").is_file()]
    files = files[:1] or sorted(folder.glob(f"{split}-*.parquet"))
    if not files:
        raise MissingDataError(
            f"{folder} has no split {split!r}.",
            f"It must hold a file {split}.jsonl, {split}.json or {split}.parquet.",
        )
    parts = [_read_file(file) for file in files]
    if len(parts) == 1:
        return parts[0]
    return [row for rows, _ in parts for row in rows], lambda index: f"{folder} ({split}), row {index}"


def _read_file(path: Path) -> tuple[list[RawRow], Where]:
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise DataError(
            f"{path} is of a kind that cannot be read.", f"Use one of {', '.join(_READERS)}, or a hub data set."
        )
    return reader(path)


def _read_jsonl(path: Path) -> tuple[list[RawRow], Where]:
    rows, lines = [], []
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            rows.append(_object(line, path, number))
            lines.append(number)
    return rows, lambda index: f"{path}, line {lines[index]}" if lines else str(path)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}.", "Convert it.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error


def _object(line: str, path: Path, number: int) -> RawRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # also an integer of more digits than Python reads
        raise DataError(f"{path}, line {number}: not JSON ({error}).", "Write one JSON object per line.") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: not an object.", "Write one JSON object per line.")
    return row


def _read_json(path: Path) -> tuple[list[RawRow], Where]:
    try:
        rows = json.loads("".join(_lines(path)))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}).", "Write a list of objects."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}).", "Write a list of objects.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} does not hold a list of objects.", "Write `[{...}, {...}]`, or use JSON Lines.")
    return rows, lambda index: f"{path}, item {index}"


def _read_parquet(path: Path) -> tuple[list[RawRow], Where]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            f"Reading {path} needs pyarrow, which is not installed.", 'Install it: pip install "scgrpo[trl]".'
        ) from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:  # no Parquet, damaged, or not to be opened
        raise DataError(f"{path} cannot be read as Parquet: {error}", "Check how it was written.") from error
    return rows, lambda index: f"{path}, row {index}"


_READERS: dict[str, Callable[[Path], tuple[list[RawRow], Where]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


def _datasets(source: str | Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"Loading {source} from the hub needs the package datasets, which is not installed.",
            'Install it (pip install "scgrpo[trl]"), or give a local .jsonl file.',
        ) from error
    return datasets


def _from_hub(source: str | Path, load: Callable[[], Any]) -> Any:
    # What the hub client raises: OSError with its subclasses for what is missing or unreachable, ValueError for a
    # configuration or split that does not exist, RuntimeError for data sets that come as scripts.
    try:
        return load()
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MissingDataError(
            f"The data set {source!r} cannot be loaded from the hub: {reason.rstrip('.')}.",
            "Check its id, configuration and split and the network, or give a local file.",
        ) from error
