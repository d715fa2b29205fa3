"""Rows of a data set: a local JSON Lines, JSON or Parquet file, a folder with one file per split, or a hub id."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scgrpo.errors import DataError, MissingExtraError

RawRow = dict[str, Any]
Where = Callable[[int], str]  # row index -> "file, line 3", for messages


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
        DataError: nothing there, a malformed line, or a missing column; names file, line, column and what exists.
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
    path = Path(source)
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
    path = Path(source)
    if path.is_dir():
        return _read_folder(_configured(path, config), split)
    if path.is_file():
        return _read_file(path)
    if _is_local(source):
        raise DataError(f"There is no file {source}.", "Check the path; a hub id looks like `owner/name`.")
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
        raise DataError(
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
    with path.open(encoding="utf-8") as file:
        try:
            yield from file
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text: {error}.", "Convert it.") from error


def _object(line: str, path: Path, number: int) -> RawRow:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
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
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a Parquet file: {error}.", "Check how it was written.") from error
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
        raise DataError(
            f"The data set {source!r} cannot be loaded from the hub: {reason}",
            "Check its id, configuration and split and the network, or give a local file.",
        ) from error
