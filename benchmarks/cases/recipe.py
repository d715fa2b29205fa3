"""The default recipe: what a step of SC-GRPO costs against a step of GRPO, and where the time goes."""

from __future__ import annotations

import functools
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from benchmarks.context import Context
from benchmarks.measure import Clock
from benchmarks.results import Row, Table, timed_rows

STAGES = {
    "sampling": "_generate",
    "verifier": "_calculate_rewards",
    "conditioned pass": "_assign_credit",
    "loss forward": "_compute_loss",
}


def run(context: Context) -> Iterator[Table]:
    """CPU seconds of a step of `scgrpo train --config reach`, embedded model, sampling included."""
    steps = 10 if context.repetitions > 1 else 2
    seconds: dict[str, list[float]] = defaultdict(list)
    stages: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    _timed_run("uniform", 2, 0)  # warm-up
    for repetition in range(context.repetitions):
        order = ("sc_grpo", "uniform") if repetition % 2 else ("uniform", "sc_grpo")
        for credit in order:
            total, shares = _timed_run(credit, steps, repetition)
            seconds[credit].append(total)
            for stage, value in shares.items():
                stages[credit][stage].append(value / total)
    table = Table("recipe", "reach", "uniform", timed_rows(seconds, "uniform"), value="share of a step")
    for credit in ("uniform", "sc_grpo"):
        middle = {stage: sorted(v)[len(v) // 2] for stage, v in stages[credit].items()}
        for stage, share in sorted(middle.items(), key=lambda item: -item[1]):
            table.rows.append(Row(f"{credit}: {stage}", value=share))
    yield table


def make_trainer(credit: str, steps: int, seed: int = 0) -> Any:
    """An SCGRPOTrainer on the settings of the `reach` recipe."""
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback

    from scgrpo.cli.arguments import parse_train
    from scgrpo.cli.setup import resolve_model
    from scgrpo.integrations.trl import SCGRPOTrainer
    from scgrpo.tasks import get_task
    from scgrpo.tasks.reward import reward_function

    flags = ["--credit", credit, "--max_steps", str(steps), "--seed", str(seed), "--output_dir", tempfile.mkdtemp()]
    parsed = parse_train(["--config", "reach", *flags])
    task = get_task("reach")
    trainer = SCGRPOTrainer(
        resolve_model("tiny"),
        [reward_function(task)],
        parsed.trainer,
        train_dataset=Dataset.from_list(task.rows("train", 2000)),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def _timed_run(credit: str, steps: int, seed: int) -> tuple[float, dict[str, float]]:
    """CPU seconds per step of one short run, and of each stage; a stage inside another counts for itself alone."""
    trainer = make_trainer(credit, steps, seed)
    seconds: dict[str, float] = defaultdict(float)
    clock, running = Clock(trainer.accelerator.device), []

    def timed(owner: Any, method: str, stage: str) -> None:
        inner = getattr(owner, method)

        @functools.wraps(inner)
        def measured(*args: Any, **kwargs: Any) -> Any:
            start = clock.now()
            running.append(0.0)
            try:
                return inner(*args, **kwargs)
            finally:
                spent = clock.now() - start
                seconds[stage] += spent - running.pop()
                if running:
                    running[-1] += spent

        setattr(owner, method, measured)

    for stage, method in STAGES.items():
        timed(trainer, method, stage)
    timed(trainer.accelerator, "backward", "backward")
    start = clock.now()
    trainer.train()
    total = clock.now() - start
    seconds["optimizer and the rest"] = total - sum(seconds.values())
    return total / steps, {stage: s / steps for stage, s in seconds.items()}
