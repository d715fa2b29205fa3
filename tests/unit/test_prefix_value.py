"""The value of a prefix as a baseline: features, regression, advantages."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from credit_cases import close, make_evidence, make_groups

from scgrpo.credit import NONE, Evidence, Groups, Plan, ValueBaseline
from scgrpo.credit.prefix_value import (
    before,
    cross_fitted,
    generalized_advantages,
    pass_rates,
    prefix_features,
    solved_siblings,
)
from scgrpo.errors import ConfigError

log = math.log


def test_siblings_are_solved_and_never_oneself() -> None:
    groups = make_groups("SSFF FSFF FFFF SSSS SsFU")
    plan = solved_siblings(groups, random.Random(0), 3)
    pairs = list(zip(plan.rollout.tolist(), plan.demonstration.tolist(), strict=True))
    assert (0, 1) in pairs
    assert (1, 0) in pairs
    assert {(2, 0), (2, 1), (3, 0), (3, 1)} <= set(pairs)
    assert {(4, 5), (6, 5), (7, 5)} <= set(pairs)
    assert (5, NONE) in pairs  # the only solution of its group: what the policy itself says
    assert not {8, 9, 10, 11, 12, 13, 14, 15, 19} & {i for i, _ in pairs}  # no advantage, or no verdict
    assert all(groups.solved[j] and not groups.truncated[j] and i != j for i, j in pairs if j != NONE)
    assert plan.verified.tolist() == [j != NONE for _, j in pairs]


def test_own_features_need_no_demonstration() -> None:
    plan = ValueBaseline(value_features="own").plan(make_groups("SSFF"), random.Random(0))
    assert plan.demonstration.tolist() == [NONE] * 4
    assert plan.single


def test_features_by_hand() -> None:
    """Group SF with p = 1/2, s = 1/2; the failed rollout under two demonstrations."""
    groups = make_groups("SFSF", 2)
    plan = Plan(torch.tensor([1, 1]), torch.tensor([0, 2]), torch.tensor([True, True]))
    evidence = make_evidence(
        2,
        2,
        teacher_logps=[[log(0.8), log(0.1)], [log(0.2), log(0.1)]],
        student_logps=[[log(0.4), log(0.2)]] * 2,
        student_entropy=[[0.6, 0.3]] * 2,
    )
    x = prefix_features(groups, plan, evidence, "both")
    close(x[0], torch.zeros(2, 6))  # not in the plan
    ratio = log((2 + 0.5) / 2)
    close(x[1, 0], [0.5, 0, 0, 0.3, 0, 0])
    close(x[1, 1], [0.5, 0.5 * log(0.4), 0.3, 0.15, (0.5 * 1.25 - 0.5) / 0.5, 0.5 * ratio])
    close(prefix_features(groups, plan, evidence, "own"), x[..., :4])
    close(prefix_features(groups, plan, evidence, "demonstrations"), x[..., 4:])


def random_case(seed: int, words: str = "SSFF FSFS SFFF SSSF") -> tuple[Groups, Plan, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    groups = make_groups(words, [4, 2, 5, 3] * len(words.split()))
    groups = replace(groups, mask=groups.mask & (torch.rand(groups.mask.shape, generator=generator) < 0.9))
    plan = ValueBaseline().plan(groups, random.Random(seed))
    shape = (len(groups.group), groups.mask.shape[1])
    own = {"student_logps": -torch.rand(shape, generator=generator), "student_entropy": torch.rand(shape)}
    evidence = {name: values.double()[plan.rollout] for name, values in own.items()}
    evidence["teacher_logps"] = -torch.rand(len(plan), shape[1], generator=generator).double()
    keep = groups.mask[plan.rollout]
    return groups, plan, {name: values * keep for name, values in evidence.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("place", range(5))
def test_features_know_nothing_of_the_token_or_later_ones(seed: int, place: int) -> None:
    """What makes the baseline unbiased."""
    groups, plan, rows = random_case(seed)
    x = prefix_features(groups, plan, make_evidence(len(plan), 5, **rows), "both")
    for name in ("student_logps", "teacher_logps", "student_entropy"):
        first = place + 1 if name == "student_entropy" else place  # the entropy at a token is known before it
        rows[name] = rows[name].clone()
        rows[name][:, first:] -= 7.0
    changed = prefix_features(groups, plan, make_evidence(len(plan), 5, **rows), "both")
    close(changed[:, : place + 1], x[:, : place + 1])
    if place < 3:
        assert not torch.allclose(changed, x)


def test_a_baseline_of_the_prefix_leaves_the_gradient_unbiased() -> None:
    """Exactly, over all 9 answers of two tokens: sum_y pi(y) sum_t v(y_<t) grad log pi(y_t | y_<t) = 0."""
    torch.manual_seed(0)
    first = torch.randn(3, dtype=torch.float64, requires_grad=True)
    second = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    p1, p2 = first.log_softmax(0), second.log_softmax(1)
    answers = [(a, b) for a in range(3) for b in range(3)]
    logps = torch.stack([torch.stack([p1[a], p2[a, b]]) for a, b in answers])
    groups = make_groups("SFSFSFSFS", 2)
    entropies = [-(p.exp() * p).sum(-1) for p in (p1, p2)]
    plan = Plan(torch.arange(9), torch.full((9,), NONE), torch.zeros(9, dtype=torch.bool))
    own = logps.detach()
    entropy = torch.stack([torch.stack([entropies[0], entropies[1][a]]) for a, _ in answers]).detach()
    teacher = own.clone()
    teacher[:, 0] += torch.tensor([0.3, -1.0, 0.5])[[a for a, _ in answers]]
    evidence = Evidence(torch.zeros_like(own), teacher, own, entropy)
    v = prefix_features(groups, plan, evidence, "both") @ torch.tensor([0.3, -0.2, 0.5, 1.0, 0.7, -0.4]).double()
    assert v.std() > 0.01
    loss = (own.sum(1).exp()[:, None] * v * logps).sum()
    for gradient in torch.autograd.grad(loss, (first, second)):
        close(gradient, torch.zeros_like(gradient), atol=1e-12)


def test_regression_is_of_the_other_half() -> None:
    """One feature, two groups: w = sum x y / (sum x^2 + shrink * length * mean x^2) of the other group."""
    groups = make_groups("SF SF", 2)
    x = torch.tensor([[1.0, 2.0], [1.0, 1.0], [3.0, 1.0], [1.0, 0.0]], dtype=torch.float64)[..., None]
    v = cross_fitted(x, groups.advantages, groups.mask, groups, shrink=8.0)
    other = (3 + 1 - 1) / (11 + 8 * 2 * 11 / 4)
    own = (1 + 2 - 1 - 1) / (7 + 8 * 2 * 7 / 4)
    close(v[:2], other * x[:2, :, 0])
    close(v[2:], own * x[2:, :, 0])


def test_no_rollout_sets_its_own_baseline() -> None:
    groups, plan, rows = random_case(0)
    method, evidence = ValueBaseline(), make_evidence(len(plan), 5, **rows)
    v = groups.advantages[:, None] - method.assign(groups, plan, evidence).advantages
    assert v.abs().max() > 0.01
    mine = groups.group == 0
    other = replace(groups, advantages=torch.where(mine, 3 * groups.advantages, groups.advantages))
    changed = other.advantages[:, None] - method.assign(other, plan, evidence).advantages
    close(changed[mine], v[mine])


def test_a_single_group_is_grpo() -> None:
    groups, plan, rows = random_case(1, "SSFF")
    credit = ValueBaseline().assign(groups, plan, make_evidence(len(plan), 5, **rows))
    close(credit.advantages, groups.advantages[:, None].expand(4, 5))
    close(credit.weights, torch.ones(4, 5))


def test_features_that_tell_the_outcome_explain_it() -> None:
    """An error that every demonstration contradicts lowers the value: the tokens after it are spared."""
    groups = make_groups("SSFF SSFF SSFF SSFF SSFF SSFF", 4)
    plan = ValueBaseline().plan(groups, random.Random(0))
    solved = groups.solved[plan.rollout]
    shift = torch.zeros(len(plan), 4, dtype=torch.float64)
    shift[:, 1] = torch.where(solved, log(2), -3.0)
    student = torch.full_like(shift, -1.0)
    rows = {"student_logps": student, "teacher_logps": student + shift, "student_entropy": torch.ones_like(shift)}
    evidence = make_evidence(len(plan), 4, **rows)
    credit = ValueBaseline(shrink=0.1).assign(groups, plan, evidence)
    assert credit.metrics["value_explained_frac"] > 0.4
    failed = credit.advantages[~groups.solved]
    assert (failed[:, 2:] > -0.3).all()  # after the error
    assert (failed[:, :2] < -0.8).all()  # with it, and before
    local = ValueBaseline(shrink=0.1, gae_lambda=0.0).assign(groups, plan, evidence).advantages[~groups.solved]
    assert (local[:, 1] < -0.7).all()  # the error alone
    assert (local[:, [0, 2]].abs() < 0.3).all()


def test_generalized_advantages_by_hand() -> None:
    """v = (.5, .2), outcome 1, lambda 1/2: (.2 - .5) + 1/2 (1 - .2) and 1 - .2; what is not active is passed over."""
    v = torch.tensor([[0.5, 9.0, 0.2]], dtype=torch.float64)
    active = torch.tensor([[True, False, True]])
    target = torch.ones(1, dtype=torch.float64)
    close(generalized_advantages(target, v, active, 0.5), [[0.1, 0.0, 0.8]])
    close(generalized_advantages(target, v, active, 0.0), [[-0.3, 0.0, 0.8]])
    close(generalized_advantages(target, v, active, 1.0), [[0.5, 0.0, 0.8]])
    nearly = generalized_advantages(target, v, active, 1 - 1e-12)
    close(nearly, generalized_advantages(target, v, active, 1.0), atol=1e-9)


def test_small_parts() -> None:
    close(before(torch.tensor([[1.0, 2.0, 4.0]])), [[0.0, 1.0, 3.0]])
    close(pass_rates(make_groups("SFFU SSSF")), [1 / 3] * 4 + [0.75] * 4)


@pytest.mark.parametrize("wrong", [{"num_demonstrations": 0}, {"gae_lambda": 1.1}, {"shrink": 0.0}])
def test_impossible_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="value_baseline"):
        ValueBaseline(**wrong)
