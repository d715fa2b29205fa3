"""Which set-ups split the weights among processes, and so need everyone for every forward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import DistributedType
from trl_harness import make_trainer

from scgrpo.integrations.trl.evidence import offloads_weights, shares_weights
from scgrpo.integrations.trl.setup import completion_states


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


@pytest.mark.parametrize(
    ("layers", "alone", "sharded"),
    [
        (["full_attention"] * 2, ("packed", "cached", "off"), ("packed", "off")),
        # Whether a packed forward breaks off at a window depends on each process's own rows.
        (["full_attention", "sliding_attention"], ("packed", "cached", "off"), ("off",)),
    ],
)
def test_sharing_that_may_run_unequal_forwards_is_not_tried_on_shared_weights(
    make_model: Callable[..., Any], tokenizer: Any, tmp_path: Path, layers: list[str], alone: Any, sharded: Any
) -> None:
    model = make_model(layer_types=layers, use_sliding_window=True, sliding_window=16)
    trainer, _ = make_trainer(tmp_path, model, tokenizer)
    assert completion_states(trainer, model, sharded=False).candidates == alone
    assert completion_states(trainer, model, sharded=True).candidates == sharded
