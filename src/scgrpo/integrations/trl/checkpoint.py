"""What a checkpoint holds beyond TRL's: the teacher's weights, rollouts that are only partly trained on, how many
prompts dynamic sampling has drawn, and what training has cost.

Demonstrations are drawn from a stream named by seed and step, so no random state of ours needs saving. TRL forgets
its buffered rollouts at a checkpoint in the middle of a generation batch and samples new ones; with them, training
goes on bit by bit as if it had never stopped. Tensors are safetensors files; nothing is pickled.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scgrpo.errors import RunError
from scgrpo.teacher.weights import TeacherWeights

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_STATE, _TEACHER = "scgrpo_state.json", "scgrpo_teacher.safetensors"


def save_state(
    folder: Path,
    teacher: TeacherWeights,
    micro_step: int,
    buffered: list[dict[str, Any]] | None,
    rank: int,
    extra_prompts: int = 0,
    compute: Mapping[str, float] | None = None,
) -> None:
    """Write this process's part of the state beside the checkpoint of TRL.

    Args:
        micro_step: forward-backward passes done since the start.
        buffered: micro-batches of the current generation batch if some are still to be trained on, else None.
        extra_prompts: prompts drawn by dynamic sampling.
        compute: totals of the compute meter.
    """
    if buffered is not None:
        save_file(_flatten(buffered), folder / _rollouts_file(rank))
    if rank == 0:
        if teacher.state_dict():
            save_file({name: t.contiguous() for name, t in teacher.state_dict().items()}, folder / _TEACHER)
        state = {
            "schema_version": SCHEMA_VERSION,
            "micro_step": micro_step,
            "teacher_weights": teacher.kind,
            "extra_prompts": extra_prompts,
            "compute": dict(compute or {}),
        }
        (folder / _STATE).write_text(json.dumps(state))


def load_state(
    folder: Path, teacher: TeacherWeights, rank: int
) -> tuple[int, list[dict[str, Tensor]] | None, int, dict[str, float]]:
    """Restore what `save_state` wrote; returns the micro step, the buffered micro-batches, if any, the number of
    extra prompts, and the totals of the compute meter.

    Raises:
        RunError: the state was written by a newer version, or its teacher's weights are missing.
    """
    if not (folder / _STATE).exists():
        logger.warning("%s holds no scgrpo state: the teacher starts from the resumed policy.", folder)
        return 0, None, 0, {}
    state = json.loads((folder / _STATE).read_text())
    if state["schema_version"] > SCHEMA_VERSION:
        raise RunError(f"{folder / _STATE} was written by a newer version.", "Upgrade scgrpo to resume from it.")
    if teacher.kind != "current":
        if state["teacher_weights"] != teacher.kind or not (folder / _TEACHER).exists():
            raise RunError(
                f"{folder} was saved with teacher_weights={state['teacher_weights']}, not {teacher.kind}.",
                "Resume with the setting the run was started with.",
            )
        teacher.load_state_dict(load_file(folder / _TEACHER))
    rollouts = folder / _rollouts_file(rank)
    buffered = _unflatten(load_file(rollouts)) if rollouts.exists() else None
    return state["micro_step"], buffered, state.get("extra_prompts", 0), state.get("compute", {})


def _rollouts_file(rank: int) -> str:
    return f"scgrpo_rollouts_{rank}.safetensors"


def _flatten(micro_batches: list[dict[str, Any]]) -> dict[str, Tensor]:
    # Keys with value None are optional parts that this run does not have.
    return {
        f"{index}/{key}": value.detach().clone(memory_format=torch.contiguous_format)
        for index, micro_batch in enumerate(micro_batches)
        for key, value in micro_batch.items()
        if value is not None
    }


def _unflatten(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    micro_batches: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split("/", 1)
        micro_batches.setdefault(int(index), {})[key] = value
    return [micro_batches[index] for index in sorted(micro_batches)]
