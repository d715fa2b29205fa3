"""Scoring inside the loss: between its forward and its backward, with its own hidden states.

TRL's loss calls the model, whose fused output head turns hidden states into log-probs and entropies. At that moment
the student's pass has been paid for: only the teacher's is missing, and one product with the output head gives
log-probs, entropies and the divergence together. Tokens without a teacher keep TRL's own kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scgrpo.credit import Credit, Evidence, Groups, Plan
from scgrpo.errors import ConfigError
from scgrpo.integrations.trl.compat import Kernel

_BATCH = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask")


def pending_advantages(groups: Groups, plan: Plan, first: int, advantages: Tensor) -> Tensor:
    """(B,) advantages until credit is assigned: NaN, so that a TRL that reads them too early cannot train on them.

    A rollout that is neither scored nor has an advantage gets none (see `check_left_out`) and may be left out.
    """
    scored = torch.zeros_like(groups.solved)
    scored[plan.rollout] = True
    pending = scored[first : first + len(advantages)] | (advantages != 0)
    return torch.where(pending, torch.nan, advantages)


def sampled_order(whole: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The batch in the order it was sampled in, and where each of its rows stands among those the loss has kept.

    TRL has shuffled the rows, and `kept` may lack those without a gradient: these are masked in the batch, and stand
    where another row is.
    """
    row = kept["credit_row"]
    place = torch.zeros(len(whole["credit_row"]), dtype=torch.long, device=row.device)
    place[row] = torch.arange(len(row), device=row.device)
    there = torch.zeros_like(place, dtype=torch.bool)
    there[row] = True
    sampled, width = whole["credit_row"].argsort(), kept["completion_ids"].shape[1]
    batch = {name: whole[name][sampled] for name in _BATCH if name in whole}
    batch |= {name: tensor[:, :width] for name, tensor in batch.items() if not name.startswith("prompt")}
    batch["completion_mask"] = batch["completion_mask"] * there[:, None]
    return batch, place


def padded_states(states: Tensor, present: Tensor) -> Tensor:
    """(B, T, H) from the states (n, H) of the tokens that are present, in order."""
    return states.new_zeros(*present.shape, states.shape[-1]).masked_scatter(present[..., None], states)


def completion_logps(
    evidence: Evidence,
    scored: Tensor,
    rows: Tensor,
    present: Tensor,
    states: Tensor,
    tokens: Tensor,
    kernel: Kernel,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies (n,) of the tokens that are present: the evidence's where there is any, else TRL's.

    Args:
        evidence: of what was scored; its log-probs and entropies have gradients.
        scored: (P, T) tokens it covers; rows: (P,) where its pairs stand in the inputs.
        present: (B, T); states (n, H) and tokens (n,) are of its True entries, in order.
    """
    covered = torch.zeros_like(present)
    covered[rows] = scored
    values = []
    for found in (evidence.student_logps, evidence.student_entropy):
        values.append(found.new_zeros(present.shape).index_put((rows,), found)[present])
    rest = ~covered[present]
    if bool(rest.any()):
        others = kernel(states[rest], tokens[rest])
        values = [mine.masked_scatter(rest, its.to(mine.dtype)) for mine, its in zip(values, others, strict=True)]
    return values[0], values[1]


def check_left_out(credit: Credit, first: int, rows: int, inputs: Mapping[str, Any]) -> None:
    """Rollouts left out of the loss for having no advantage must have been given none."""
    out = torch.ones(rows, dtype=torch.bool, device=credit.advantages.device)
    out[inputs["credit_row"]] = False
    wrong = out & credit.advantages[first : first + rows].ne(0).any(dim=1)
    if bool(wrong.any()):
        raise ConfigError(
            f"The credit method gave rollout {first + int(wrong.nonzero()[0])} an advantage, but it was neither "
            "scored nor had one, so drop_zero_advantages left it out.",
            "Set drop_zero_advantages=False, or teacher_timing='generation', for this method.",
        )
