"""Rollouts as Parquet: one file per recorded step, one row per rollout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from scgrpo.errors import MissingExtraError, RunError
from scgrpo.runs.files import replace_file
from scgrpo.runs.schema import SCHEMA_VERSION, RolloutRow, check_version

_VERSION_KEY = b"scgrpo.schema_version"


def write_rollouts(path: Path, rows: Sequence[RolloutRow]) -> None:
    """Write the rollouts of one step, replacing the file.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    pyarrow, parquet = _pyarrow()
    table = pyarrow.Table.from_pylist([_encodable(asdict(row)) for row in rows], schema=_schema(pyarrow))
    replace_file(path, lambda file: parquet.write_table(table, file, compression="zstd"))


def read_rollouts(path: Path) -> list[RolloutRow]:
    """Read the rollouts of one step.

    Raises:
        RunError: not a readable Parquet file, or of a newer schema.
        MissingExtraError: pyarrow is not installed.
    """
    pyarrow, parquet = _pyarrow()
    try:
        # Opened here: pyarrow would take an odd path for an address of a remote file system.
        with path.open("rb") as file:
            table = parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise RunError(
            f"{path} cannot be read: {error}", "Delete the file; the run's other files stay usable."
        ) from error
    version = (table.schema.metadata or {}).get(_VERSION_KEY, b"")
    check_version(int(version) if version.isdigit() else None, str(path))
    missing = {field.name for field in fields(RolloutRow)} - set(table.column_names)
    if missing:
        raise RunError(f"{path} lacks the columns {', '.join(sorted(missing))}.", "It was not written by scgrpo.")
    names = [field.name for field in fields(RolloutRow)]
    return [RolloutRow(**(row | {"rewards": dict(row["rewards"])})) for row in table.select(names).to_pylist()]


def _schema(pyarrow: Any) -> Any:
    text, flag, whole, number = pyarrow.string(), pyarrow.bool_(), pyarrow.int64(), pyarrow.float64()
    # Per-token numbers were computed in float32 or less.
    numbers = pyarrow.list_(pyarrow.float32())
    types = {
        **dict.fromkeys(("step", "group", "rollout", "demonstration"), whole),
        **dict.fromkeys(("solved", "demonstration_truncated"), flag),
        **dict.fromkeys(("is_special", "mask"), pyarrow.list_(flag)),
        **dict.fromkeys(("token_kl", "credit_weights", "student_logps", "teacher_logps"), numbers),
        "tokens": pyarrow.list_(text),
        "token_ids": pyarrow.list_(whole),
        "rewards": pyarrow.map_(text, number),
        "advantage": number,
    }
    columns = [(field.name, types.get(field.name, text)) for field in fields(RolloutRow)]
    return pyarrow.schema(columns, metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()})


def _encodable(value: Any) -> Any:
    """Lone surrogates, which UTF-8 cannot hold, become their escape."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _encodable(item) for key, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], str):
        return [_encodable(item) for item in value]
    return value


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "Rollouts are kept as Parquet, which needs pyarrow.", 'Install it: pip install "scgrpo[report]".'
        ) from error
    return pyarrow, pyarrow.parquet
