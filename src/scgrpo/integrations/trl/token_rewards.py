"""Rewards per token: the outcome at the last token, less the KL to the reference where it belongs to the reward.

TRL knows the KL to a reference as a term of the loss. With `kl_in_reward` its reference model and `beta` serve the
reward instead, as in PPO and REINFORCE++: `-beta * (log pi_old(y_t) - log pi_ref(y_t))` at every token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def outcomes(rewards: Float[Tensor, "n funcs"], weights: Float[Tensor, " funcs"]) -> Float[Tensor, " n"]:
    """TRL's weighted sum of the functions that gave a reward; NaN where none did."""
    total = (rewards * weights.to(rewards)).nansum(dim=1)
    return total.masked_fill(rewards.isnan().all(dim=1), torch.nan)


def token_rewards(
    outcome: Float[Tensor, " n"], mask: Bool[Tensor, "n t"], penalty: Float[Tensor, "n t"] | None
) -> Float[Tensor, "n t"]:
    """The outcome at the last counted token, less the penalty at each; rows without an outcome are NaN."""
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    rewards = outcome[:, None] * last
    if penalty is not None:
        rewards = rewards - penalty * mask
    return rewards.masked_fill(outcome.isnan()[:, None], torch.nan)


def reference_penalty(trainer: Any, batch: dict[str, Any]) -> Float[Tensor, "b t"] | None:
    """(B, T) of this process; None where the KL is no part of the reward."""
    if not trainer.args.kl_in_reward or trainer.beta == 0:
        return None
    old = batch.get("old_per_token_logps")
    if old is None:  # TRL leaves them out where the loss computes the same
        ids, mask = (torch.cat([batch[f"prompt_{x}"], batch[f"completion_{x}"]], dim=1) for x in ("ids", "mask"))
        with torch.no_grad():
            old = trainer._get_per_token_logps_and_entropies(
                *(trainer.model, ids, mask, batch["completion_ids"].shape[1]),
                batch_size=trainer.args.per_device_train_batch_size,
            )[0]
    return trainer.beta * (old - batch["ref_per_token_logps"])


@contextmanager
def loss_without_kl(trainer: Any) -> Iterator[None]:
    """Inside, TRL's loss has no KL term if the rewards have it."""
    beta = trainer.beta
    trainer.beta = 0.0 if trainer.args.kl_in_reward else beta
    try:
        yield
    finally:
        trainer.beta = beta
