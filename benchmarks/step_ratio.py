"""CPU seconds of an SC-GRPO step against a GRPO step (credit="uniform"), interleaved, with each stage's share."""

from __future__ import annotations

import argparse
import functools
import time
from collections import defaultdict
from typing import Any

import _common

STAGES = {
    "sampling": "_generate",
    "verifier": "_calculate_rewards",
    "conditioned pass": "_assign_credit",
    "loss forward": "_compute_loss",
}


def timed_run(credit: str, steps: int, seed: int) -> tuple[float, dict[str, float]]:
    """CPU seconds per step and per stage of one short run."""
    trainer = _common.make_trainer(credit, steps, seed)
    seconds: dict[str, float] = defaultdict(float)

    def clock(owner: Any, method: str, stage: str) -> None:
        inner = getattr(owner, method)

        @functools.wraps(inner)
        def measured(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return inner(*args, **kwargs)
            finally:
                seconds[stage] += time.process_time() - start

        setattr(owner, method, measured)

    for stage, method in STAGES.items():
        clock(trainer, method, stage)
    clock(trainer.accelerator, "backward", "backward")
    start = time.process_time()
    trainer.train()
    total = time.process_time() - start
    seconds["optimizer and the rest"] = total - sum(seconds.values())
    return total / steps, {stage: s / steps for stage, s in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    totals: dict[str, list[float]] = defaultdict(list)
    stages: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    timed_run("uniform", 2, 0)  # warm-up
    for repetition in range(args.repetitions):
        order = ("sc_grpo", "uniform") if repetition % 2 else ("uniform", "sc_grpo")
        for credit in order:
            total, shares = timed_run(credit, args.steps, repetition)
            totals[credit].append(total)
            for stage, value in shares.items():
                stages[credit][stage].append(value)
    ratios = [a / b for a, b in zip(totals["sc_grpo"], totals["uniform"], strict=True)]
    print(f"SC-GRPO step / GRPO step: {_common.summary(ratios)}")
    for credit, values in totals.items():
        print(f"\n{credit}: CPU seconds per step {_common.summary(values)}")
        middle = {stage: sorted(v)[len(v) // 2] for stage, v in stages[credit].items()}
        for stage, value in sorted(middle.items(), key=lambda item: -item[1]):
            print(f"  {stage:24s} {value / sum(middle.values()):6.1%}")


if __name__ == "__main__":
    main()
