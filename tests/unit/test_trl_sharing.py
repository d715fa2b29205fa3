"""Which set-ups split the weights among processes, and so need everyone for every forward."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import DistributedType

from scgrpo.integrations.trl.evidence import offloads_weights, shares_weights


def accelerator(kind: DistributedType, stage: int = 0, offload: dict[str, Any] | None = None) -> Any:
    settings: dict[str, Any] = {"stage": stage}
    if offload is not None:
        settings["offload_param"] = offload
    plugin = SimpleNamespace(zero_stage=stage, deepspeed_config={"zero_optimization": settings})
    return SimpleNamespace(distributed_type=kind, state=SimpleNamespace(deepspeed_plugin=plugin))


@pytest.mark.parametrize(
    ("kind", "stage", "shared"),
    [
        (DistributedType.NO, 0, False),
        (DistributedType.MULTI_CPU, 0, False),
        (DistributedType.MULTI_GPU, 0, False),
        (DistributedType.FSDP, 0, True),
        (DistributedType.DEEPSPEED, 0, False),
        (DistributedType.DEEPSPEED, 2, False),
        (DistributedType.DEEPSPEED, 3, True),
    ],
)
def test_weights_are_shared_under_fsdp_and_zero3_alone(kind: DistributedType, stage: int, shared: bool) -> None:
    assert shares_weights(accelerator(kind, stage)) is shared


@pytest.mark.parametrize(
    ("offload", "found"), [(None, False), ({}, False), ({"device": "none"}, False), ({"device": "cpu"}, True)]
)
def test_weights_kept_elsewhere_are_noticed(offload: dict[str, Any] | None, found: bool) -> None:
    assert offloads_weights(accelerator(DistributedType.DEEPSPEED, 3, offload)) is found
    assert not offloads_weights(accelerator(DistributedType.FSDP, 0, offload))
