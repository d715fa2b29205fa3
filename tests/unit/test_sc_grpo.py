"""The method, with numbers worked out by hand."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from scgrpo.credit import SCGRPO, Evidence, Groups, Plan, Route
from scgrpo.credit.sc_grpo import unsolved_pairs
from scgrpo.errors import ConfigError, NonFiniteError, ShapeError

NAN = float("nan")


@pytest.fixture
def users_call() -> Iterator[None]:
    """Without the type checks of the test suite, as an installed package runs."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def make_groups(letters: str, lengths: list[int], group: list[int] | None = None, **changes: Any) -> Groups:
    """S solved, F failed, U without a verdict; advantages 1, 2, 3, ... are easy to recognise in a product."""
    size, length = len(letters), torch.tensor(lengths)
    fields: dict[str, Any] = {
        "group": torch.tensor(group or [0] * size),
        "solved": torch.tensor([letter == "S" for letter in letters]),
        "graded": torch.tensor([letter != "U" for letter in letters]),
        "truncated": torch.zeros(size, dtype=torch.bool),
        "lengths": length,
        "mask": torch.arange(int(length.max())) < length[:, None],
        "advantages": torch.arange(1, size + 1, dtype=torch.float64),
        "micro_batch": torch.zeros(size, dtype=torch.long),
    }
    return Groups(**{**fields, **changes})


def make_plan(*pairs: tuple[int, int], verified: bool | list[bool] = True) -> Plan:
    flags = [verified] * len(pairs) if isinstance(verified, bool) else verified
    return Plan(
        torch.tensor([i for i, _ in pairs], dtype=torch.long),
        torch.tensor([j for _, j in pairs], dtype=torch.long),
        torch.tensor(flags, dtype=torch.bool),
    )


def evidence(*rows: list[float], dtype: torch.dtype = torch.float64) -> Evidence:
    token_kl = torch.tensor(rows, dtype=dtype)
    return Evidence(token_kl, *(torch.full_like(token_kl, NAN) for _ in range(3)))  # nothing else is read


def close(actual: Tensor, expected: list[Any], atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=0, atol=atol)


PARTIAL = make_groups("SSFF", [2, 1, 2, 2])
CYCLE = make_plan((0, 1), (1, 0), (2, 0), (3, 1))
# Active D: 0 .1 .2 .3 .4 .5 .6; the 0.75 quantile stands at position 4.5: c = 0.45.
SHIFTS = evidence([0.6, 0.0], [0.3, 0.0], [0.2, 0.1], [0.5, 0.4])
WEIGHTS = [
    [0.6 / 1.05, 0.0],
    [0.3 / 0.75, 0.0],
    [0.2 / 0.65, 0.1 / 0.55],
    [0.5 / 0.95, 0.4 / 0.85],
]


def test_a_partial_group_by_hand() -> None:
    credit = SCGRPO().assign(PARTIAL, CYCLE, SHIFTS)
    close(credit.weights, WEIGHTS)
    close(credit.base, [1, 2, 3, 4])
    close(credit.advantages, [[(row + 1) * w for w in weights] for row, weights in enumerate(WEIGHTS)])
    assert credit.route.tolist() == [Route.PARTIAL] * 4


def test_the_metrics_of_that_group() -> None:
    metrics = SCGRPO().assign(PARTIAL, CYCLE, SHIFTS).metrics
    active = [WEIGHTS[0][0], WEIGHTS[0][1], WEIGHTS[1][0], *WEIGHTS[2], *WEIGHTS[3]]
    total, squares = sum(active), sum(w * w for w in active)
    assert metrics == pytest.approx(
        {
            "route_fallback_frac": 0,
            "route_partial_frac": 1,
            "route_none_solved_frac": 0,
            "ungraded_frac": 0,
            "demonstration_frac": 1,
            "token_kl_p25": 0.15,
            "token_kl_p50": 0.3,
            "token_kl_p75": 0.45,
            "token_kl_p90": 0.54,
            "token_kl_p95": 0.57,
            "token_kl_max": 0.6,
            "threshold": 0.45,
            "weight_mean": total / 7,
            "weight_mean_solved": sum(active[:3]) / 3,
            "weight_mean_failed": sum(active[3:]) / 4,
            "effective_token_frac": total**2 / (7 * squares),
        },
        abs=1e-12,
    )


