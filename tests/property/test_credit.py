"""SC-GRPO against a plain loop, and what must not change its answer."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from scgrpo.credit import (
    SCGRPO,
    Evidence,
    Groups,
    Plan,
    Route,
    choose_demonstrations,
    route_groups,
    saturating_weight,
)
from scgrpo.credit.weighting import linear_quantile

few = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def random_batch(seed: int, dtype: torch.dtype = torch.float64) -> Groups:
    """Groups of one size with every route likely, interleaved; ungraded, truncated, empty and masked rollouts and
    tool tokens now and then; the host's advantage is 0 where all rewards of a group are alike."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    num_groups, size, width = rng.randint(1, 5), rng.choice([2, 3, 4, 8]), rng.randint(1, 9)
    group = [g for g in range(num_groups) for _ in range(size)]
    rng.shuffle(group)
    rows = len(group)
    odd = rng.choice([0.0, 0.15])
    rate = [rng.choice([0.0, 0.2, 0.5, 0.8, 1.0]) for _ in range(num_groups)]
    graded = torch.tensor([rng.random() >= odd for _ in range(rows)])
    solved = torch.tensor([rng.random() < rate[g] for g in group]) & graded
    lengths = torch.tensor([0 if rng.random() < odd / 3 else rng.randint(1, width) for _ in range(rows)])
    mask = (torch.arange(width) < lengths[:, None]) & (torch.rand(rows, width, generator=generator) >= odd)
    mask &= torch.tensor([rng.random() >= odd for _ in range(rows)])[:, None]
    reward, ids = solved.to(dtype), torch.tensor(group)
    advantages = torch.zeros(rows, dtype=dtype)
    for g in range(num_groups):
        of_group = reward[ids == g]
        advantages[ids == g] = (of_group - of_group.mean()) / (of_group.std() + 1e-4)
    return Groups(
        group=ids,
        solved=solved,
        graded=graded,
        truncated=torch.tensor([rng.random() < odd for _ in range(rows)]),
        lengths=lengths,
        mask=mask,
        advantages=advantages,
        micro_batch=torch.arange(rows) % rng.randint(1, 3),
    )


