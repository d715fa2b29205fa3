"""Shared by the benchmarks: one thread, the tiny model, trainers on the `reach` recipe."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import statistics
import tempfile
import warnings
from typing import Any

import torch

torch.set_num_threads(1)
warnings.filterwarnings("ignore")


def make_trainer(credit: str, steps: int, seed: int = 0) -> Any:
    """An SCGRPOTrainer on the settings of the `reach` recipe."""
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback
    from transformers.utils import logging

    from scgrpo.cli.arguments import parse_train
    from scgrpo.cli.setup import resolve_model
    from scgrpo.integrations.trl import SCGRPOTrainer
    from scgrpo.tasks import get_task
    from scgrpo.tasks.reward import reward_function

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    out = tempfile.mkdtemp()
    flags = ["--credit", credit, "--max_steps", str(steps), "--seed", str(seed), "--output_dir", out]
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


def summary(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f}, n={len(values)})"
