"""What holds for credit methods on any batch."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from credit_cases import close, make_groups
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scgrpo.credit import (
    CAST,
    RLSD,
    SCGRPO,
    STARE,
    EntropyMask,
    Evidence,
    Groups,
    Oracle,
    Permuted,
    Plan,
    RandomWeights,
    Route,
    create_credit_method,
    credit_method_names,
)

few = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
seeds = st.integers(0, 10**6)
# RLCSD scales all tokens of the batch, CAST gives groups of one outcome an advantage; all three may turn signs.
OTHERS = sorted(set(credit_method_names()) - {"rlcsd", "cast", "antisd"})


def random_groups(seed: int) -> Groups:
    """Groups of every kind, with ungraded and cut-off rollouts, and tokens that do not count."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    size = rng.choice([2, 4, 6])
    words = ["".join(rng.choice("SSSFFFsfU") for _ in range(size)) for _ in range(rng.randint(1, 4))]
    rows, width = size * len(words), rng.randint(1, 8)
    lengths = [rng.randint(1, width) for _ in range(rows)]
    groups = make_groups(" ".join(words), lengths)
    shape = groups.mask.shape
    mask = groups.mask & (torch.rand(shape, generator=generator) < 0.9)
    changes: dict[str, Any] = {
        "mask": mask,
        "completion_ids": torch.randint(0, 5, shape, generator=generator),
        "first_error": torch.randint(-1, width, (rows,), generator=generator),
        "step": rng.randint(0, 60),
    }
    return make_groups(" ".join(words), lengths, **changes)


def random_evidence(groups: Groups, plan: Plan, seed: int) -> Evidence:
    """Log-probs and entropies as a model gives them, the same student for all pairs of a rollout."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(plan), groups.mask.shape[1])
    token_kl = torch.randn(shape, generator=generator, dtype=torch.float64).exp()
    teacher = -torch.rand(shape, generator=generator, dtype=torch.float64) * 4
    student = (-torch.rand(groups.mask.shape, generator=generator, dtype=torch.float64) * 4)[plan.rollout]
    entropy = (torch.rand(groups.mask.shape, generator=generator, dtype=torch.float64))[plan.rollout]
    return Evidence(*(x * groups.mask[plan.rollout] for x in (token_kl, teacher, student, entropy)))


def run(method: Any, seed: int, groups: Groups | None = None) -> tuple[Groups, Plan, Any]:
    groups = groups or random_groups(seed)
    plan = method.plan(groups, random.Random(seed))
    return groups, plan, method.assign(groups, plan, random_evidence(groups, plan, seed))


@few
@given(seeds, st.sampled_from(credit_method_names()))
def test_every_method_gives_finite_credit_and_pairs_that_can_be_scored(seed: int, name: str) -> None:
    groups, plan, credit = run(create_credit_method(name, {}), seed)
    assert credit.advantages.isfinite().all()
    assert credit.weights.isfinite().all()
    assert all(math.isfinite(value) for value in credit.metrics.values()), credit.metrics
    assert groups.scorable[plan.rollout].all()
    for side in (plan.demonstration, plan.contrast):
        if side is not None:
            some = side >= 0
            assert groups.usable[side[some]].all()
            assert (side[some] != plan.rollout[some]).all()
    assert not bool((plan.verified & (plan.demonstration >= 0) & ~groups.solved[plan.demonstration]).any())


@few
@given(seeds, st.sampled_from(OTHERS))
def test_weights_are_not_negative_and_unscored_rollouts_are_the_hosts(seed: int, name: str) -> None:
    groups, plan, credit = run(create_credit_method(name, {}), seed)
    scored = torch.zeros_like(groups.solved)
    scored[plan.rollout] = True
    assert (credit.weights[groups.mask] >= 0).all()
    close(credit.advantages, credit.base[:, None] * credit.weights)
    left = ~scored & (credit.route != Route.NONE_SOLVED)
    assert torch.equal(credit.advantages[left], groups.advantages[left, None].expand(-1, groups.mask.shape[1]))


@few
@given(seeds)
def test_rlsd_without_strength_is_uniform(seed: int) -> None:
    groups, _, credit = run(RLSD(strength=0.0), seed)
    assert torch.equal(credit.weights, torch.ones_like(credit.weights))
    groups, _, credit = run(RLSD(anneal_steps=0), seed)
    assert credit.weights.min() >= 0.9 - 1e-9
    assert credit.weights.max() <= 1.1 + 1e-9
    assert torch.equal(credit.advantages.sign(), groups.advantages.sign()[:, None].expand_as(credit.advantages))


@few
@given(seeds, st.floats(0.01, 1.0))
def test_entropy_mask_keeps_its_share_of_tokens(seed: int, fraction: float) -> None:
    groups, plan, credit = run(EntropyMask(top_fraction=fraction), seed)
    tokens = groups.mask[plan.rollout]
    kept = credit.weights[plan.rollout][tokens]
    assert set(kept.tolist()) <= {0.0, 1.0}
    assert kept.sum() == math.ceil(fraction * len(kept) - 1e-6)


@few
@given(seeds)
def test_stare_only_lifts_what_went_well(seed: int) -> None:
    groups, _, credit = run(STARE(entropy_gate=10.0), seed)
    lifted = credit.weights > 1
    assert (groups.advantages[lifted.any(1)] > 0).all()
    good = groups.mask & groups.scorable[:, None] & (groups.advantages > 0)[:, None]
    assert lifted.sum() == math.ceil(0.1 * int(good.sum()) - 1e-6)


@few
@given(seeds, st.sampled_from([Permuted, RandomWeights]))
def test_shuffled_weights_keep_their_multiset(seed: int, cls: type) -> None:
    groups, plan, plain = run(SCGRPO(), seed)
    _, _, moved = run(cls(), seed, groups)
    scored = torch.zeros_like(groups.solved)
    scored[plan.rollout] = True
    active = groups.mask & scored[:, None]
    assert torch.equal(moved.weights[active].sort().values, plain.weights[active].sort().values)
    assert torch.equal(moved.weights[~active], plain.weights[~active])
    if cls is Permuted:
        for row in range(len(active)):
            mine = active[row]
            assert torch.equal(moved.weights[row, mine].sort().values, plain.weights[row, mine].sort().values)


@few
@given(seeds)
def test_oracle_weights_have_mean_one_in_each_rollout(seed: int) -> None:
    groups, _, credit = run(Oracle(), seed)
    counted = groups.mask.any(1)
    mean = (credit.weights * groups.mask).sum(1) / groups.mask.sum(1).clamp(min=1)
    close(mean[counted], torch.ones(int(counted.sum())))


@few
@given(seeds)
def test_cast_turns_only_what_is_opposed(seed: int) -> None:
    groups, plan, credit = run(CAST(), seed)
    evidence = random_evidence(groups, plan, seed)
    g = torch.zeros_like(credit.weights)
    g[plan.rollout] = evidence.teacher_logps - evidence.student_logps
    turned = credit.weights < 0
    assert torch.equal(turned, groups.mask & (credit.base.sign()[:, None] * g < -0.05))


@pytest.mark.parametrize("name", credit_method_names())
def test_plans_depend_on_the_stream_alone(name: str) -> None:
    method, groups = create_credit_method(name, {}), random_groups(3)
    first, second = (method.plan(groups, random.Random("a")) for _ in range(2))
    for field in ("rollout", "demonstration", "verified", "contrast"):
        a, b = getattr(first, field), getattr(second, field)
        assert (a is None and b is None) or torch.equal(a, b)
