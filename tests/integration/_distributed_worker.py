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
from torch.distributed.tensor import DTensor
from trl_harness import canned, make_trainer, parameters

from scgrpo.teacher.models import backbone

ZERO3: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_allow_untested_optimizer": True,
    # Nothing is too small to be split, and no layer is kept whole because it is used again soon.
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0},
}


def is_on(name: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{name}") == "true"


def let_fsdp_shard_on_the_cpu() -> None:
    """accelerate shards on accelerators only, and silently ignores FSDP for processes on a CPU: let it take them for
    processes on a GPU where it decides."""
    from accelerate import state
    from accelerate.utils import DistributedType

    plain = state.AcceleratorState.__init__

    def patched(self: Any, *args: Any, **kwargs: Any) -> None:
        shared = state.PartialState(cpu=True)._shared_state
        if shared["distributed_type"] == DistributedType.MULTI_CPU:
            shared["distributed_type"] = DistributedType.MULTI_GPU
        plain(self, *args, **kwargs)

    state.AcceleratorState.__init__ = patched


def let_deepspeed_shard_on_the_cpu() -> None:
    """accelerate starts DeepSpeed unless told to use the CPU, and then finds no device: name it."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_CPU)


def whole(model: Any) -> dict[str, torch.Tensor]:
    """The parameters, put together."""
    if is_on("DEEPSPEED"):
        from deepspeed import zero

        with zero.GatheredParameters(list(model.parameters())):
            return parameters(model)
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in parameters(model).items()
    }


def gathered(model: Any) -> list[str]:
    """Parameters of which this process holds more than its shard."""

    def is_shard(value: torch.Tensor) -> bool:
        return isinstance(value, DTensor) or (hasattr(value, "ds_id") and value.numel() == 0)

    return [name for name, value in model.named_parameters() if not is_shard(value)]


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
    if is_on("FSDP"):
        let_fsdp_shard_on_the_cpu()
    if is_on("DEEPSPEED"):
        let_deepspeed_shard_on_the_cpu()
    seen = {case: train(folder / "out", *case.split(":"), processes) for case in cases}
    torch.save(seen, folder / f"seen-{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
