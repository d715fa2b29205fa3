"""`python -m benchmarks run [case ...]`: see benchmarks/README.md."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.cases import CASES
from benchmarks.context import SIZES, Context
from benchmarks.measure import measure_floor
from benchmarks.results import Table, device_name, save, show, show_targets


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 if a case failed, 0 otherwise: a missed target is a result, not a failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What it costs, measured.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run cases (all if none is named)")
    run.add_argument("cases", nargs="*", metavar="case", help=", ".join(CASES))
    run.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    run.add_argument("--profile", choices=SIZES, help="sizes; default: those of the device")
    run.add_argument("--repetitions", type=int, default=5)
    run.add_argument("--budget", type=float, help="seconds; no case is begun after them")
    run.add_argument("--out", type=Path, help="JSON file for the results")
    commands.add_parser("list", help="say what each case asks")
    args = parser.parse_args(argv)
    if args.command == "list":
        for name, case in CASES.items():
            print(f"{name:14s} {(case.__doc__ or '').strip()}")
        return 0
    unknown = [name for name in args.cases if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    _quiet()
    console, started = Console(width=150), time.monotonic()
    device = torch.device(args.device)
    torch.set_num_threads(1)
    sizes = SIZES[args.profile or device.type]
    dtypes = dict.fromkeys((torch.float32, sizes.dtype))
    context = Context(device, sizes, args.repetitions, measure_floor(device, tuple(dtypes), sizes.floor_size))
    about = {
        "device": device_name(device),
        "date": time.strftime("%Y-%m-%d"),
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
        "repetitions": args.repetitions,
    }
    console.print(f"{about['device']}, {about['date']}; {context.floor.text()}", highlight=False)
    tables: list[Table] = []
    failed: list[str] = []
    for name in args.cases or CASES:
        if args.budget and time.monotonic() - started > args.budget:
            console.print(f"{name}: left out, the budget of {args.budget:g} s is spent")
            continue
        try:
            for table in CASES[name](context):
                show(table, console)
                tables.append(table)
                if args.out:
                    save(args.out, tables, context.floor, {**about, "failed": failed})
        except Exception:  # noqa: BLE001  the other cases' results are worth keeping, whatever went wrong in this one
            failed.append(name)
            console.print(f"{name} failed:\n{traceback.format_exc()}", markup=False)
    if args.out:
        save(args.out, tables, context.floor, {**about, "failed": failed})
    if args.profile != "smoke":  # sizes at which nothing is meant to be met
        show_targets(tables, console)
    console.print(f"{time.monotonic() - started:.0f} s")
    return 1 if failed else 0


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    try:
        from transformers.utils import logging
    except ImportError:
        return
    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