def test_effective_token_frac_is_one_when_credit_is_even_and_one_over_n_on_a_single_token() -> None:
    groups = make_groups("SSFF", [1, 1, 1, 1])
    even = SCGRPO().assign(groups, CYCLE, evidence([0.2], [0.2], [0.2], [0.2])).metrics
    assert even["effective_token_frac"] == pytest.approx(1)
    assert even["weight_mean"] == pytest.approx(0.5)
    single = SCGRPO().assign(groups, CYCLE, evidence([0.2], [0.0], [0.0], [0.0])).metrics
    assert single["effective_token_frac"] == pytest.approx(0.25)
    nothing = SCGRPO().assign(groups, CYCLE, evidence([0.0], [0.0], [0.0], [0.0])).metrics
    assert nothing["effective_token_frac"] == 0


def test_no_context_effect_means_no_credit() -> None:
    credit = SCGRPO().assign(PARTIAL, CYCLE, evidence(*[[0.0, 0.0]] * 4))
    assert not credit.weights.any()
    assert not credit.advantages.any()


# A solve-none group: c = max(min D, 1) = 1 with quantile 0 and floor 1, so D = 0, 1, 3 have weights 0, 1/2, 3/4.
NONE = make_groups("FFFF", [1, 2, 2, 2], advantages=torch.zeros(4, dtype=torch.float64))
UNIT = SCGRPO(quantile=0.0, floor=1.0)
SHOWN_FIRST = make_plan((1, 0), (2, 0), (3, 0), verified=False)


def test_a_solve_none_group_by_hand() -> None:
    # L = 1: scores 1/2, 3/4, 0; mean 5/12; deviations 1/12, 4/12, -5/12; std = sqrt(42/144 / 2) = 0.38188130791.
    credit = UNIT.assign(NONE, SHOWN_FIRST, evidence([1, 3], [3, 1], [0, 3]))
    scale = 0.1 / (0.38188130791298663 + 1e-6)
    base = [0, scale / 12, scale * 4 / 12, -scale * 5 / 12]
    close(credit.base, base)
    close(credit.base, [0, 0.0218217, 0.0872869, -0.1091087], atol=3e-7)
    close(credit.weights, [[1, 1], [0.5, 0.75], [0.75, 0.5], [0, 0.75]])
    close(
        credit.advantages,
        [[0, 0], [base[1] * 0.5, base[1] * 0.75], [base[2] * 0.75, base[2] * 0.5], [0, base[3] * 0.75]],
    )
    assert credit.route.tolist() == [Route.NONE_SOLVED] * 4
    assert credit.metrics["demonstration_frac"] == 0.75


def test_alpha_scales_the_pseudo_advantage_and_zero_switches_it_off() -> None:
    shifts = evidence([1, 3], [3, 1], [0, 3])
    one = UNIT.assign(NONE, SHOWN_FIRST, shifts).base
    two = SCGRPO(quantile=0.0, floor=1.0, alpha=0.2).assign(NONE, SHOWN_FIRST, shifts).base
    torch.testing.assert_close(two, 2 * one)

    off = SCGRPO(alpha=0.0)
    assert off.route(NONE).tolist() == [Route.FALLBACK] * 4
    plan = off.plan(NONE, random.Random(0))
    assert len(plan) == 0
    credit = off.assign(NONE, plan, Evidence(*torch.zeros(4, 0, 2, dtype=torch.float64)))
    assert torch.equal(credit.weights, torch.ones(4, 2, dtype=torch.float64))


