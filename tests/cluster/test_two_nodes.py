"""The whole of it over two Ray nodes, simulated on one machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import LONG, as_overrides, settings, started
from toy import Inputs


@pytest.mark.nightly
def test_two_steps_on_two_nodes(inputs: Inputs, tmp_path: Path) -> None:
    here = {
        "trainer.nnodes": 2,
        "trainer.n_gpus_per_node": 1,
        "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,  # a server on each node
        "ray_kwargs.ray_init.num_cpus": None,  # the nodes say what they have
        "+ray_kwargs.ray_init.num_gpus": None,
        "+ray_kwargs.ray_init.object_store_memory": None,
    }
    values = settings(inputs, tmp_path, mode="scgrpo") | here
    with started(tmp_path, as_overrides(values), environment={"DRIVER_NODES": "2"}) as run:
        run.wait_for("Training Progress", LONG)
        nodes = {run.parent(worker) for worker in run.processes("ray::WorkerDict")}
        code = run.wait(LONG)
    assert code == 0, run.output[-6000:]
    assert len(nodes) == 2  # one worker under each node's raylet
    assert [entry["training/global_step"] for entry in run.metrics] == [1, 2]
    assert any(entry["credit/demonstration_frac"] > 0 for entry in run.metrics)
