"""The conditioned pass on verl, seen from the driver: pairs in, evidence out. `engine.py` is the workers' half.

A pair is one row of a batch, `[student prompt, y, teacher prompt, y]`: verl's balancing and its dynamic batch sizes
count it as one unit, and its halves are never on two processes. Only floats of scored tokens travel back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.seqlen_balancing import calculate_workload, ceildiv, get_seqlen_balanced_partitions

from scgrpo.credit import Evidence
from scgrpo.divergence import Divergence
from scgrpo.errors import ConfigError, IncompatibleHostError, NonFiniteError, ShapeError

# Name under which a batch carries the settings of the divergence; to the engine it says that this is such a pass.
PASS = "scgrpo_pass"
FIELDS = tuple(field.name for field in fields(Evidence))


@dataclass(frozen=True)
class Pair:
    """The same completion under two prompts.

    Attributes:
        student_ids: the prompt as it was sampled from. teacher_ids: the prompt with the demonstration; if it is the
            same, token_kl is exactly 0 and no second sequence is run.
        completion_ids: the sampled tokens. mask: which of them to score, at least one.

    Raises:
        ShapeError: an empty prompt, a mask of another length than the completion, or nothing to score.
    """

    student_ids: Sequence[int]
    teacher_ids: Sequence[int]
    completion_ids: Sequence[int]
    mask: Sequence[bool]

    def __post_init__(self) -> None:
        if not len(self.student_ids) or not len(self.teacher_ids):
            raise ShapeError(
                "A prompt of a pair has no tokens, so nothing predicts the first completion token.",
                "Give every prompt at least one token, for example the beginning-of-sequence token.",
            )
        if len(self.mask) != len(self.completion_ids) or not any(self.mask):
            raise ShapeError(
                f"A pair has {len(self.completion_ids)} completion tokens and a mask of {len(self.mask)}, "
                f"{sum(map(bool, self.mask))} of them to score.",
                "Give one flag per completion token, and leave out rollouts without any token to score.",
            )

    @property
    def alone(self) -> bool:
        """No demonstration: the teacher is the student."""
        return list(self.student_ids) == list(self.teacher_ids)

    def row(self) -> dict[str, Tensor]:
        """Ids, positions and mask of the pair's one or two sequences, one after another.

        What follows the last token to score (tool output at the end, say) is left out: no score needs it.
        """
        flags = [bool(flag) for flag in self.mask]
        end = len(flags) - flags[::-1].index(True)
        prompts = [self.student_ids] if self.alone else [self.student_ids, self.teacher_ids]
        lengths = [len(prompt) + end for prompt in prompts]
        ids = chain.from_iterable(chain(prompt, self.completion_ids[:end]) for prompt in prompts)
        marks = chain.from_iterable(chain([False] * len(prompt), flags[:end]) for prompt in prompts)
        return {
            "input_ids": torch.tensor(list(ids)),
            "position_ids": torch.cat([torch.arange(length) for length in lengths]),
            "loss_mask": torch.tensor(list(marks)).long(),
            "student_length": torch.tensor(lengths[0]),
        }


def score_pairs(
    worker_group: Any,
    pairs: Sequence[Pair],
    width: int,
    *,
    temperature: float,
    divergence: Divergence,
    max_token_len_per_gpu: int | None = None,
    micro_batch_size_per_gpu: int | None = None,
) -> Evidence:
    """Evidence (P, `width`) of P pairs by the actor's live weights, fp32, 0 where the mask is False.

    Args:
        worker_group: verl's actor workers.
        width: tokens of the longest completion.
        temperature: as in sampling.
        max_token_len_per_gpu: dynamic batch sizes: tokens of one forward (`log_prob_max_token_len_per_gpu`), raised
            to the longest pair, which cannot be split.
        micro_batch_size_per_gpu: fixed ones instead: sequences of one forward (`log_prob_micro_batch_size_per_gpu`);
            a pair has two, and at least one pair is run.

    Raises:
        NonFiniteError: a logit is NaN or infinite; names pair and completion token.
        IncompatibleHostError: the workers run an engine that does not know this pass.
        ConfigError: not exactly one of the two limits is given.
        ShapeError: a completion is longer than `width`.
    """
    if (max_token_len_per_gpu is None) == (micro_batch_size_per_gpu is None):
        raise ConfigError(
            "The conditioned pass needs one limit of its forwards.",
            "Give max_token_len_per_gpu (dynamic batch sizes) or micro_batch_size_per_gpu, not both.",
        )
    if any(len(pair.mask) > width for pair in pairs):
        raise ShapeError(f"A completion is longer than the width {width}.", "Give the longest completion's length.")
    if not pairs:
        return Evidence(*torch.zeros(len(FIELDS), 0, width))
    mapping = worker_group._query_dispatch_info("actor")
    processes = max(mapping) + 1
    fixed = None if micro_batch_size_per_gpu is None else max(1, micro_batch_size_per_gpu // 2)
    rows = [pair.row() for pair in pairs]
    order, rows = _shared_out(rows, processes, fixed or 1)
    data = _batch(rows)
    if max_token_len_per_gpu is not None:
        longest = max(len(row["input_ids"]) for row in rows)
        # Sequence parallelism shares a forward among the processes of one data-parallel rank.
        limit = max(max_token_len_per_gpu, ceildiv(longest, len(mapping) // processes))
        tu.assign_non_tensor(data, use_dynamic_bsz=True, max_token_len_per_gpu=limit)
    else:
        tu.assign_non_tensor(data, use_dynamic_bsz=False, micro_batch_size_per_gpu=fixed)
    tu.assign_non_tensor(
        data,
        temperature=temperature,
        compute_loss=False,
        calculate_entropy=False,
        use_fused_kernels=False,  # the output head is ours
        **{PASS: asdict(divergence)},
    )
    return _evidence(worker_group.compute_log_prob(data), order, pairs, width)


def joined(
    found: Evidence, pairs: Sequence[Pair], places: Sequence[tuple[int, int]], count: int, width: int
) -> Evidence:
    """Evidence (`count`, `width`) of the pairs of a plan, whose completions consist of those scored.

    Args:
        found: of what was scored. places: of each, the pair of the plan it belongs to, and its first token there.
    """
    fields = torch.stack([getattr(found, name) for name in FIELDS])
    whole = torch.zeros(len(FIELDS), count, width)
    for row, (pair, (number, first)) in enumerate(zip(pairs, places, strict=True)):
        length = len(pair.completion_ids)
        whole[:, number, first : first + length] = fields[:, row, :length]
    return Evidence(*whole)


def _shared_out(
    rows: list[dict[str, Tensor]], processes: int, multiple: int
) -> tuple[list[int], list[dict[str, Tensor]]]:
    """Rows in the order in which verl cuts them into equal parts, one per process: as much work in each, longest
    first, so that memory peaks at the start. Also the number of the row at each place; numbers from P on are dummies
    that make the parts a `multiple` long."""
    rows = rows + [_DUMMY.row()] * (-len(rows) % (processes * multiple))
    lengths = [len(row["input_ids"]) for row in rows]
    work = calculate_workload(torch.tensor(lengths)).tolist()
    parts = get_seqlen_balanced_partitions(work, processes, equal_size=True)
    order = [row for part in parts for row in sorted(part, key=lambda row: -lengths[row])]
    return order, [rows[row] for row in order]


def _batch(rows: list[dict[str, Tensor]]) -> TensorDict:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    lengths = torch.stack(columns.pop("student_length"))
    jagged = {name: torch.nested.as_nested_tensor(column, layout=torch.jagged) for name, column in columns.items()}
    return TensorDict({**jagged, "student_length": lengths}, batch_size=len(rows))


def _evidence(found: TensorDict, order: list[int], pairs: Sequence[Pair], width: int) -> Evidence:
    if any(name not in found.keys() for name in FIELDS):  # noqa: SIM118 (a TensorDict iterates over rows)
        raise IncompatibleHostError(
            "verl's workers answered the conditioned pass without evidence: they do not run scgrpo's engine.",
            "Use actor.strategy fsdp or fsdp2 on NVIDIA or AMD, and install scgrpo on every node; "
            "`scgrpo doctor --verl` says what is missing.",
        )
    out = torch.zeros(len(FIELDS), len(pairs), width)
    columns = zip(*(found[name].unbind() for name in FIELDS), strict=True)
    for row, values in zip(order, columns, strict=True):
        if row >= len(pairs):
            continue
        scored = torch.tensor(pairs[row].mask).nonzero()[:, 0]
        block = torch.stack(values).float()
        bad = (~block.isfinite()).any(dim=0)
        if bool(bad.any()):
            raise NonFiniteError(
                f"The model's logits are NaN or infinite for pair {row}, completion token {int(scored[bad][0])} "
                f"({int(bad.sum())} of {len(bad)} scored tokens of this pair).",
                "Nothing was trained on it. Resume from the last checkpoint with a lower learning rate, or use bf16 "
                "or fp32 instead of fp16.",
            )
        out[:, row, scored] = block
    return Evidence(*out)


# The cheapest row that passes through every layer.
_DUMMY = Pair([0], [0], [0], [True])
