"""`scgrpo tiny build | path`: the embedded model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def tiny_command(argv: Sequence[str]) -> int:
    """Build the tiny model again, or print where the shipped one is."""
    parser = argparse.ArgumentParser(prog="scgrpo tiny", description="The embedded tiny model.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("path", help="print the folder of the shipped checkpoint")
    build_parser = commands.add_parser("build", help="train it from scratch and check the product")
    build_parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    build_parser.add_argument("--seed", type=int, help="seed of the build (default: the shipped model's)")
    args = parser.parse_args(argv)

    if args.command == "path":
        from scgrpo.tiny import tiny_model_path

        print(tiny_model_path())
        return 0
    from scgrpo.tiny.build import build
    from scgrpo.tiny.shipped import RECIPE, SEED

    report = build(RECIPE, args.out, seed=SEED if args.seed is None else args.seed, progress=print)
    print(report)
    return 0 if report.ok else 1
