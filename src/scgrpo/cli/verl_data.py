"""`scgrpo verl-data`: a split of a task as the data set that verl trains on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from scgrpo.cli.evaluate import json_object
from scgrpo.integrations.verl.data import verl_row, write_parquet
from scgrpo.tasks.registry import get_task


def verl_data_command(argv: Sequence[str]) -> int:
    """Write it, and say what verl needs to know of it.

    Returns:
        0.
    """
    args = _parser().parse_args(argv)
    with closing(get_task(args.task, **args.task_options)) as task:
        rows = task.rows(args.split, args.limit)
        written = write_parquet(
            args.out,
            (verl_row(args.task, args.task_options, task, args.split, i, row) for i, row in enumerate(rows)),
            overwrite=args.overwrite,
        )
        print(f"{args.out}: {written} rows of {task.name}, split {args.split}")
        print(
            f"train on it with trainer.v1.scgrpo.teacher_template={task.template} "
            f"trainer.v1.scgrpo.success_threshold={task.success_threshold:g}"
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scgrpo verl-data",
        description="Write a split of a task as Parquet for verl (data.train_files, data.val_files). Paths in the "
        "task's options are read on every node: give absolute ones.",
    )
    parser.add_argument("--task", required=True, help="task by name, or `package.module:factory`")
    parser.add_argument("--task_options", type=json_object, default={}, help="options of the task as JSON")
    parser.add_argument("--split", choices=["train", "eval"], required=True)
    parser.add_argument("--limit", type=int, help="the first so many rows (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="a file that ends in .parquet")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    return parser
