"""What lets accelerate split a model between CPU processes, for workers of tests: it means to on accelerators."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from trl_harness import parameters

ZERO3: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_allow_untested_optimizer": True,
    # Nothing is too small to be split, and no layer is kept whole because it is used again soon.
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0},
}


# Seconds a process waits for another.
GROUP_PATIENCE = 240


def is_on(name: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{name}") == "true"


def shard_on_the_cpu() -> None:
    """As the environment asks for, with a process group that does not wait for ever: accelerate takes one that there
    is, and gives its own half an hour on a CPU, whatever `ddp_timeout` says."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not is_on("DEEPSPEED"):
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=GROUP_PATIENCE))
    if is_on("FSDP"):
        _let_fsdp_shard()
    if is_on("DEEPSPEED"):
        _let_deepspeed_shard()


def _let_fsdp_shard() -> None:
    """accelerate silently ignores FSDP for processes on a CPU: let it take them for processes on a GPU where it
    decides."""
    from accelerate import state
    from accelerate.utils import DistributedType

    plain = state.AcceleratorState.__init__

    def patched(self: Any, *args: Any, **kwargs: Any) -> None:
        shared = state.PartialState(cpu=True)._shared_state
        if shared["distributed_type"] == DistributedType.MULTI_CPU:
            shared["distributed_type"] = DistributedType.MULTI_GPU
        plain(self, *args, **kwargs)

    state.AcceleratorState.__init__ = patched


def _let_deepspeed_shard() -> None:
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