def test_tool_output_does_not_enter_the_diversity_score() -> None:
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 1]]).bool()
    groups = make_groups("FFF", [3, 3, 3], mask=mask, advantages=torch.zeros(3, dtype=torch.float64))
    plan = make_plan((1, 0), (2, 0), verified=False)
    # Scores: mean(3/4, 1/2) = 5/8 over the two tokens that count, and 5/8 over three.
    credit = UNIT.assign(groups, plan, evidence([9, 3, 1], [1, 1, 3]))
    scores = [5 / 8, (0.5 + 0.5 + 0.75) / 3]
    half = (scores[0] - scores[1]) / 2
    expected = 0.1 * half / (half * 2**0.5 + 1e-6)
    close(credit.base, [0, expected, -expected])


def test_equal_scores_and_single_scores_earn_nothing() -> None:
    close(UNIT.assign(NONE, SHOWN_FIRST, evidence([3, 0], [3, 1], [3, 9])).base, [0, 0, 0, 0])
    groups = make_groups("FF", [2, 2], advantages=torch.zeros(2, dtype=torch.float64))
    credit = UNIT.assign(groups, make_plan((1, 0), verified=False), evidence([3, 1]))
    close(credit.base, [0, 0])
    close(credit.weights, [[1, 1], [0.75, 0.5]])


def test_all_tokens_masked_leaves_the_hosts_advantages() -> None:
    groups = make_groups("SSFF", [2, 2, 2, 2], mask=torch.zeros(4, 2, dtype=torch.bool))
    plan = SCGRPO().plan(groups, random.Random(0))
    credit = SCGRPO().assign(groups, plan, Evidence(*torch.zeros(4, 0, 2, dtype=torch.float64)))
    assert torch.equal(credit.advantages, groups.advantages[:, None].expand(4, 2))
    assert torch.equal(credit.weights, torch.ones(4, 2, dtype=torch.float64))
    assert "token_kl_p50" not in credit.metrics
    assert credit.metrics["demonstration_frac"] == 0


@pytest.mark.parametrize("letters", ["SFFF", "SSSS", "SFUU", "SSUU"])
def test_fallback_groups_keep_their_bits(letters: str) -> None:
    advantages = torch.randn(4, generator=torch.Generator().manual_seed(0))
    groups = make_groups(letters, [5, 3, 1, 4], advantages=advantages)
    method = SCGRPO(normalize="mean_one", mix=0.3, weight_sign="solved")
    plan = method.plan(groups, random.Random(0))
    credit = method.assign(groups, plan, Evidence(*torch.zeros(4, len(plan), 5)))
    assert len(plan) == 0
    assert torch.equal(credit.advantages, advantages[:, None].expand(4, 5))
    assert torch.equal(credit.weights, torch.ones(4, 5))


def test_one_threshold_serves_both_routes_and_micro_batches_can_have_their_own() -> None:
    groups = make_groups("SSFFFFFF", [1] * 8, [0] * 4 + [1] * 4, micro_batch=torch.tensor([0, 1] * 4))
    plan = make_plan((0, 1), (1, 0), (2, 0), (3, 1), (5, 4), (6, 4), (7, 4), verified=[True] * 4 + [False] * 3)
    shifts = evidence([1], [2], [3], [4], [5], [6], [7])
    # Whole batch: 0.75 quantile of 1..7 is 5.5. Micro-batch 0 has rows 0 2 (4) 6: D 1 3 6 -> 4.5; 1: 2 4 5 7 -> 5.5.
    whole = SCGRPO().assign(groups, plan, shifts).weights[:, 0]
    close(whole, [1 / 6.5, 2 / 7.5, 3 / 8.5, 4 / 9.5, 1, 5 / 10.5, 6 / 11.5, 7 / 12.5])
    micro = SCGRPO(scope="micro_batch").assign(groups, plan, shifts)
    close(micro.weights[:, 0], [1 / 5.5, 2 / 7.5, 3 / 7.5, 4 / 9.5, 1, 5 / 10.5, 6 / 10.5, 7 / 12.5])
    assert micro.metrics["threshold"] == pytest.approx((3 * 4.5 + 4 * 5.5) / 7)


