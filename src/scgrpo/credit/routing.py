"""Which groups are re-scored, and under which demonstration (arXiv 2606.18810, section 4.2).

Departures from the paper, where it is silent:
1. rollouts without a verdict count neither in `n_c` nor in `G`;
2. truncated and empty rollouts are never demonstrations, so a partial-solve group needs two *usable* solved ones;
3. rollouts whose tokens the loss does not count (masked) are not scored;
4. a partial-solve group whose advantages are all 0 (the success reward is not among those that count, say) has no
   gradient to weight and is not scored.
"""

from __future__ import annotations

import random
from collections import Counter
from enum import IntEnum
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from scgrpo.credit.methods import NONE, Groups, Plan
from scgrpo.errors import ConfigError


class Route(IntEnum):
    """How a group is treated, by its number of solved rollouts n_c of G."""

    FALLBACK = 0  # n_c = 1 or n_c = G: plain GRPO, weight 1
    PARTIAL = 1  # 2 <= n_c < G: every rollout is re-scored under a solved one other than itself
    NONE_SOLVED = 2  # n_c = 0: one rollout is the demonstration of all others


# Which groups are re-scored under solved rollouts: the paper's method is "partial", the others are its ablations.
Routes = Literal["partial", "mixed", "all_solved", "all"]


def route_groups(groups: Groups, routes: Routes = "partial") -> Int[Tensor, " b"]:
    """(B,) route of each rollout's group.

    PARTIAL is given to groups with 2 <= n_c < G ("partial"), 1 <= n_c < G ("mixed"), n_c = G ("all_solved"), or both
    of the last two ("all"). Groups that are all solved have no advantage: their rollouts only count in the threshold.
    """
    route = torch.full_like(groups.group, int(Route.FALLBACK))
    least = 2 if routes in ("partial", "all_solved") else 1
    for members in group_members(groups):
        graded, solved = groups.graded[members], groups.solved[members]
        usable = groups.usable[members]
        shown = int((solved & usable).sum())
        if bool((graded & ~solved).any()) and shown >= least:
            weighted = routes != "all_solved" and bool(groups.advantages[members].any())
            route[members] = int(Route.PARTIAL if weighted else Route.FALLBACK)
        elif shown >= 2 and not bool((graded & ~solved).any()) and routes in ("all_solved", "all"):
            route[members] = int(Route.PARTIAL)
        # The demonstration of a solve-none group needs another rollout to be shown to.
        elif not bool(solved.any()) and bool(usable.any()) and int(graded.sum()) >= 2:
            route[members] = int(Route.NONE_SOLVED)
    return route


def partial_route(groups: Groups) -> Int[Tensor, " b"]:
    """(B,) routes of a method that leaves solve-none groups to the host."""
    route = route_groups(groups)
    return route.masked_fill(route == Route.NONE_SOLVED, int(Route.FALLBACK))


Demonstrations = Literal["uniform", "shared", "shortest", "longest", "nearest", "least_similar", "buffer"]


def choose_demonstrations(
    groups: Groups, route: Int[Tensor, " b"], rng: random.Random, demonstrations: Demonstrations = "uniform"
) -> Plan:
    """One demonstration per scored rollout.

    partial-solve, "uniform": uniform over the group's usable solved rollouts other than the rollout itself;
    partial-solve, "shared": one of them for the whole group, a second one for the first itself, so that a group has
    two teacher prompts instead of up to `n_c`;
    partial-solve, "buffer": uniform over earlier solutions of the prompt where there are any, else as "uniform";
    partial-solve, the others: of the same candidates as "uniform" the best by `preferred`, ties drawn;
    solve-none: one usable rollout of the group, uniform, for all the others.

    `rng` must be in the same state on every process: all of them draw the plan of the whole batch.
    """
    usable, scorable = groups.usable.tolist(), groups.scorable.tolist()
    past = past_solutions(groups) if demonstrations == "buffer" else {}
    solved, routes = groups.solved.tolist(), route.tolist()
    pairs: list[tuple[int, int, bool]] = []
    for members in (m.tolist() for m in group_members(groups)):
        candidates = [j for j in members if usable[j]]
        if routes[members[0]] == Route.PARTIAL:
            right = [j for j in candidates if solved[j]]
            # Drawn for every member, scored or not: who is masked must not change the others' draw.
            if demonstrations == "shared":
                first, *second = rng.sample(right, min(2, len(right)))
                others = {i: second if i == first else [first] for i in members}
            else:
                earlier = past.get(int(groups.group[members[0]]), [])
                others = {i: earlier or [j for j in right if j != i] for i in members}
            # The only solution of its group has none to be shown.
            drawn = {i: rng.choice(preferred(groups, i, others[i], demonstrations)) for i in members if others[i]}
            pairs += [(i, j, True) for i, j in drawn.items() if scorable[i]]
        elif routes[members[0]] == Route.NONE_SOLVED:
            shown = rng.choice(candidates)
            pairs += [(i, shown, False) for i in members if i != shown and scorable[i]]
    device = groups.group.device
    return Plan(
        rollout=torch.tensor([p[0] for p in pairs], dtype=torch.long, device=device),
        demonstration=torch.tensor([p[1] for p in pairs], dtype=torch.long, device=device),
        verified=torch.tensor([p[2] for p in pairs], dtype=torch.bool, device=device),
    )


