"""Small batches for tests of credit methods: groups by letters, evidence by numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scgrpo.credit import Evidence, Groups, Plan


def make_groups(letters: str, width: int | list[int] = 3, **changes: Any) -> Groups:
    """Groups are separated by spaces: S solved, F failed, U without a verdict, lower case = cut off. The advantage of
    a mixed group is 1 and -1, of others 0. `width`: tokens of all rollouts, or of each."""
    words = letters.split()
    flat = "".join(words)
    lengths = torch.tensor([width] * len(flat) if isinstance(width, int) else width)
    mixed = [len({c.upper() for c in word} - {"U"}) > 1 for word in words for _ in word]
    sign = {"S": 1.0, "F": -1.0, "U": 0.0}
    fields: dict[str, Any] = {
        "group": torch.tensor([g for g, word in enumerate(words) for _ in word]),
        "solved": torch.tensor([c in "Ss" for c in flat]),
        "graded": torch.tensor([c not in "Uu" for c in flat]),
        "truncated": torch.tensor([c.islower() for c in flat]),
        "lengths": lengths,
        "mask": torch.arange(int(lengths.max())) < lengths[:, None],
        "advantages": torch.tensor(
            [sign[c.upper()] * m for c, m in zip(flat, mixed, strict=True)], dtype=torch.float64
        ),
        "micro_batch": torch.zeros(len(flat), dtype=torch.long),
    }
    return Groups(**{**fields, **changes})


def make_evidence(pairs: int, width: int, **fields: Any) -> Evidence:
    """Evidence with the given rows; NaN elsewhere, so that a method which reads more than it should is found out."""
    nothing = torch.full((pairs, width), float("nan"), dtype=torch.float64)
    names = ("token_kl", "teacher_logps", "student_logps", "student_entropy")
    given = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in fields.items()}
    return Evidence(**{name: given.get(name, nothing) for name in names})


def every(groups: Groups, plan: Plan, values: Any) -> Tensor:
    """(P, T) rows of a (B, T) table, by the pairs of a plan."""
    return torch.as_tensor(values, dtype=torch.float64)[plan.rollout]


def close(actual: Tensor, expected: Any, atol: float = 1e-9) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=atol)
