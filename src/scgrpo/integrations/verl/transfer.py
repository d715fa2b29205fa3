"""The few calls to TransferQueue, which holds verl's batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transfer_queue
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils

from scgrpo.integrations.verl.batch import FIELDS, Session


def read(batch: Any) -> TensorDict:
    """The fields of a batch that `batch.read_sessions` wants, those that are there."""
    return transfer_queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(FIELDS))


def read_advantages(batch: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Advantages, returns and mask of each row's response tokens."""
    names = ["advantages", "returns", "response_mask"]
    data = transfer_queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
    advantages, returns, masks = (list(data[name].unbind()) for name in names)
    return advantages, returns, masks


def write_advantages(batch: Any, advantages: Sequence[Tensor], returns: Sequence[Tensor]) -> Any:
    """Put them back; the batch with what is known of it now."""
    fields = {
        name: torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)
        for name, rows in (("advantages", advantages), ("returns", returns))
    }
    return _put(batch.keys, batch, TensorDict(fields, batch_size=len(batch.keys)))


@contextmanager
def set_apart(batch: Any, sessions: Sequence[Session]) -> Iterator[None]:
    """Each of these rollouts is a group of its own meanwhile, with reward 0; one without a reward keeps that."""
    rows = [(session, output) for session in sessions for output in session.outputs]
    if not rows:
        yield
        return
    keys = [batch.keys[output.row] for _, output in rows]
    apart = np.array([key.rsplit("_", 1)[0] for key in keys], dtype=object)
    rewards = [output.token_rewards.nan_to_num(0.0) for _, output in rows]
    own = np.array([session.uid for session, _ in rows], dtype=object)
    for uids, scores in ((apart, [torch.zeros_like(reward) for reward in rewards]), (own, rewards)):
        changed = {"uid": uids, "rm_scores": torch.nested.as_nested_tensor(scores, layout=torch.jagged)}
        _put(keys, batch, tensordict_utils.get_tensordict(changed))
        if uids is apart:
            yield


def _put(keys: Sequence[str], batch: Any, fields: TensorDict) -> Any:
    return transfer_queue.kv_batch_put(keys=list(keys), partition_id=batch.partition_id, fields=fields)
