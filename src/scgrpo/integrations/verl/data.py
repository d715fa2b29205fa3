"""Rows of a task as verl's data sets hold them, and back.

    column          what it holds
    data_source     the task's name: verl's validation metrics are called after it
    prompt          chat messages
    ability         the task's teacher template
    reward_model    {"style": "rule", "ground_truth": the row's `answer`, for verl's dumps of validations}
    extra_info      {index, problem_id, split, task, task_options, row}: what makes the verdict
    agent_name      who plays it: `scgrpo_environment`, or verl's own `single_turn_agent`

`task_options` and `row` are JSON: every column that the task's verifier or environment needs comes through, and files
of different tasks have one schema, so that verl can train on several. Neither verl nor TRL is needed here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from scgrpo.errors import DataError, MissingExtraError, RunError
from scgrpo.runs.files import replace_file
from scgrpo.tasks.base import Row, Split, Task
from scgrpo.tasks.data import is_chat
from scgrpo.tasks.environment import EnvironmentTask

# Under this name `agent_loop` registers what plays environments.
ENVIRONMENT_LOOP = "scgrpo_environment"
_SINGLE_TURN_LOOP = "single_turn_agent"
_ROWS_AT_ONCE = 1000


class Problem(NamedTuple):
    """What `extra_info` says of a prompt.

    Attributes:
        task: name (or import path) and options of the task it is from.
        row: of that task, as it made it.
    """

    task: str
    options: dict[str, Any]
    row: Row


def verl_row(name: str, options: Mapping[str, Any], task: Task, split: Split, index: int, row: Row) -> dict[str, Any]:
    """One row for verl.

    Args:
        name, options: what the task was made with.
        index: of the row in its split.

    Raises:
        DataError: a prompt that is no chat of texts, or values that JSON cannot give back as they are.
    """
    where = f"Row {index} ({row.get('problem_id')!r}) of task {name!r}"
    answer = row.get("answer")
    return {
        "data_source": task.name,
        "prompt": _messages(row["prompt"], where),
        "ability": task.template,
        "reward_model": {"style": "rule", "ground_truth": "" if answer is None else str(answer)},
        "extra_info": {
            "index": index,
            "problem_id": str(row["problem_id"]),
            "split": split,
            "task": name,
            "task_options": _json(dict(options), f"The options of task {name!r}"),
            "row": _json(row, where),
        },
        "agent_name": ENVIRONMENT_LOOP if isinstance(task, EnvironmentTask) else _SINGLE_TURN_LOOP,
    }


def read_problem(extra_info: Mapping[str, Any] | None) -> Problem:
    """What `verl_row` has put into `extra_info`.

    Raises:
        DataError: it is not from there.
    """
    try:
        assert extra_info is not None
        task, options, row = (extra_info[key] for key in ("task", "task_options", "row"))
        return Problem(task, json.loads(options), json.loads(row))
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"A prompt's extra_info does not say which row of which task it is ({error!r}).",
            "Write the data set with `scgrpo verl-data`.",
        ) from error


def write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], *, overwrite: bool = False) -> int:
    """Write rows of `verl_row`, some at a time; readers see the whole file or none.

    Returns:
        How many there were.

    Raises:
        RunError: the file is there already, or cannot be written.
        DataError: there are no rows, or a text that is not Unicode.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError(
            "Writing Parquet needs pyarrow, which is not installed.", 'Install it: pip install "scgrpo[verl]".'
        ) from error
    if path.suffix != ".parquet":
        raise RunError(f"{path} does not end in .parquet.", "verl tells the kind of a file by its ending.")
    if path.exists() and not overwrite:
        raise RunError(f"{path} is there already.", "Choose another name, or add --overwrite.")
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0

    def write(file: BinaryIO) -> None:
        nonlocal count
        try:
            count = _write(file, rows)
        except (pyarrow.ArrowException, UnicodeError) as error:
            raise DataError(f"Parquet cannot hold these rows: {error}.", "Look for broken texts in them.") from error

    replace_file(path, write)
    return count


def _write(file: BinaryIO, rows: Iterable[Mapping[str, Any]]) -> int:
    import pyarrow
    from pyarrow import parquet

    schema, count = _schema(), 0
    with parquet.ParquetWriter(file, schema) as writer:
        for part in _parts(rows):
            writer.write_table(pyarrow.Table.from_pylist(part, schema))
            count += len(part)
    if not count:
        raise DataError("There are no rows.", "Check the split and the options of the task.")
    return count


def _parts(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    left = iter(rows)
    while part := [dict(row) for row in islice(left, _ROWS_AT_ONCE)]:
        yield part


def _schema() -> Any:
    """The same for every task, whatever its rows hold: verl puts files together only then."""
    import pyarrow as pa

    text = pa.string()
    extra = {"index": pa.int64(), **dict.fromkeys(("problem_id", "split", "task", "task_options", "row"), text)}
    return pa.schema(
        {
            "data_source": text,
            "prompt": pa.list_(pa.struct({"role": text, "content": text})),
            "ability": text,
            "reward_model": pa.struct({"style": text, "ground_truth": text}),
            "extra_info": pa.struct(extra),
            "agent_name": text,
        }
    )


def _messages(prompt: Any, where: str) -> list[dict[str, str]]:
    if not is_chat(prompt):
        raise DataError(
            f"{where} has a string as its prompt.", "verl samples from chat messages: give a list of such."
        )
    for message in prompt:
        if set(message) != {"role", "content"} or not isinstance(message["content"], str):
            raise DataError(
                f"{where} has a message that is more than a role and a text: {str(message)[:80]!r}.",
                "Only such prompts can be written for verl.",
            )
    return [dict(message) for message in prompt]


def _json(value: Any, where: str) -> str:
    try:
        text = json.dumps(value)
        if json.loads(text) == value:
            return text
        reason = "it reads back as something else (tuples, or keys that are no strings?)"
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error)
    raise DataError(f"{where} cannot be written as JSON: {reason}.", "Rows hold JSON values (scgrpo.tasks.base.Row).")
