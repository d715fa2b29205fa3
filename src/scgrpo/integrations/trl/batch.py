"""TRL's generation batch as a credit method sees it: all rollouts of all processes, in gathered order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor

from scgrpo.credit import Credit, Evidence, Groups, Plan
from scgrpo.teacher.prompts import Demonstration, Prompt


@dataclass(frozen=True)
class Rollouts:
    """What TRL knows while it grades and then drops. Lists are this process's; rewards are of all processes.

    Attributes:
        inputs: dataset rows; prompts, completions: strings or messages; completion_ids: unpadded token ids.
        rewards: (N, functions), NaN where a function gave no verdict.
    """

    inputs: Sequence[Mapping[str, Any]]
    prompts: Sequence[Prompt]
    completions: Sequence[Any]
    completion_ids: Sequence[Sequence[int]]
    rewards: Float[Tensor, "n funcs"]


@dataclass(frozen=True)
class Uncredited:
    """A generation batch whose plan is made and whose rollouts are not scored yet. `past`: see `Groups.past`."""

    rollouts: Rollouts
    groups: Groups
    plan: Plan
    past: Sequence[Any] = ()


@dataclass(frozen=True)
class ScoredBatch:
    """One generation batch with its credit, handed to every listener of the trainer (`trainer.listeners`).

    `groups`, `plan`, `evidence` and `credit` are of all processes; this one holds rows `first` ... of them.

    Attributes:
        step: optimizer steps done when the batch was generated.
        prompt_ids, teacher_prompt_ids: token ids; the latter by pair number of the plan, this process's pairs.
        demonstrations: by row number of the demonstration, those this process used.
    """

    step: int
    first: int
    rollouts: Rollouts
    reward_names: Sequence[str]
    prompt_ids: Sequence[Sequence[int]]
    groups: Groups
    plan: Plan
    evidence: Evidence
    credit: Credit
    demonstrations: Mapping[int, Demonstration]
    teacher_prompt_ids: Mapping[int, Sequence[int]]


def gather_groups(
    accelerator: Accelerator,
    batch: Mapping[str, Tensor],
    rollouts: Rollouts,
    *,
    num_generations: int,
    success: int,
    success_threshold: float,
    complete_ids: set[int],
    micro_batch: Int[Tensor, " b"],
    step: int = 0,
    first_error: Sequence[int] | None = None,
) -> Groups:
    """Groups of the whole generation batch, the same on every process.

    Args:
        complete_ids: a completion that does not end with one of these was cut off.
        micro_batch: (B,) of this process.
        step: optimizer steps done.
        first_error: see `Groups.first_error`; of this process, and None on all processes or on none.
    """
    device = accelerator.device
    mask = batch["completion_mask"] * batch.get("tool_mask", 1)
    local = torch.stack(
        [
            torch.tensor([len(ids) for ids in rollouts.completion_ids], device=device),
            torch.tensor([not ids or ids[-1] not in complete_ids for ids in rollouts.completion_ids], device=device),
            micro_batch.to(device) + accelerator.process_index * (int(micro_batch.max()) + 1),
            torch.tensor(first_error or [-1] * len(micro_batch), device=device),
        ],
        dim=1,
    )
    lengths, truncated, micro, wrong_from = accelerator.gather(local).unbind(1)
    verdict = rollouts.rewards[:, success]
    return Groups(
        group=torch.arange(len(verdict), device=device) // num_generations,
        solved=verdict >= success_threshold,  # False for NaN
        graded=~verdict.isnan(),
        truncated=truncated.bool(),
        lengths=lengths,
        mask=accelerator.gather(accelerator.pad_across_processes(mask, dim=1)).bool(),
        advantages=accelerator.gather(batch["advantages"]),
        micro_batch=micro,
        step=step,
        completion_ids=accelerator.gather(accelerator.pad_across_processes(batch["completion_ids"], dim=1)),
        first_error=None if first_error is None else wrong_from,
    )


def share_evidence(
    accelerator: Accelerator, local: Evidence, mine: Sequence[int], pairs: int, width: int
) -> Evidence:
    """Evidence of all pairs from what each process scored: pairs `mine` of this one, padded to `width` tokens."""
    fields = (local.token_kl, local.teacher_logps, local.student_logps, local.student_entropy)
    stacked = torch.stack([field.detach() for field in fields])
    whole = stacked.new_zeros(4, pairs, width)
    whole[:, mine, : stacked.shape[2]] = stacked
    if accelerator.num_processes > 1:
        whole = accelerator.reduce(whole, reduction="sum")  # every pair is zero on all processes but one
    return Evidence(*whole)
