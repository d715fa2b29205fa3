"""Everything this package knows about the insides of TRL, in one place.

TRL promises stability for its documented API only. The three methods overridden in `trainer.py` have kept their
signatures from 0.24 to 1.16, and `_compute_loss` accepts (B, T) advantages on purpose; `check_host` makes sure both
still hold before anything is trained.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import trl
from jaxtyping import Int
from torch import Tensor, nn
from trl import GRPOTrainer
from trl.models.utils import _ForwardRedirection

from scgrpo.errors import IncompatibleHostError

_OVERRIDDEN = {
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_compute_loss": ["self", "model", "inputs"],
}


def check_host(trainer_class: type = GRPOTrainer) -> None:
    """Raise IncompatibleHostError unless TRL still offers the seams this package builds on."""
    for name, expected in _OVERRIDDEN.items():
        method = getattr(trainer_class, name, None)
        found = list(inspect.signature(method).parameters) if method else None
        if found != expected:
            raise IncompatibleHostError(
                f"trl {trl.__version__}: GRPOTrainer.{name} takes {found}, expected {expected}.",
                "Install a tested version: pip install 'trl>=1.16,<1.17'.",
            )
    if "advantages.dim() == 1" not in inspect.getsource(trainer_class._compute_loss):  # type: ignore[attr-defined]
        raise IncompatibleHostError(
            f"trl {trl.__version__}: GRPOTrainer._compute_loss no longer accepts per-token advantages.",
            "Install a tested version: pip install 'trl>=1.16,<1.17'.",
        )


def upcoming_micro_batches(rows: int, num_micro_batches: int) -> Int[Tensor, " b"]:
    """(B,) micro-batch each row of a generation batch is about to be put in.

    Right after scoring, TRL shuffles the rows with `torch.randperm` and cuts them into equal parts. Drawing the
    same permutation from the same state, and putting the state back, tells the parts in advance; the loss then
    checks that they came true.
    """
    state = torch.get_rng_state()
    order = torch.randperm(rows)
    torch.set_rng_state(state)
    micro_batch = torch.empty(rows, dtype=torch.long)
    micro_batch[order] = torch.arange(rows) // (rows // num_micro_batches)
    return micro_batch


@contextmanager
def captured_hidden_states(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the last hidden states of every forward of the backbone."""
    states: list[Tensor] = []
    handle = backbone.register_forward_hook(lambda _module, _args, out: states.append(out.last_hidden_state))
    try:
        yield states
    finally:
        handle.remove()


def through_wrapper(wrapper: nn.Module, model: nn.Module) -> Callable[[Callable[[], Any]], Any]:
    """Runs a function inside the distributed wrapper's forward, where sharded parameters are gathered."""
    redirection = _ForwardRedirection()
    return lambda score: redirection(wrapper, model, lambda: score())
