"""`scgrpo compare SWEEP`: methods against a reference, paired by base, seed and problem."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scgrpo.report.compare import Written


def compare_command(argv: Sequence[str]) -> int:
    """Write the comparison, print a short table and where it is."""
    args = _parser().parse_args(argv)

    from scgrpo.report.compare import Options, write_comparison

    options = Options(
        reference=args.reference,
        against=tuple(args.against),
        methods=tuple(args.methods),
        bases=args.bases,
        margin=args.margin,
        replicates=args.replicates,
        seed=args.seed,
    )
    written = write_comparison(args.sources, args.out, options)
    _print_table(written)
    print(written.page)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scgrpo compare", description="Compare methods, paired by base, seed and problem: page, CSV, pictures."
    )
    parser.add_argument(
        "sources", type=Path, nargs="+", help="sweep folders or their results.jsonl, or run directories"
    )
    parser.add_argument("--reference", default="grpo", help="method that the others are compared with")
    parser.add_argument("--against", nargs="*", default=[], help="further references, each with tables of its own")
    parser.add_argument(
        "--methods", nargs="*", default=[], help="which to show, in this order (default: all, by name)"
    )
    parser.add_argument(
        "--bases",
        choices=["fixed", "random"],
        default="fixed",
        help="fixed: the claim is about these bases; random: they stand for others like them",
    )
    parser.add_argument("--margin", type=float, default=0.02, help="a difference in Avg@k that would matter")
    parser.add_argument("--replicates", type=int, default=4000, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--out", type=Path, help="folder to write to (default: compare in the first source)")
    return parser


def _print_table(written: Written) -> None:
    from rich.console import Console
    from rich.table import Table

    from scgrpo.report.compare.tables import contrast_rows

    console = Console(highlight=False)
    for family in written.families:
        place = "pooled over testbeds" if family.testbed is None else family.testbed
        table = Table(title=f"Avg@k at the end, {place}: minus {family.reference}", title_justify="left", box=None)
        for name in ("method", "difference [95 %]", "Holm p", "verdict", "learning rates", "pairs"):
            table.add_column(name)
        for row in contrast_rows(family):
            cells = (row.method, row.difference, row.corrected, row.verdict, row.rates, row.pairs)
            table.add_row(*(cell.replace("[", r"\[") for cell in cells))
        console.print(table)
