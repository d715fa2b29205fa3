"""The relatives of SC-GRPO, with numbers worked out by hand."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from credit_cases import close, every, make_evidence, make_groups

from scgrpo.credit import CAST, NONE, RLCSD, RLSD, STARE, AntiSD, EntropyMask, Evidence, RLCSDWeight, Route
from scgrpo.credit.antisd import teacher_entropy
from scgrpo.credit.cast import signed_base
from scgrpo.credit.methods import stack_pairs
from scgrpo.errors import ConfigError

log = math.log
GROUPS = make_groups("SSFF", [2, 1, 2, 2])
NOTHING = [[0.0, 0.0]] * 4


def credit_of(method: Any, groups: Any = GROUPS, **rows: Any) -> Any:
    plan = method.plan(groups, random.Random(0))
    fields = {name: every(groups, plan, values) for name, values in rows.items()}
    return method.assign(groups, plan, make_evidence(len(plan), groups.mask.shape[1], **fields))


# ---- RLSD ----

SHIFTS = [[log(1.1), log(2)], [log(0.5), 0], [log(1.25), log(1 / 1.1)], [0, 0]]


@pytest.mark.parametrize(("step", "strength"), [(0, 0.5), (25, 0.25), (50, 0.0), (80, 0.0)])
def test_rlsd_by_hand(step: int, strength: float) -> None:
    credit = credit_of(RLSD(), replace(GROUPS, step=step), teacher_logps=SHIFTS, student_logps=NOTHING)
    w = torch.tensor([[1.1, 1.2], [0.8, 1.0], [0.8, 1.1], [1.0, 1.0]])  # failed rollouts: exp(-Delta)
    close(credit.weights, 1 + strength * (w - 1), atol=1e-7)
    close(credit.advantages, GROUPS.advantages[:, None] * credit.weights)
    assert credit.metrics["strength"] == strength


def test_rlsd_survives_an_impossible_token() -> None:
    wild = [[900.0, -900.0]] * 4
    credit = credit_of(RLSD(), teacher_logps=wild, student_logps=NOTHING)
    close(credit.weights[0], [1.1, 0.9], atol=1e-7)


# ---- AntiSD ----


def test_antisd_by_hand() -> None:
    student = torch.full((4, 2), log(0.25), dtype=torch.float64)
    teacher = student + torch.tensor([[0.0, log(3)], [log(1 / 3), 0], [log(3), 0.0], [0, 0]])
    credit = credit_of(AntiSD(entropy_gate=0.0), teacher_logps=teacher, student_logps=student)
    close(credit.advantages[0], [1.0, 1 - log(2) / 2], atol=1e-7)  # softplus(log 3) = log 4
    close(credit.advantages[1, :1], [1 + log(1.5) / 2], atol=1e-7)  # softplus(-log 3) = log 4/3
    close(credit.advantages[2], [-1 - log(2) / 2, -1.0], atol=1e-7)
    close(credit.weights[2], [1 + log(2) / 2, 1.0], atol=1e-7)
    half = credit_of(AntiSD(strength=0.5, entropy_gate=0.0), teacher_logps=teacher, student_logps=student)
    close(half.advantages[0], [1.0, 1 - log(2) / 4], atol=1e-7)


def test_antisd_stops_when_the_teacher_is_certain() -> None:
    shifts = [[log(0.9), log(0.9)]] * 4
    options = {"teacher_logps": shifts, "student_logps": [[log(0.5), log(0.5)]] * 4}
    credit = credit_of(AntiSD(entropy_gate=0.2), **options)
    close(credit.weights, torch.ones(4, 2))
    assert credit.metrics["gate"] == 0.0
    assert credit.metrics["teacher_entropy"] == pytest.approx(-log(0.9))
    assert credit_of(AntiSD(entropy_gate=0.1), **options).metrics["gate"] == 1.0


def test_the_teachers_entropy_is_importance_weighted() -> None:
    """r = 2 and 1: (2 log 2 + log 4) / 3."""
    teacher = torch.tensor([[log(0.5), log(0.25)]])
    student = torch.tensor([[log(0.25), log(0.25)]])
    found = teacher_entropy(teacher, teacher - student, torch.ones(1, 2, dtype=torch.bool))
    assert found == pytest.approx(4 / 3 * log(2))
    assert teacher_entropy(teacher, teacher, torch.zeros(1, 2, dtype=torch.bool)) == 0.0


def test_the_teachers_entropy_is_unbiased_in_expectation() -> None:
    """Over every token of a small vocabulary, in the proportions in which the student samples them."""
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 6, dtype=torch.float64).log_softmax(-1)
    counts = (student.exp() * 100_000).round().long()
    t, s = teacher.repeat_interleave(counts)[None], student.repeat_interleave(counts)[None]
    found = teacher_entropy(t, t - s, torch.ones_like(t, dtype=torch.bool))
    assert found == pytest.approx(-(teacher.exp() * teacher).sum().item(), abs=1e-3)


# ---- 80/20 and STARE: nothing but the student ----


def test_entropy_mask_keeps_a_fifth() -> None:
    groups = make_groups("SF SS", [5, 5, 2, 2])
    entropy = [[0.1, 0.9, 0.3, 0.2, 0.5], [0.4, 0.6, 0.8, 0.7, 0.0], [2.0] * 5, [2.0] * 5]
    plan = EntropyMask().plan(groups, random.Random(0))
    assert plan.rollout.tolist() == [0, 1]  # the others have no advantage
    assert plan.demonstration.tolist() == [NONE, NONE]
    credit = credit_of(EntropyMask(), groups, student_entropy=entropy)
    close(credit.weights[:2], [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0]])
    close(credit.weights[2:], torch.ones(2, 5))
    assert credit.metrics["weight_mean"] == pytest.approx(0.2)
    assert credit.metrics["entropy_cut"] == pytest.approx(0.8)


@pytest.mark.parametrize(("entropy", "on"), [(0.29, True), (0.31, False)])
def test_stare_lifts_surprising_tokens_while_entropy_is_low(entropy: float, on: bool) -> None:
    groups = make_groups("SF", [10, 10])
    logps = torch.full((2, 10), -0.1)
    logps[0, 3], logps[1, 4] = -2.0, -9.0  # the failed rollout's is no candidate
    credit = credit_of(STARE(), groups, student_logps=logps, student_entropy=torch.full((2, 10), entropy))
    expected = torch.ones(2, 10)
    expected[0, 3] = 1.1 if on else 1.0
    close(credit.weights, expected, atol=1e-7)
    assert credit.metrics["gate"] == on


# ---- RLCSD ----


def test_rlcsd_plans_one_correct_and_up_to_k_wrong_siblings() -> None:
    groups = make_groups("SSFFF SSFf SFFF")
    plan = RLCSD(num_wrong=2).plan(groups, random.Random(0))
    assert plan.contrast is not None
    assert not plan.verified.any()  # both contexts in the wording that claims nothing
    assert groups.solved[plan.contrast].all()
    assert not groups.solved[plan.demonstration].any()
    assert not groups.truncated[plan.demonstration].any()
    assert (plan.contrast != plan.rollout).all()
    assert (plan.demonstration != plan.rollout).all()
    counts = torch.bincount(plan.rollout, minlength=13).tolist()
    assert counts == [2] * 5 + [1, 1, 0, 1] + [0] * 4  # the only usable failed one has no failed sibling
    for row in plan.rollout.unique():
        assert len(plan.contrast[plan.rollout == row].unique()) == 1
        assert len(plan.demonstration[plan.rollout == row].unique()) == counts[int(row)]
    assert not plan.single


def test_rlcsd_by_hand() -> None:
    """One token each, two wrong siblings. Rollouts 0 and 1 (A = 1): e = log(.6/.3) and 0; 2, 3, 4 (A = -1, -.3, -1):
    e = log 2, log 2 and log(1/2). r = +-.5 where e is not 0, as tanh(log 2 / .02) = 1."""
    groups = make_groups("SSFFF", 1, advantages=torch.tensor([1.0, 1.0, -1.0, -0.3, -1.0], dtype=torch.float64))
    method = RLCSD(num_wrong=2)
    plan = method.plan(groups, random.Random(0))
    right = torch.tensor([0.6, 0.5, 0.6, 0.6, 0.2])[plan.rollout, None].log()
    low, high = torch.tensor([0.2, 0.25, 0.3, 0.1, 0.4]), torch.tensor([0.4, 0.75, 0.3, 0.5, 0.4])
    first = torch.tensor([p == 0 or int(plan.rollout[p - 1]) != int(plan.rollout[p]) for p in range(len(plan))])
    wrong = torch.where(first, low[plan.rollout], high[plan.rollout])[:, None].log()
    credit = method.assign(groups, plan, make_evidence(len(plan), 1, teacher_logps=wrong, student_logps=right))
    # Four of five tokens are selected: factors 5/4 and 5.
    shaped = torch.tensor([[1.5 * 5 / 4], [1.0 * 5], [-0.5 * 5 / 4], [0.0], [-1.5 * 5 / 4]])
    close(credit.advantages, shaped, atol=1e-6)
    assert credit.metrics["selected_token_frac"] == pytest.approx(0.8)
    close(credit.weights[:1], [[1.5 * 5 / 4]], atol=1e-6)


def test_rlcsd_marginalises_over_the_wrong_siblings_there_are() -> None:
    """A rollout with one pair beside one with two: e = log(.5/.25) and log(.5 / mean(.25, .75)) = 0."""
    groups = make_groups("SSFF", 1)
    plan = RLCSD().plan(groups, random.Random(0))
    assert torch.bincount(plan.rollout).tolist() == [2, 2, 1, 1]
    seen: set[int] = set()
    wrong = []
    for row in plan.rollout.tolist():
        wrong.append([log(0.75 if row in seen else 0.25)])
        seen.add(row)
    right = [[log(0.5)]] * len(plan)
    credit = RLCSD().assign(groups, plan, make_evidence(len(plan), 1, teacher_logps=wrong, student_logps=right))
    close(credit.advantages, [[2.0], [2.0], [-0.5 * 2], [-0.5 * 2]], atol=1e-6)  # A / 2 tokens of 4, twice


def test_stacked_pairs_keep_the_plans_order() -> None:
    groups = make_groups("SSFF", 1)
    plan = RLCSD().plan(groups, random.Random(0))
    values = torch.arange(len(plan), dtype=torch.float64)[:, None]
    stacked, there = stack_pairs("x", values, groups, plan)
    assert there.tolist() == [[True, True], [True, True], [True, False], [True, False]]
    for row in range(4):
        assert stacked[row, there[row], 0].tolist() == (plan.rollout == row).nonzero()[:, 0].tolist()
    nothing, none = stack_pairs(
        "x",
        values[:0],
        groups,
        replace(
            plan, **{name: getattr(plan, name)[:0] for name in ("rollout", "demonstration", "verified", "contrast")}
        ),
    )
    assert nothing.shape == (4, 0, 1)
    assert none.shape == (4, 0)


def test_the_contrast_as_a_weight() -> None:
    groups = make_groups("SSFF SSF FFF")
    plan = RLCSDWeight().plan(groups, random.Random(0))
    assert plan.contrast is not None
    partial = groups.group[plan.rollout] == 0
    assert (plan.contrast[~partial] == NONE).all()
    assert groups.solved[plan.contrast[partial]].all()
    assert not groups.solved[plan.demonstration].any()
    assert (plan.contrast != plan.rollout).all()
    credit = RLCSDWeight().assign(groups, plan, make_evidence(len(plan), 3, token_kl=torch.ones(len(plan), 3)))
    close(credit.weights[:4], torch.full((4, 3), 0.5))
    assert credit.route.tolist() == [Route.PARTIAL] * 4 + [Route.FALLBACK] * 3 + [Route.NONE_SOLVED] * 3


# ---- CAST ----


def test_cast_gives_groups_without_variance_their_own_sign() -> None:
    groups = make_groups("SF SSU FF")
    close(signed_base(groups), [1, -1, 1, 1, 0, -1, -1])
    plan = CAST().plan(groups, random.Random(0))
    assert plan.rollout.tolist() == [0, 1, 2, 3, 5, 6]
    assert plan.alone.all()
    assert plan.single


def test_cast_by_hand() -> None:
    """B = 1: w clipped to [.8, 1.05]; B = -1: exp(-g) clipped to [.95, 1.2]. Opposed beyond 0.05 nats: turned."""
    groups = make_groups("SF", 4)
    g = [[log(1.04), log(2), -0.04, -1.0], [-log(1.1), -log(2), 0.04, 1.0]]
    credit = credit_of(CAST(), groups, teacher_logps=g, student_logps=torch.zeros(2, 4))
    close(credit.advantages[0], [1.04, 1.05, math.exp(-0.04), -0.8], atol=1e-7)
    close(credit.advantages[1], [-1.1, -1.2, -math.exp(-0.04), 0.95], atol=1e-7)
    assert credit.metrics["turned_token_frac"] == 0.25
    kept = credit_of(CAST(flip=False, strength=0.5), groups, teacher_logps=g, student_logps=torch.zeros(2, 4))
    close(kept.advantages[0], [1.02, 1.025, 1 + (math.exp(-0.04) - 1) / 2, 0.9], atol=1e-7)


def test_turned_advantages_are_bounded() -> None:
    groups = make_groups("SF", 1, advantages=torch.tensor([2.6, -0.4], dtype=torch.float64))
    credit = credit_of(CAST(), groups, teacher_logps=[[-1.0], [1.0]], student_logps=torch.zeros(2, 1))
    close(credit.advantages, [[-1.2], [0.38]], atol=1e-7)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: RLSD(clip=1.0), "clip in"),
        (lambda: AntiSD(strength=-1.0), "Choose both >= 0"),
        (lambda: EntropyMask(top_fraction=0.0), "top_fraction is 0.0"),
        (lambda: STARE(entropy_gate=-0.1), "entropy_gate >= 0"),
        (lambda: RLCSD(num_wrong=0), "num_wrong >= 1"),
        (lambda: CAST(strength=-1.0), "Choose both >= 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(make: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()


def test_evidence_is_never_differentiated() -> None:
    values = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    for method in (RLSD(), AntiSD(entropy_gate=0.0), EntropyMask(), STARE(), CAST()):
        plan = method.plan(GROUPS, random.Random(0))
        credit = method.assign(GROUPS, plan, Evidence(*[values[plan.rollout]] * 4))
        assert not credit.advantages.requires_grad
