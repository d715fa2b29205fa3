"""`scgrpo testbed list | build | show`: tasks with a known first error, and their base models."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scgrpo.tiny.statistics import Statistics


def testbed_command(argv: Sequence[str]) -> int:
    """List testbeds, build a base model, or measure one."""
    parser = argparse.ArgumentParser(prog="scgrpo testbed", description="Testbeds for credit assignment.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names and what they are good for")
    for name, text in (
        ("build", "train the base model, unless the cache has it, and print its folder"),
        ("show", "measure the base model: pass rates, D, and how well it finds the first error"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("name", help="of the testbed")
        command.add_argument("--seed", type=int, default=0, help="of the base model")
        if name == "show":
            command.add_argument("--json", action="store_true", help="as JSON")
    args = parser.parse_args(argv)

    if args.command == "list":
        from scgrpo.tiny.testbeds import TESTBEDS

        width = max(map(len, TESTBEDS))
        for testbed in TESTBEDS.values():
            print(f"{testbed.name:{width}s}  {testbed.about}")
        return 0
    from scgrpo.tiny.base_models import base_model

    folder = base_model(args.name, args.seed, progress=partial(print, file=sys.stderr))
    if args.command == "build":
        print(folder)
        return 0
    measured = _measured(args.name, str(folder))
    record = {"testbed": args.name, "seed": args.seed, **asdict(measured)}
    print(json.dumps(record, indent=2) if args.json else _table(f"{args.name}, seed {args.seed}", measured))
    return 0


def _measured(name: str, folder: str) -> Statistics:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    from scgrpo.tiny.statistics import statistics
    from scgrpo.tiny.testbeds import get_testbed

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)  # more only cost time with a model this small
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return statistics(model, AutoTokenizer.from_pretrained(folder), get_testbed(name).task)


def _table(title: str, s: Statistics) -> str:
    rates = s.pass_rates
    lines = {
        "pass@1 / pass@8": f"{s.pass_at_1:.3f} / {s.pass_at_8:.3f}, {s.mixed_frac:.0%} of groups mixed",
        "with a correct demonstration": f"{rates.verified:.3f}",
        "with a wrong one": f"{rates.wrong:.3f}",
        "with an aimless attempt": f"{rates.attempt:.3f}",
        "tokens per completion": f"{s.mean_tokens:.1f}, {s.free_frac:.0%} of the words never decide",
        "distinct solutions (of 64 drawn)": f"{s.distinct_solutions:.1f}",
        "D: p50, p75, p95 (nats)": f"{s.d_p50:.2g}, {s.d_p75:.2g}, {s.d_p95:.2g}; below 1e-3: {s.d_small_frac:.0%}",
        "AUC for the first error": f"D {s.auc_d:.2f}, entropy {s.auc_entropy:.2f} ({s.num_errors} failed rollouts)",
    }
    return "\n".join([f"{title}: {s.num_problems} held-out problems", *(f"  {k:34s}{v}" for k, v in lines.items())])
