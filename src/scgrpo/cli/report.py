"""`scgrpo report RUN`: the page, or the curves as PNG."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def report_command(argv: Sequence[str]) -> int:
    """Write the report of a run directory and print where it is."""
    parser = argparse.ArgumentParser(prog="scgrpo report", description="Write the report of a run.")
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="runs to show in the same curves")
    parser.add_argument("--png", action="store_true", help="write the curves as PNG instead of the HTML page")
    parser.add_argument("--out", type=Path, help="where to write (default: into the run directory)")
    args = parser.parse_args(argv)

    from scgrpo.report import write_png, write_report

    if args.png:
        written = write_png(args.run, args.out or args.run / "curves.png", beside=args.beside)
    else:
        written = write_report(args.run, beside=args.beside, out=args.out)
    print(written)
    return 0
