"""Run by test_trl_distributed.py, by itself or under torchrun: `worker.py FOLDER PATTERN:LOSS_TYPE:MODEL ...`.

With ACCELERATE_USE_FSDP=true the model is really sharded by FSDP2, with ACCELERATE_USE_DEEPSPEED=true by ZeRO-3.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import build_model, build_tokenizer
from peft import LoraConfig
from sharding import ZERO3, gathered, is_on, shard_on_the_cpu, whole
from trl_harness import canned, make_trainer

from scgrpo.teacher.models import backbone


def completions_of(pattern: str, kind: str) -> Callable[[int, int], list[int]]:
    plain, refill = canned(pattern), canned("FFFFSSSFSFFF")
    return lambda batch, row: (refill if kind == "refilled" and batch % 2 else plain)(batch, row)


def train(out: Path, pattern: str, loss_type: str, kind: str, processes: int) -> dict[str, Any]:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, tie_word_embeddings=kind != "untied")
    lora = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    trainer, seen = make_trainer(
        out,
        model,
        tokenizer,
        completions=completions_of(pattern, kind),
        per_device_train_batch_size=12 // processes,
        num_generations=4,
        max_steps=4 if kind == "twice" else 2,
        num_iterations=2 if kind == "twice" else 1,
        loss_type=loss_type,
        dynamic_sampling_max_rounds=int(kind == "refilled"),
        credit=kind if kind in ("entropy", "rlcsd_weight") else "sc_grpo",
        trainer_options={"peft_config": LoraConfig(**lora)} if kind == "lora" else {},
        **({"use_cpu": False, "deepspeed": ZERO3} if is_on("DEEPSPEED") else {}),
    )
    passes: list[list[int]] = []  # tokens of each pass without gradient, by generation batch

    def count(_: Any, args: Any, inputs: dict[str, Any], output: Any) -> None:
        if not torch.is_grad_enabled():
            passes[-1].append(inputs["input_ids"].numel())

    def generate(inputs: Any, plain: Any = trainer._generate_and_score_completions) -> Any:
        passes.append([])
        return plain(inputs)

    trainer._generate_and_score_completions = generate
    backbone(model).register_forward_hook(count, with_kwargs=True)
    kept: list[list[str]] = []
    trainer.listeners.append(lambda _: kept.append(gathered(model)))
    trainer.train()
    scored = seen.scored
    return {
        "num_processes": trainer.accelerator.num_processes,
        "distributed_type": trainer.accelerator.distributed_type.value,
        "passes": passes,
        "gathered_after_scoring": kept,
        "gathered_after_training": gathered(model),
        "advantages": [s.credit.advantages for s in scored],
        "weights": [s.credit.weights for s in scored],
        "route": [s.credit.route for s in scored],
        "token_kl": [s.evidence.token_kl for s in scored],
        "rollout": [s.plan.rollout for s in scored],
        "demonstration": [s.plan.demonstration for s in scored],
        "losses": seen.losses,
        "parameters": whole(model),
        "metrics": {k: v for k, v in trainer.state.log_history[0].items() if k.startswith("credit/")},
        "compute": trainer.meter.totals,
    }


def main() -> None:
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    torch.set_num_threads(1)
    shard_on_the_cpu()
    seen = {case: train(folder / "out", *case.split(":"), processes) for case in cases}
    torch.save(seen, folder / f"seen-{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
