"""Like `python -m verl.trainer.main_ppo`, on two simulated Ray nodes of one "GPU" each."""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster
from verl.trainer.main_ppo import main

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": 1})
    cluster.add_node(num_cpus=8, num_gpus=1)
    sys.argv.append(f"+ray_kwargs.ray_init.address={cluster.address!r}")
    try:
        main()
    finally:
        cluster.shutdown()
