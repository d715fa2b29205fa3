"""Run by test_trl_distributed.py, by itself or under torchrun: `worker.py FOLDER PATTERN:LOSS_TYPE ...`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import build_model, build_tokenizer
from trl_harness import canned, make_trainer, parameters

from scgrpo.teacher.models import backbone


def train(out: Path, pattern: str, loss_type: str, processes: int) -> dict[str, Any]:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    trainer, seen = make_trainer(
        out,
        model,
        tokenizer,
        completions=canned(pattern),
        per_device_train_batch_size=12 // processes,
        num_generations=4,
        max_steps=2,
        loss_type=loss_type,
    )
    forwards: list[int] = []
    backbone(model).register_forward_hook(lambda *_: forwards.append(1))
    trainer.train()
    scored = seen.scored
    return {
        "num_processes": trainer.accelerator.num_processes,
        "distributed_type": trainer.accelerator.distributed_type.value,
        "forwards": len(forwards),
        "advantages": [s.credit.advantages for s in scored],
        "weights": [s.credit.weights for s in scored],
        "route": [s.credit.route for s in scored],
        "token_kl": [s.evidence.token_kl for s in scored],
        "rollout": [s.plan.rollout for s in scored],
        "demonstration": [s.plan.demonstration for s in scored],
        "losses": seen.losses,
        "parameters": parameters(model),
        "metrics": {k: v for k, v in trainer.state.log_history[0].items() if k.startswith("credit/")},
    }


def main() -> None:
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    torch.set_num_threads(1)
    seen = {case: train(folder / "out", *case.split(":"), processes) for case in cases}
    torch.save(seen, folder / f"seen-{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