def random_evidence(groups: Groups, plan: Plan, seed: int, dtype: torch.dtype = torch.float64) -> Evidence:
    """Heavy-tailed token_kl with exact zeros, 0 outside the mask, as hosts give it."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(plan), groups.mask.shape[1])
    token_kl = torch.randn(shape, generator=generator, dtype=dtype).mul(3).sub(3).exp()
    token_kl *= torch.rand(shape, generator=generator) > 0.2
    token_kl *= groups.mask[plan.rollout]
    return Evidence(*token_kl.expand(4, *shape))


def plain_loop(groups: Groups, plan: Plan, token_kl: Tensor, method: SCGRPO) -> tuple[list[Any], list[Any]]:
    """(weights, advantages) by the method page, one token at a time, in Python floats."""
    rows, width = groups.mask.shape
    shown_to = {int(i): int(j) for i, j in zip(plan.rollout, plan.demonstration, strict=True)}
    pair_of = {int(i): p for p, i in enumerate(plan.rollout)}
    counted = [[bool(groups.mask[i, t]) for t in range(width)] for i in range(rows)]

    thresholds = {}
    for i in shown_to:
        scope = int(groups.micro_batch[i]) if method.scope == "micro_batch" else 0
        values = sorted(
            float(token_kl[pair_of[j], t])
            for j in shown_to
            if method.scope == "generation_batch" or int(groups.micro_batch[j]) == scope
            for t in range(width)
            if counted[j][t]
        )
        position = method.quantile * (len(values) - 1)
        low = math.floor(position)
        high = min(low + 1, len(values) - 1)
        thresholds[i] = max(values[low] + (position - low) * (values[high] - values[low]), method.floor)

    weights = [[1.0] * width for _ in range(rows)]
    for i in shown_to:
        for t in range(width):
            d = float(token_kl[pair_of[i], t])
            weights[i][t] = d / (d + thresholds[i])

    base = [float(a) for a in groups.advantages]
    for g in sorted(set(groups.group.tolist())):
        members = [i for i in range(rows) if int(groups.group[i]) == g]
        graded = [i for i in members if groups.graded[i]]
        usable = [i for i in graded if not groups.truncated[i] and int(groups.lengths[i]) > 0]
        if any(groups.solved[i] for i in graded) or len(graded) < 2 or not usable:
            continue  # partial-solve or fallback: the host's advantage stays
        scores = {}
        for i in members:
            if i in shown_to:
                limit = min(int(groups.lengths[i]), int(groups.lengths[shown_to[i]]))
                early = [weights[i][t] for t in range(limit) if counted[i][t]]
                scores[i] = sum(early) / len(early) if early else 0.0
        mean = sum(scores.values()) / max(1, len(scores))
        spread = math.sqrt(sum((s - mean) ** 2 for s in scores.values()) / max(1, len(scores) - 1))
        for i in members:
            alone = i not in scores or len(scores) == 1
            base[i] = 0.0 if alone else method.alpha * (scores[i] - mean) / (spread + 1e-6)
    return weights, [[base[i] * weights[i][t] for t in range(width)] for i in range(rows)]


def planned(method: SCGRPO, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Groups, Plan, Evidence]:
    groups = random_batch(seed, dtype)
    plan = method.plan(groups, random.Random(seed))
    return groups, plan, random_evidence(groups, plan, seed, dtype)


METHODS = [SCGRPO(), SCGRPO(scope="micro_batch"), SCGRPO(quantile=0.3, floor=0.01, alpha=0.5)]
seeds = st.integers(0, 10**9)


@few
@given(seeds, st.sampled_from(METHODS))
def test_equals_a_plain_loop(seed: int, method: SCGRPO) -> None:
    groups, plan, evidence = planned(method, seed)
    weights, advantages = plain_loop(groups, plan, evidence.token_kl, method)
    credit = method.assign(groups, plan, evidence)
    torch.testing.assert_close(credit.weights, torch.tensor(weights, dtype=torch.float64), atol=1e-12, rtol=0)
    # The diversity term divides by std + 1e-6, which magnifies rounding where all scores are alike.
    torch.testing.assert_close(credit.advantages, torch.tensor(advantages, dtype=torch.float64), atol=1e-10, rtol=0)


@few
@given(seeds, st.sampled_from(METHODS))
def test_single_precision_is_close_to_the_plain_loop(seed: int, method: SCGRPO) -> None:
    groups, plan, evidence = planned(method, seed, torch.float32)
    weights, _ = plain_loop(groups, plan, evidence.token_kl, method)
    credit = method.assign(groups, plan, evidence)
    assert credit.advantages.dtype == torch.float32
    torch.testing.assert_close(credit.weights, torch.tensor(weights), atol=1e-5, rtol=0)


def test_the_random_batches_hit_every_route() -> None:
    routes = {int(r) for seed in range(40) for r in route_groups(random_batch(seed))}
    assert routes == {int(r) for r in Route}


@few
@given(seeds)
def test_invariants_of_plan_and_credit(seed: int) -> None:
    method = SCGRPO()
    groups, plan, evidence = planned(method, seed)
    i, j = plan.rollout, plan.demonstration
    assert bool((i != j).all())
    assert len(set(i.tolist())) == len(plan)
    assert torch.equal(groups.group[i], groups.group[j])
    assert bool(groups.usable[j].all())
    assert torch.equal(groups.solved[j], plan.verified)

    credit = method.assign(groups, plan, evidence)
    scored = torch.zeros_like(groups.solved)
    scored[i] = True
    assert bool((credit.weights[scored] >= 0).all())
    assert bool((credit.weights[scored] < 1).all())
    assert bool((credit.weights[~scored] == 1).all())
    # The sign of f * A is that of A, and no context effect means no credit.
    nonzero = credit.weights > 0
    assert torch.equal(credit.advantages.sign()[nonzero], credit.base.sign()[:, None].expand_as(nonzero)[nonzero])
    assert not credit.advantages[~nonzero].any()
    # Fallback groups: the host's advantages, bit for bit.
    plain = credit.route == Route.FALLBACK
    assert torch.equal(credit.advantages[plain], groups.advantages[plain][:, None].expand(-1, groups.mask.shape[1]))
    # Pseudo-advantages of a solve-none group cancel.
    none = credit.route == Route.NONE_SOLVED
    for g in groups.group[none].unique():
        assert abs(credit.base[groups.group == g].sum().item()) < 1e-12


def reindexed(groups: Groups, order: Tensor) -> Groups:
    values = {f.name: getattr(groups, f.name) for f in dataclasses.fields(groups)}
    return Groups(**{name: v[order] if isinstance(v, Tensor) else v for name, v in values.items()})


def reindexed_plan(plan: Plan, order: Tensor) -> Plan:
    place = torch.argsort(order)
    return Plan(place[plan.rollout], place[plan.demonstration], plan.verified)


@few
@given(seeds, st.sampled_from(METHODS), st.randoms(use_true_random=False))
def test_permuting_rollouts_changes_nothing(seed: int, method: SCGRPO, shuffler: random.Random) -> None:
    groups, plan, evidence = planned(method, seed)
    order = list(range(len(groups.group)))
    shuffler.shuffle(order)
    order_t = torch.tensor(order)
    pairs = list(range(len(plan)))
    shuffler.shuffle(pairs)
    pairs_t = torch.tensor(pairs, dtype=torch.long)

    before = method.assign(groups, plan, evidence)
    moved = reindexed_plan(plan, order_t)
    moved = Plan(moved.rollout[pairs_t], moved.demonstration[pairs_t], moved.verified[pairs_t])
    after = method.assign(
        reindexed(groups, order_t), moved, Evidence(*(x[pairs_t] for x in dataclasses.astuple(evidence)))
    )
    assert torch.equal(after.weights, before.weights[order_t])
    assert torch.equal(after.route, before.route[order_t])
    torch.testing.assert_close(after.advantages, before.advantages[order_t], atol=1e-10, rtol=0)
    assert after.metrics.keys() == before.metrics.keys()
    for name, value in before.metrics.items():
        assert math.isclose(after.metrics[name], value, rel_tol=1e-9, abs_tol=1e-12), name


@few
@given(seeds, st.sampled_from(METHODS), st.integers(1, 300))
def test_padding_changes_nothing(seed: int, method: SCGRPO, extra: int) -> None:
    groups, plan, evidence = planned(method, seed, torch.float32)
    before = method.assign(groups, plan, evidence)
    wide = dataclasses.replace(groups, mask=torch.nn.functional.pad(groups.mask, (0, extra)))
    padded = [torch.nn.functional.pad(x, (0, extra)) for x in dataclasses.astuple(evidence)]
    after = method.assign(wide, plan, Evidence(*padded))
    width = groups.mask.shape[1]
    assert torch.equal(after.weights[:, :width], before.weights)
    torch.testing.assert_close(after.advantages[:, :width], before.advantages, atol=1e-6, rtol=0)
    assert method.plan(wide, random.Random(seed)).demonstration.tolist() == plan.demonstration.tolist()


@few
@given(seeds, st.integers(2, 4))
def test_evidence_split_over_processes_adds_up(seed: int, processes: int) -> None:
    """Each process scores the pairs of its rows and leaves zeros for the others; the sum is what one would have."""
    method = SCGRPO()
    groups, plan, evidence = planned(method, seed)
    owner = plan.rollout % processes
    shares = [
        torch.where((owner == rank)[None, :, None], torch.stack(dataclasses.astuple(evidence)), 0.0)
        for rank in range(processes)
    ]
    whole = Evidence(*torch.stack(shares).sum(0))
    before, after = method.assign(groups, plan, evidence), method.assign(groups, plan, whole)
    assert torch.equal(before.advantages, after.advantages)
    # Every process draws the plan of the whole batch from the same stream.
    plans = [choose_demonstrations(groups, route_groups(groups), random.Random(seed)) for _ in range(processes)]
    assert all(torch.equal(p.demonstration, plan.demonstration) for p in plans)


@few
@given(seeds)
def test_the_order_of_other_groups_does_not_move_a_groups_route(seed: int) -> None:
    groups = random_batch(seed)
    for g in groups.group.unique():
        alone = reindexed(groups, (groups.group == g).nonzero()[:, 0])
        assert torch.equal(route_groups(alone), route_groups(groups)[groups.group == g])


@few
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_quantile_equals_torch(values: list[float], quantile: float) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    expected = torch.quantile(tensor, quantile, interpolation="linear")
    torch.testing.assert_close(linear_quantile(tensor, quantile), expected, atol=1e-9, rtol=1e-9)


@few
@given(st.floats(0, 1e30), st.floats(0, 1e30), st.floats(1e-6, 1e6))
def test_the_weight_is_a_monotone_share(one: float, other: float, threshold: float) -> None:
    low, high = sorted((one, other))
    f = saturating_weight(torch.tensor([[low, high, threshold]]), torch.tensor([threshold]))[0]
    assert 0 <= f[0] <= f[1] < 1
    assert f[2] == 0.5
