"""What is read of the recorded rollouts: going over them once, one step in memory at a time."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scgrpo.report.heatmap import is_scored
from scgrpo.report.shares import Outcome, credit_shares
from scgrpo.report.view import RunView
from scgrpo.runs import RolloutRow

_MOST_STEPS_READ = 20
# nats, four bins per decade; the first takes everything below, the last everything above.
EDGES = [10 ** (exponent / 4) for exponent in range(-24, 9)]
NEAR_ZERO = (0.001, 0.01)  # nats


@dataclass(frozen=True)
class Spread:
    """Distribution of D over the scored tokens recorded at one step.

    Attributes:
        shares: of tokens, by bin between `EDGES`.
        near_zero: share of tokens with D below each of NEAR_ZERO.
    """

    step: int
    num_tokens: int
    shares: list[float]
    near_zero: tuple[float, ...]


@dataclass(frozen=True)
class Recorded:
    """Of all recorded steps, or of some spread evenly if there are many.

    Attributes:
        steps: those read.
        ends: rollouts of the first and the last step, of all and of those with scored rollouts.
        shares: where the credit went.
        spreads: of the steps with scored rollouts, ascending.
    """

    steps: list[int]
    ends: dict[int, list[RolloutRow]]
    shares: list[Outcome]
    spreads: list[Spread]


def read_recorded(view: RunView) -> Recorded:
    """Read the recorded rollouts of a run."""
    steps, ends, spreads = _steps_read(view), dict[int, list[RolloutRow]](), list[Spread]()
    shares = credit_shares(_walk(view, steps, ends, spreads))
    return Recorded(steps, ends, shares, spreads)


def spread(step: int, rows: Sequence[RolloutRow]) -> Spread | None:
    """Distribution of D over the tokens the policy produced in scored rollouts; None where there are none."""
    values = [
        d for row in rows if is_scored(row) for d, mine in zip(row.token_kl or [], row.mask, strict=True) if mine
    ]
    values = [d for d in values if math.isfinite(d)]
    if not values:
        return None
    counts = [0] * (len(EDGES) - 1)
    for d in values:
        counts[min(len(counts) - 1, max(0, bisect_right(EDGES, d) - 1))] += 1
    near_zero = tuple(sum(d < bound for d in values) / len(values) for bound in NEAR_ZERO)
    return Spread(step, len(values), [count / len(values) for count in counts], near_zero)


def _steps_read(view: RunView) -> list[int]:
    """Recorded steps; of many, some spread evenly, the first and the last among them."""
    steps = view.run.rollout_steps()
    if len(steps) > _MOST_STEPS_READ:
        last = len(steps) - 1
        steps = [steps[round(i * last / (_MOST_STEPS_READ - 1))] for i in range(_MOST_STEPS_READ)]
    return steps


def _walk(
    view: RunView, steps: list[int], ends: dict[int, list[RolloutRow]], spreads: list[Spread]
) -> Iterator[RolloutRow]:
    """Every rollout of these steps; `ends` and `spreads` are filled on the way."""
    scored: list[int] = []
    for step in steps:
        rows = ends[step] = view.run.rollouts(step)
        yield from rows
        if any(map(is_scored, rows)):
            scored = [*scored[:1], step]
        found = spread(step, rows)
        if found is not None:
            spreads.append(found)
        for passed in set(ends) - {steps[0], steps[-1], *scored}:
            del ends[passed]
