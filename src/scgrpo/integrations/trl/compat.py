"""Everything this package knows about the insides of TRL, in one place.

TRL promises stability for its documented API only. Three of the methods overridden in `trainer.py` have kept their
signatures from 0.24 to 1.16, and `_compute_loss` accepts (B, T) advantages on purpose; the fourth, which computes
log-probs, and the fused output head behind it are younger. `check_host` makes sure of all of them before anything is
trained.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import trl
import trl.trainer.utils as trl_utils
from jaxtyping import Int
from torch import Tensor, nn
from trl import GRPOTrainer

from scgrpo.errors import IncompatibleHostError

_OVERRIDDEN = {
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_compute_loss": ["self", "model", "inputs"],
    "_get_per_token_logps_and_entropies": ["self", "model", "input_ids", "attention_mask", "logits_to_keep"],
}
_HEAD = ["ctx", "hidden", "weight", "bias", "targets"]
_TESTED = "Install a tested version: pip install 'trl>=1.16,<1.17'."

# (states (n, H), tokens (n,)) -> log-probs (n,), entropies (n,) in nats
Kernel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def check_host(trainer_class: type = GRPOTrainer) -> None:
    """Raise IncompatibleHostError unless TRL still offers the seams this package builds on."""
    for name, expected in _OVERRIDDEN.items():
        method = getattr(trainer_class, name, None)
        found = list(inspect.signature(method).parameters) if method else None
        # TRL passes what follows these by name.
        if found is None or found[: len(expected)] != expected:
            raise IncompatibleHostError(
                f"trl {trl.__version__}: GRPOTrainer.{name} takes {found}, expected {expected}.", _TESTED
            )
    source = inspect.getsource(trainer_class._compute_loss)  # type: ignore[attr-defined]
    if "advantages.dim() == 1" not in source:
        raise IncompatibleHostError(
            f"trl {trl.__version__}: GRPOTrainer._compute_loss no longer accepts per-token advantages.", _TESTED
        )


def check_fused_head() -> None:
    """Raise IncompatibleHostError unless `completions_scored_by` can stand in for TRL's output head."""
    kernel = getattr(trl_utils, "_ChunkedLogProbFunction", None)
    found = list(inspect.signature(kernel.forward).parameters)[: len(_HEAD)] if kernel else None
    if found != _HEAD:
        raise IncompatibleHostError(
            f"trl {trl.__version__}: the fused output head takes {found}, expected {_HEAD}.",
            f"Set teacher_timing='generation'. {_TESTED}",
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


@contextmanager
def completions_scored_by(
    head: Callable[[Tensor, Tensor, Kernel], tuple[Tensor, Tensor]],
    attention_mask: Int[Tensor, "b s"],
    logits_to_keep: int,
) -> Iterator[None]:
    """Inside, TRL's fused output head leaves the completion tokens of its next forward to `head`.

    Args:
        head: (states (n, H), tokens (n,), TRL's own kernel) -> log-probs (n,), entropies (n,) with gradients.
        attention_mask, logits_to_keep: as given to `_get_per_token_logps_and_entropies`; they say which tokens count.
    """
    completion = attention_mask.bool().clone()
    completion[:, :-logits_to_keep] = False
    counted = completion[:, 1:].flatten()
    own = trl_utils._ChunkedLogProbFunction

    class Redirected:
        @staticmethod
        def apply(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *settings: Any) -> Any:
            def kernel(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
                return own.apply(states, weight, bias, tokens, *settings)[:2]

            if len(hidden) == len(counted):  # without Triton, TRL scores every position of prompts and padding too
                some = head(hidden[counted], targets[counted], kernel)
                logps, entropies = (x.new_zeros(len(counted)).masked_scatter(counted, x) for x in some)
            else:
                logps, entropies = head(hidden, targets, kernel)
            return logps, entropies, None, None, None

    trl_utils._ChunkedLogProbFunction = Redirected
    try:
        yield
    finally:
        trl_utils._ChunkedLogProbFunction = own


def completions_table(logs: Mapping[str, Any]) -> dict[str, deque[Any]]:
    """The columns of TRL's table of completions by name: rows of the last generation batch, in gathered order."""
    columns: dict[str, deque[Any]] = {}
    for name, column in logs.items():
        inner = column.items() if isinstance(column, Mapping) else [("", column)]
        columns |= {f"{name}/{key}": values for key, values in inner}
    return columns
