"""Avg@k, Pass@k, and intervals against numbers known from elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scgrpo.errors import ConfigError, ShapeError
from scgrpo.evaluation.metrics import (
    Estimate,
    ProblemResult,
    avg_at_k,
    mean_over_problems,
    mean_pass_at_k,
    pass_at_k,
)
from scgrpo.stats import t_quantile


@pytest.mark.parametrize(
    ("n", "c", "k", "value"),
    [
        (1, 1, 1, 1.0),
        (8, 0, 8, 0.0),
        (8, 1, 8, 1.0),
        (8, 3, 1, 0.375),
        (4, 2, 2, 5 / 6),
        (10, 3, 5, 1 - 21 / 252),
        (200, 20, 10, 0.660225623763),
        (5, 5, 5, 1.0),
    ],
)
def test_pass_at_k_values(n: int, c: int, k: int, value: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(value, abs=1e-9)


def test_pass_at_k_needs_k_samples() -> None:
    assert np.isnan(pass_at_k([7, 0, 8], [7, 0, 8], 8)).tolist() == [True, True, False]
    for n, c, k in ((8, 9, 1), (8, -1, 1), (8, 1, 0)):
        with pytest.raises(ConfigError):
            pass_at_k(n, c, k)
    with pytest.raises(ShapeError):
        pass_at_k([8, 8], [1], 1)


# Two-sided 95 % quantiles of Student's t, as printed in tables.
@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (7, 2.3646), (29, 2.0452), (199, 1.9720), (100_000, 1.9600)],
)
def testt_quantiles(freedom: int, quantile: float) -> None:
    assert t_quantile(freedom, 0.95) == pytest.approx(quantile, abs=6e-5)


def test_interval_of_unbounded_values_is_the_t_interval() -> None:
    # mean 3, standard deviation sqrt(2.5), 4 degrees of freedom: 3 +- 2.7764 * sqrt(2.5 / 5)
    estimate = mean_over_problems([1, 2, 3, 4, 5])
    assert (estimate.value, estimate.num_problems) == (3.0, 5)
    assert (estimate.low, estimate.high) == pytest.approx((3 - 1.963243, 3 + 1.963243), abs=1e-5)


def test_interval_of_zeros_and_ones_is_wilson_with_t() -> None:
    # 9 of 30: effective size p (1 - p) / s^2 = 29, quantile 2.04523.
    estimate = mean_over_problems([1.0] * 9 + [0.0] * 21)
    square = 2.04523**2 / 29
    half = math.sqrt(0.3 * 0.7 * square + square**2 / 4) / (1 + square)
    center = (0.3 + square / 2) / (1 + square)
    assert (estimate.low, estimate.high) == pytest.approx((center - half, center + half), abs=1e-6)


def test_equal_problems_still_leave_doubt() -> None:
    none = mean_over_problems([0.0] * 30)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(2.04523**2 / (30 + 2.04523**2), abs=1e-6)
    every = mean_over_problems([1.0] * 30)
    assert (every.value, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(1 - none.high, abs=1e-12)


def test_too_few_problems_have_no_interval() -> None:
    one = mean_over_problems([0.5, math.nan])
    assert (one.value, math.isnan(one.low), one.num_problems) == (0.5, True, 1)
    nothing = mean_over_problems([])
    assert (math.isnan(nothing.value), nothing.num_problems) == (True, 0)
    assert nothing.to_record() == {"value": None, "low": None, "high": None}


def test_more_confidence_is_a_wider_interval() -> None:
    values = [0.1, 0.5, 0.4, 0.9]
    narrow, wide = (mean_over_problems(values, confidence=c) for c in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
    with pytest.raises(ConfigError, match="confidence is 95"):
        mean_over_problems([0, 1], confidence=95)


def test_ungraded_completions_are_neither_right_nor_wrong() -> None:
    problem = ProblemResult.from_scores("p", [1.0, math.nan, 0.0, 0.5, 0.2], success_threshold=0.5)
    assert problem == ProblemResult("p", n=4, num_solved=2, mean_score=0.425, num_errors=1)
    blind = ProblemResult.from_scores("q", [math.nan] * 5, success_threshold=0.5)
    assert (blind.n, blind.num_errors, math.isnan(blind.mean_score)) == (0, 5, True)
    assert avg_at_k([problem, blind]).value == 0.425
    assert avg_at_k([problem, blind]).num_problems == 1
    assert mean_pass_at_k([problem, blind], 4).value == 1.0
    assert mean_pass_at_k([problem, blind], 5).num_problems == 0


def test_avg_counts_each_problem_once() -> None:
    problems = [
        ProblemResult.from_scores("a", [1.0, 1.0, 1.0, 1.0], 0.5),
        ProblemResult.from_scores("b", [0.0, math.nan, math.nan, math.nan], 0.5),
    ]
    assert avg_at_k(problems).value == 0.5


def coverage(rng: np.random.Generator, alpha: float, beta: float, problems: int, trials: int) -> float:
    truth, hits = alpha / (alpha + beta), 0
    for _ in range(trials):
        difficulty = rng.beta(alpha, beta, problems)
        estimate = mean_over_problems(rng.binomial(8, difficulty) / 8)
        hits += estimate.low <= truth <= estimate.high
    return hits / trials


@pytest.mark.parametrize(
    ("alpha", "beta", "problems", "least", "most"),
    [
        (0.5, 1.0, 30, 0.94, 0.98),
        (0.5, 1.0, 200, 0.94, 0.98),
        (0.1, 3.0, 30, 0.86, 0.95),
        (3.0, 0.1, 200, 0.92, 0.98),
    ],
)
def test_documented_coverage(alpha: float, beta: float, problems: int, least: float, most: float) -> None:
    assert least < coverage(np.random.default_rng(1), alpha, beta, problems, trials=2000) < most


def test_estimates_are_plain_records() -> None:
    assert Estimate(0.5, 0.4, 0.6, 9).to_record() == {"value": 0.5, "low": 0.4, "high": 0.6}