def sibling_plan(groups: Groups, rng: random.Random) -> Plan:
    """Every rollout under a usable solved one of its group other than itself, drawn uniformly, where there is one:
    also those of a group with a single solved rollout, or with nothing but solved ones. For methods that learn from
    the demonstration, whatever the rollout's own advantage."""
    solved, scorable = (groups.usable & groups.solved).tolist(), groups.scorable.tolist()
    pairs = []
    for members in (m.tolist() for m in group_members(groups)):
        for i in members:
            others = [j for j in members if solved[j] and j != i]
            if not others:
                continue
            drawn = rng.choice(others)  # for every member, scored or not: who is masked must not change others' draw
            if scorable[i]:
                pairs.append((i, drawn))
    rows = torch.tensor(pairs, dtype=torch.long, device=groups.group.device).view(-1, 2)
    return Plan(rows[:, 0], rows[:, 1], torch.ones_like(rows[:, 0], dtype=torch.bool))


def unprompted_plan(groups: Groups, rows: Bool[Tensor, " b"]) -> Plan:
    """Those of the given rollouts that the loss counts, without a demonstration: what the policy itself says of them
    (or, where the teacher's weights differ, what two policies do)."""
    rollout = (rows & groups.scorable).nonzero()[:, 0]
    return Plan(rollout, torch.full_like(rollout, NONE), torch.zeros_like(rollout, dtype=torch.bool))


def past_solutions(groups: Groups) -> dict[int, list[int]]:
    """Row numbers of the earlier solutions of each group that has some.

    Raises:
        ConfigError: the host keeps none.
    """
    if groups.past is None:
        raise ConfigError(
            "Demonstrations are to come from earlier solutions, but this host keeps none.",
            "Choose demonstrations uniform or shared.",
        )
    rows: dict[int, list[int]] = {}
    for number, group in enumerate(groups.past.tolist()):
        rows.setdefault(group, []).append(len(groups.group) + number)
    return rows


def preferred(groups: Groups, rollout: int, candidates: list[int], demonstrations: Demonstrations) -> list[int]:
    """The candidates that suit a rollout best; all of them if there is no preference.

    "shortest", "longest": by tokens. "nearest", "least_similar": by `similarity`.
    """
    if demonstrations in ("shortest", "longest"):
        sign = 1 if demonstrations == "shortest" else -1
        score = {j: (sign * float(groups.lengths[j]), 0.0) for j in candidates}
    elif demonstrations in ("nearest", "least_similar"):
        sign = -1 if demonstrations == "nearest" else 1
        alike = {j: similarity(groups, rollout, j) for j in candidates}
        score = {j: (sign * prefix, sign * common) for j, (prefix, common) in alike.items()}
    else:
        return candidates
    best = min(score.values())
    return [j for j in candidates if score[j] == best]


def similarity(groups: Groups, i: int, j: int) -> tuple[float, float]:
    """How alike two rollouts are: tokens of their common prefix, then the share of tokens they have in common
    whatever the order, `sum_v min(n_i(v), n_j(v)) / max(|o_i|, |o_j|)`.

    Raises:
        ConfigError: the host does not tell the tokens.
    """
    if groups.completion_ids is None:
        raise ConfigError(
            "Demonstrations are to be chosen by similarity, but this host does not tell the rollouts' tokens.",
            "Choose demonstrations uniform, shared, shortest or longest.",
        )
    a, b = (groups.completion_ids[row, : int(groups.lengths[row])].tolist() for row in (i, j))
    prefix = next((t for t, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return float(prefix), (Counter(a) & Counter(b)).total() / max(len(a), len(b), 1)


def group_members(groups: Groups) -> list[Int[Tensor, " g"]]:
    """Row numbers of each group, groups in order of their id."""
    order = torch.argsort(groups.group, stable=True)
    sizes = torch.unique_consecutive(groups.group[order], return_counts=True)[1]
    return list(order.split(sizes.tolist()))
