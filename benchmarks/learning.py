"""What the methods reach on a tiny task: held-out Avg@8 over seeds, with 95 % t intervals, and paired differences."""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

# Two-sided 95 % quantiles of Student's t, by degrees of freedom.
T95 = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
    14: 2.145,
    19: 2.093,
}


def interval(values: list[float]) -> str:
    """Mean with its 95 % interval."""
    mean = statistics.mean(values)
    degrees = max(d for d in T95 if d <= len(values) - 1)
    half = T95[degrees] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} +- {half:.3f}"


def run(config: str, credit: str, extra: list[str], seed: int, folder: Path) -> tuple[float, float]:
    """Held-out Avg@8 before and after one run."""
    command = [sys.executable, "-m", "scgrpo.cli.main", "train", "--config", config, "--credit", credit, *extra]
    command += ["--seed", str(seed), "--eval_every", "0", "--rollouts_every", "0", "--output_dir", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--compare_with", "none"], check=True, stdout=subprocess.DEVNULL, env=environment)
    records = [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]
    return records[0]["avg_at_k"]["value"], records[-1]["avg_at_k"]["value"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="reach")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["uniform", "sc_grpo", "sc_grpo:--credit_weight_sign solved --credit_mix 0.5"],
        help="NAME or NAME:flags",
    )
    args = parser.parse_args()
    if args.seeds < 5:
        parser.error("claims about learning need at least 5 seeds")
    after: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            for index, method in enumerate(args.methods):
                credit, _, flags = method.partition(":")
                before, value = run(args.config, credit, flags.split(), seed, Path(folder) / f"{index}-{seed}")
                after.setdefault(method, []).append(value)
                print(f"seed {seed}  {method}: {before:.3f} -> {value:.3f}", flush=True)
    first = args.methods[0]
    print(f"\n{args.config}, {args.seeds} seeds, held-out Avg@8 after training")
    for method, values in after.items():
        difference = [a - b for a, b in zip(values, after[first], strict=True)]
        against = "" if method == first else f"   against {first}: {interval(difference)} (paired)"
        print(f"{method:60s} {interval(values)}{against}")


if __name__ == "__main__":
    main()
