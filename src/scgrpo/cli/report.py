"""`scgrpo report`: the page of a run, its charts as PNG, or the paper's tables with runs in their places."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def report_command(argv: Sequence[str]) -> int:
    """Write what is asked for and print where it is."""
    parser = argparse.ArgumentParser(prog="scgrpo report", description="Write the report of a run.")
    parser.add_argument("run", type=Path, nargs="?", help="run directory")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="runs to show in the same charts")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--png", action="store_true", help="write all charts as one PNG instead of the HTML page")
    kind.add_argument("--pngs", type=Path, metavar="FOLDER", help="write each chart as a PNG into this folder")
    kind.add_argument(
        "--tables", type=Path, nargs="+", metavar="RUN", help="write the paper's tables 1 to 3 with these runs beside"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="where to write (default: into the run directory; tables.html, and .csv, with --tables)",
    )
    args = parser.parse_args(argv)
    if (args.run is None) == (args.tables is None):
        parser.error("give a run directory, or --tables with some")

    from scgrpo.report import write_png, write_pngs, write_report, write_tables

    if args.tables:
        written = write_tables(args.tables, args.out or Path("tables.html"))
    elif args.pngs:
        written = write_pngs(args.run, args.pngs, beside=args.beside)
    elif args.png:
        written = [write_png(args.run, args.out, beside=args.beside)]
    else:
        written = [write_report(args.run, beside=args.beside, out=args.out)]
    for path in written:
        print(path)
    return 0
