"""`scgrpo tasks`: which there are, what one is made of, and whether it does what it promises here."""

from __future__ import annotations

import argparse
import os
import statistics
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

from scgrpo.cli import checks
from scgrpo.cli.evaluate import json_object
from scgrpo.errors import ConfigError, DataError, MissingDataError, MissingExtraError, ScgrpoError
from scgrpo.tasks.base import Row, Split, Task
from scgrpo.tasks.describe import REQUIRED, Description, describe
from scgrpo.tasks.registry import get_task, task_names

_SPLITS: tuple[Split, ...] = ("train", "eval")


def tasks_command(argv: Sequence[str]) -> int:
    """List, show or check.

    Returns:
        0; 1 if a check found something wrong.
    """
    args = _parser().parse_args(argv)
    if args.action == "list":
        return _list()
    if not args.download:  # before any library for data sets reads them
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    done = (_show if args.action == "show" else _check)(args.name, args.task_options)
    if not args.download and "dataset_name" not in args.task_options and "download" in describe(args.name).needs:
        print(
            f"\nOnly data that is here was looked at. To fetch it: scgrpo tasks {args.action} {args.name} --download"
        )
    return done


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scgrpo tasks", description="The tasks that can be trained on and evaluated."
    )
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="name, kind, what it needs, one line")
    for name, text in (
        ("show", "options with their defaults, an example, columns, sizes"),
        ("check", "grade answers that are known, look at the rows; exit code 1 if something is wrong"),
    ):
        one = actions.add_parser(name, help=text)
        one.add_argument("name", help="task by name, or `package.module:factory`")
        one.add_argument("--task_options", type=json_object, default={}, help="options of the task as JSON")
        one.add_argument("--download", action="store_true", help="fetch data that is not here yet")
    return parser


def _list() -> int:
    """A task whose package is broken has its own line, and the others theirs."""
    rows = []
    for name in task_names():
        try:
            d = describe(name)
        except ConfigError as error:
            rows.append((name, "broken", "", checks.first_line(error)))
            continue
        origin = "" if d.origin == "scgrpo" else f" [{d.origin}]"
        rows.append((name, d.kind, d.needs or "-", textwrap.shorten(d.summary, 100, placeholder="...") + origin))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip())
    return 0


def _show(name: str, options: dict[str, Any]) -> int:
    described = describe(name)
    _print_description(described)
    try:
        task = get_task(name, **options)
    except (MissingExtraError, ConfigError) as error:
        if options and isinstance(error, ConfigError):
            raise
        print(f"\nIt cannot be made like this: {error}")
        return 0
    with closing(task):
        try:
            row = task.canned().row
        except ScgrpoError as error:
            print(f"\nNo example here: {error}")
        else:
            _print_example(row)
        print()
        for split in _SPLITS:
            print(_size(task, split))
    return 0


def _print_description(d: Description) -> None:
    print(f"{d.name} ({d.kind}; from {d.origin})\n{d.summary}\nneeds: {d.needs or 'nothing'}\n\noptions")
    for option in d.options:
        default = "required" if option.default is REQUIRED else f"= {option.default!r}"
        print(f"  {option.name} {default}")
        if option.text:
            print(f"      {option.text}")
    if not d.options:
        print("  none")


def _print_example(row: Row) -> None:
    print(f"\nexample prompt\n{checks.shortened(checks.prompt_text(row['prompt']))}\n\ncolumns")
    for column, value in row.items():
        print(f"  {column}: {type(value).__name__}")


def _size(task: Task, split: Split) -> str:
    try:
        return _sizes(split, task.rows(split))
    except (ScgrpoError, OSError) as error:
        return f"{split}: not to be had here: {checks.first_line(error)}"


def _sizes(split: str, rows: Sequence[Row]) -> str:
    lengths = [len(checks.prompt_text(row["prompt"])) for row in rows] or [0]
    return (
        f"{split}: {len(rows)} rows, {len({row['problem_id'] for row in rows})} problems; "
        f"prompts of {statistics.median_low(lengths)} characters (median), {max(lengths)} at most"
    )


def _check(name: str, options: dict[str, Any]) -> int:
    with closing(get_task(name, **options)) as task:
        print(f"verdicts of {task.name} on answers that are known")
        try:
            num_bad = _grade(task, checks.grade_canned) + _grade(task, checks.grade_hostile)
            row, lacks = task.canned().row, None
        except ScgrpoError as error:  # it says itself what it lacks
            num_bad, row, lacks = 0, None, error
            print(f"not graded here: {error}")
        if row is not None:
            print(f"\nexample prompt\n{checks.shortened(checks.prompt_text(row['prompt']))}")
        print("\nrows")
        not_done = []
        for text, is_bad in _row_lines(task):
            print(f"{'BAD ' if is_bad else ''}{text}")
            num_bad += bool(is_bad)
            not_done += [text] if is_bad is None else []
    anything = row is not None or len(not_done) < len(_SPLITS)
    found = "nothing found wrong" if anything else "nothing could be checked"
    print(f"\n{f'{num_bad} found wrong' if num_bad else found}", end="")
    print(f"; not checked: {len(not_done)} split(s), see above" if not_done else "")
    if lacks is not None:
        raise lacks
    return 1 if num_bad else 0


def _grade(task: Task, grade: Callable[[Task], list[checks.Graded]]) -> int:
    """Grade and print; how many verdicts are wrong."""
    try:
        return checks.show_graded(grade(task), print)
    except ScgrpoError:
        raise
    except Exception as error:  # noqa: BLE001 (that it raises is the finding)
        print(f"BAD the verifier raised {error!r}; it should give an error verdict")
        return 1


def _row_lines(task: Task) -> Iterator[tuple[str, bool | None]]:
    """What there is to say of the rows, and whether it is bad; None: it could not be looked at."""
    found: dict[str, list[Row]] = {}
    for split in _SPLITS:
        try:
            found[split], problems = checks.check_rows(task, split)
        except (MissingDataError, ConfigError, MissingExtraError, OSError) as error:
            yield f"{split}: not checked: {error}", None
            continue
        except DataError as error:
            yield f"{split}: {error}", True
            continue
        yield from ((problem, True) for problem in problems)
        if not problems:
            yield _sizes(split, found[split]), False
    if len(found) == len(_SPLITS):
        both = checks.shared_problems(found["train"], found["eval"])
        if both:
            yield f"{both} problems are in both splits", True