@pytest.mark.parametrize(("sign", "own"), [("solved", [0, 1]), ("failed", [2, 3])])
def test_weight_sign_leaves_the_other_side_the_mean_weight(sign: Any, own: list[int]) -> None:
    credit = SCGRPO(weight_sign=sign).assign(PARTIAL, CYCLE, SHIFTS)
    active = [WEIGHTS[0][0], WEIGHTS[0][1], WEIGHTS[1][0], *WEIGHTS[2], *WEIGHTS[3]]
    mean = sum(active) / 7
    for row in range(4):
        for position in range(int(PARTIAL.lengths[row])):
            expected = WEIGHTS[row][position] if row in own else mean
            assert credit.weights[row, position].item() == pytest.approx(expected, abs=1e-12)


def test_mix_and_mean_one_on_the_method() -> None:
    active = PARTIAL.mask
    plain = SCGRPO().assign(PARTIAL, CYCLE, SHIFTS).weights[active]
    mixed = SCGRPO(mix=0.5).assign(PARTIAL, CYCLE, SHIFTS).weights[active]
    torch.testing.assert_close(mixed, 0.5 * plain + 0.5 * plain.mean(), rtol=0, atol=1e-12)
    scaled = SCGRPO(normalize="mean_one").assign(PARTIAL, CYCLE, SHIFTS).weights[active]
    torch.testing.assert_close(scaled, plain / plain.mean(), rtol=0, atol=1e-12)


def test_credit_carries_no_gradient() -> None:
    token_kl = SHIFTS.token_kl.clone().requires_grad_()
    credit = SCGRPO().assign(PARTIAL, CYCLE, Evidence(token_kl, token_kl, token_kl, token_kl))
    assert not credit.weights.requires_grad
    assert not credit.advantages.requires_grad


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_non_finite_token_kl_is_an_error_naming_the_rollout(value: float) -> None:
    plan = make_plan((3, 1), (2, 0), (1, 0), (0, 1))  # pair 0 is row 3
    with pytest.raises(NonFiniteError, match=r"token_kl is (nan|inf) at row 3, position 1 \(1 of 8 values\)"):
        SCGRPO().assign(PARTIAL, plan, evidence([0.1, value], [0.1, 0.1], [0.1, 0.0], [0.1, 0.1]))


def test_evidence_for_another_plan_is_an_error() -> None:
    with pytest.raises(ShapeError, match=r"shape \(1, 2\) for 4 pairs of 2 tokens"):
        SCGRPO().assign(PARTIAL, CYCLE, evidence([0.1, 0.1]))


def test_pairs_of_solve_none_groups_are_found_among_the_others() -> None:
    groups = make_groups("SSFFFFFFF", [1] * 9, [5, 5, 5, 2, 2, 2, 9, 9, 9])
    plan = make_plan((0, 1), (1, 0), (2, 1), (4, 3), (5, 3), (6, 8), (7, 8), verified=[True] * 3 + [False] * 4)
    found = [(rows.tolist(), int(shown)) for rows, shown in unsolved_pairs(groups, plan)]
    assert found == [([4, 5], 3), ([6, 7], 8)]


def test_impossible_settings_are_named_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        SCGRPO(quantile=1.5, floor=0.0, alpha=-1.0, mix=2.0)
    for name in ("quantile is 1.5", "floor is 0.0 nats", "alpha is -1.0", "mix is 2.0"):
        assert name in str(caught.value)
    with pytest.raises(ConfigError, match="quantile is nan"):
        SCGRPO(quantile=NAN)


@pytest.mark.usefixtures("users_call")
@pytest.mark.parametrize(("name", "value"), [("scope", "batch"), ("normalize", "sum"), ("weight_sign", "+")])
def test_unknown_choices_are_answered_with_the_known_ones(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is '.*': choose one of [a-z_]+, [a-z_]+"):
        SCGRPO(**{name: value})  # type: ignore[arg-type]
