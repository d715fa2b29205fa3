"""TRL's generation batch as a credit method sees it: all rollouts of all processes, in gathered order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor

from scgrpo.credit import Evidence, Groups, Plan
from scgrpo.integrations.rollouts import Rollouts
from scgrpo.integrations.trl.token_rewards import outcomes, token_rewards


@dataclass(frozen=True)
class Uncredited:
    """A generation batch whose plan is made and whose rollouts are not scored yet. `past`: see `Groups.past`."""

    rollouts: Rollouts
    groups: Groups
    plan: Plan
    past: Sequence[Any] = ()


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
    reward_weights: Float[Tensor, " funcs"],
    penalty: Float[Tensor, "b t"] | None = None,
    step: int = 0,
) -> Groups:
    """Groups of the whole generation batch, the same on every process.

    Args:
        complete_ids: a completion that does not end with one of these was cut off.
        micro_batch: (B,) of this process.
        penalty: (B, T) of this process, to be taken off the rewards of its tokens.
        step: optimizer steps done.
    """
    device = accelerator.device
    mask = batch["completion_mask"] * batch.get("tool_mask", 1)
    local = torch.stack(
        [
            torch.tensor([len(ids) for ids in rollouts.completion_ids], device=device),
            torch.tensor([not ids or ids[-1] not in complete_ids for ids in rollouts.completion_ids], device=device),
            micro_batch.to(device) + accelerator.process_index * (int(micro_batch.max()) + 1),
            torch.tensor(rollouts.first_error or [-1] * len(micro_batch), device=device),
        ],
        dim=1,
    )
    lengths, truncated, micro, wrong_from = accelerator.gather(local).unbind(1)

    def of_all(tokens: Tensor) -> Tensor:
        return accelerator.gather(accelerator.pad_across_processes(tokens, dim=1))

    mask = of_all(mask).bool()
    outcome = outcomes(rollouts.rewards, reward_weights)
    verdict = rollouts.rewards[:, success]
    return Groups(
        group=torch.arange(len(verdict), device=device) // num_generations,
        solved=verdict >= success_threshold,  # False for NaN
        graded=~verdict.isnan(),
        truncated=truncated.bool(),
        lengths=lengths,
        mask=mask,
        advantages=accelerator.gather(batch["advantages"]),
        micro_batch=micro,
        rewards=token_rewards(outcome, mask, None if penalty is None else of_all(penalty)),
        step=step,
        completion_ids=of_all(batch["completion_ids"]),
        first_error=None if rollouts.first_error is None else wrong_from,
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
