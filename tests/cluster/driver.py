"""Like `python -m verl.trainer.main_ppo`, in two ways of its own.

`DRIVER_FORKS=1`: Ray's workers are forked, with what they import first (forked_workers.py).
`DRIVER_NODES=2`: on so many simulated Ray nodes, of one "GPU" each.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from typing import Any

import forked_workers

# What verl imports of others and takes nine tenths of the time. Nothing of Ray's: it reads the environment early.
HEAVY = (
    *("torch", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor", "torch._dynamo"),
    *("transformers", "transformers.models.auto.modeling_auto", "transformers.models.qwen3.modeling_qwen3"),
    *("accelerate", "aiohttp", "datasets", "fastapi", "hydra", "numpy", "pandas", "peft", "pydantic", "tensordict"),
    *("torchdata.stateful_dataloader", "uvicorn", "zmq"),
)


def fork_workers() -> None:
    for name in HEAVY:
        importlib.import_module(name)
    folder = tempfile.mkdtemp(dir=os.environ["RAY_TMPDIR"])
    os.environ[forked_workers.SOCKET] = os.path.join(folder, "socket")
    forked_workers.serve(os.environ[forked_workers.SOCKET])
    python = forked_workers.interpreter(folder)

    from ray._private import services

    start = services.start_raylet

    def start_raylet(*args: Any, **kwargs: Any) -> Any:
        own, sys.executable = sys.executable, python
        try:
            return start(*args, **kwargs)
        finally:
            sys.executable = own

    services.start_raylet = start_raylet


def start_nodes(count: int) -> str:
    """The address of a cluster of simulated nodes. It ends with this process."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": 1})
    for _ in range(count - 1):
        cluster.add_node(num_cpus=8, num_gpus=1)
    return str(cluster.address)


if __name__ == "__main__":
    if os.environ.get("DRIVER_FORKS") == "1":
        fork_workers()
    if nodes := int(os.environ.get("DRIVER_NODES", "0")):
        sys.argv.append(f"+ray_kwargs.ray_init.address='{start_nodes(nodes)}'")
    from verl.trainer.main_ppo import main

    main()
