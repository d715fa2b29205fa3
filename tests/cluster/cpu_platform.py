"""Lets verl run on a CPU: a platform whose device is `cpu`, and the toy rollout engine `hf_cpu`.

For tests only. verl imports this module in every process that imports verl (`VERL_USE_EXTERNAL_MODULES`). "GPUs" are
logical Ray resources here; collectives go over gloo.
"""

from __future__ import annotations

import contextlib
import types
from typing import Any

import torch
import torch.distributed as dist
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry
from verl.workers.rollout.base import _ROLLOUT_REGISTRY
from verl.workers.rollout.replica import RolloutReplicaRegistry

ROOM = 16 * 2**30  # bytes of "device memory" that are always free


class _Device(types.ModuleType):
    """Stands for `torch.cuda`: the few answers verl reads, and nothing for the rest."""

    get_rng_state = staticmethod(torch.get_rng_state)
    set_rng_state = staticmethod(torch.set_rng_state)

    def is_available(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> str:
        return "cpu"

    def get_device_name(self, index: int = 0) -> str:
        return "CPU"

    def mem_get_info(self, *args: Any) -> tuple[int, int]:
        return ROOM, ROOM

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: 0 if "memory" in name else None


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: _Device("cpu_device"))

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:  # type: ignore[override]
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg: str) -> Any:
        return contextlib.nullcontext()

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> Any:
        return None


def _replica() -> type:
    from hf_rollout import HFReplica

    return HFReplica


_ROLLOUT_REGISTRY[("hf_cpu", "async")] = "hf_rollout.ServerAdapter"
RolloutReplicaRegistry.register("hf_cpu", _replica)

# verl asks for "cpu:gloo,<device>:<backend>", which names the CPU twice here.
_init_process_group = dist.init_process_group


def _init_gloo(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
    _init_process_group("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)


dist.init_process_group = _init_gloo
