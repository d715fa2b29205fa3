"""Run by test_trl_distillation_distributed.py, by itself or under torchrun: `worker.py FOLDER METHOD ...`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import build_model, build_tokenizer
from trl_harness import canned, make_trainer, parameters, prompt_rows

# Three groups of four over two processes of six rows: the second lies on both, and its only solved rollout on the
# first. The third has no teacher, so that the second process has fewer.
LETTERS = "SSFFSFFFFFFF"


def train(folder: Path, method: str, processes: int) -> dict[str, Any]:
    tokenizer = build_tokenizer()
    more: dict[str, Any] = {}
    if method == "opd":
        more["teacher_model_name_or_path"] = str(folder / "teacher")
        build_model(tokenizer, seed=5).save_pretrained(folder / "teacher")
        tokenizer.save_pretrained(folder / "teacher")
    trainer, seen = make_trainer(
        folder / "out",
        build_model(tokenizer),
        tokenizer,
        credit="of the method",
        method=method,
        completions=canned(LETTERS),
        rows=[{**row, "solution": f"a {row['number']}"} for row in prompt_rows(8)],
        per_device_train_batch_size=12 // processes,
        max_steps=3,
        **more,
    )
    trainer.train()
    return {
        "num_processes": trainer.accelerator.num_processes,
        "losses": seen.losses,
        "parameters": parameters(trainer.accelerator.unwrap_model(trainer.model)),
        "metrics": {k: v for k, v in trainer.state.log_history[1].items() if k.startswith("distill/")},
    }


def main() -> None:
    folder, methods = Path(sys.argv[1]), sys.argv[2:]
    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    torch.set_num_threads(1)
    seen = {method: train(folder / str(rank), method, processes) for method in methods}
    torch.save(seen, folder / f"seen-{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
