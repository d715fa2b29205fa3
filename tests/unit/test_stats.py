"""Statistics of paired runs: against numbers worked out by hand, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scgrpo.errors import ShapeError
from scgrpo.stats import (
    area_under_curve,
    cluster_contrast,
    holm,
    sign_flip_p,
    smallest_sign_flip_p,
    t_interval,
    unit_contrast,
)


def test_holm() -> None:
    # ascending .01 .03 .04, times 3, 2, 1 = .03 .06 .04, made monotone
    assert holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == pytest.approx([0.02])
    assert len(holm([])) == 0
    # what was not tested does not count
    corrected = holm([0.02, math.nan, 0.01])
    assert corrected[[0, 2]] == pytest.approx([0.02, 0.02])
    assert math.isnan(corrected[1])


def test_sign_flips_are_counted() -> None:
    # of 8 patterns of 1, 2, 3 only +++ and --- reach 6
    assert sign_flip_p([1, 2, 3]) == 2 / 8
    # of -1, 2, 3 the sums 4 and beyond: +-(2 + 3 - 1), +-(1 + 2 + 3)
    assert sign_flip_p([-1, 2, 3]) == 4 / 8
    assert sign_flip_p([1, 1, 1, -1]) == (2 + 8) / 16
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([5.0]) == 1.0
    assert math.isnan(sign_flip_p([]))


def test_few_pairs_cannot_give_a_small_p() -> None:
    assert [smallest_sign_flip_p(n) for n in (0, 1, 5, 6, 10)] == [1.0, 1.0, 0.0625, 0.03125, 2 / 1024]
    assert sign_flip_p([0.1] * 5) == 0.0625
    assert sign_flip_p(np.full(20, 0.1)) == smallest_sign_flip_p(20) == 1 / 20_000


def test_drawn_sign_flips_agree_with_the_normal_limit() -> None:
    values = np.random.default_rng(0).normal(0.25, 1, 60)
    z = values.sum() / math.sqrt((values**2).sum())
    assert sign_flip_p(values) == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.01)


def test_area_under_a_curve() -> None:
    # (0 + .4) / 2 * 50 + (.4 + .6) / 2 * 50 = 35, over 100
    assert area_under_curve([0, 50, 100], [0, 0.4, 0.6]) == pytest.approx(0.35)
    # up to 75, where it is .5: (10 + 11.25) / 75
    assert area_under_curve([0, 50, 100], [0, 0.4, 0.6], until=75) == pytest.approx(21.25 / 75)
    assert area_under_curve([0, 50, 100], [0, 0.4, 0.6], until=50) == pytest.approx(0.2)
    assert area_under_curve([10, 20], [[0, 1], [1, 1]]) == pytest.approx([0.5, 1.0])
    for x, until in (([5], None), ([3, 3], None), ([0, 10], 20), ([0, 10], 0), ([0, 10], math.nan)):
        assert math.isnan(area_under_curve(x, [0.5] * len(x), until))
    assert math.isnan(area_under_curve([], []))
    for x, y in (([0, 1], [1.0]), ([1, 0], [1.0, 1.0])):
        with pytest.raises(ShapeError, match="A curve of"):
            area_under_curve(x, y)


def test_every_base_counts_once() -> None:
    differences = np.array([[0.1, 0.3], [0.3, 0.5], [0.0, 0.0]])
    # base a: (.2 + .4) / 2 = .3, base b: 0
    assert cluster_contrast(differences, ["a", "a", "b"]).value == pytest.approx(0.15)


def test_without_spread_there_is_none() -> None:
    same = cluster_contrast(np.full((6, 4), 0.1), [0] * 6)
    assert (same.low, same.high) == pytest.approx((0.1, 0.1))
    assert same.p == 2 / 64
    one = cluster_contrast(np.array([[0.1, 0.2]]), [0])
    assert (one.value, math.isnan(one.low), one.p) == (pytest.approx(0.15), True, 1.0)
    nothing = cluster_contrast(np.zeros((0, 3)), [])
    assert (math.isnan(nothing.value), math.isnan(nothing.p), nothing.num_units) == (True, True, 0)


def test_interval_of_runs_alone_is_about_students() -> None:
    values = np.random.default_rng(3).normal(0.02, 0.03, 12)
    found, (mean, low, high) = cluster_contrast(values[:, None], [0] * 12), t_interval(values)
    assert found.value == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * (high - low))
    assert unit_contrast(values).low == low


def test_problems_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    alike = rng.normal(0, 0.01, (10, 1)) + np.zeros((10, 30))
    apart = alike + rng.normal(0, 0.1, 30)
    widths = [d.high - d.low for d in (cluster_contrast(x, [0] * 10) for x in (alike, apart))]
    # standard errors: .01 / sqrt(10) against .1 / sqrt(30)
    assert widths[1] > 4 * widths[0]


def test_single_units_are_merged_and_ungraded_problems_left_out() -> None:
    values = np.array([[0.1], [0.2], [0.3], [0.4]])
    apart = cluster_contrast(values, ["a", "b", "c", "d"])
    together = cluster_contrast(values, ["a"] * 4)
    assert (apart.low, apart.high) == (together.low, together.high)
    lone = cluster_contrast(values, ["a", "a", "a", "b"])
    assert lone.low < lone.value < lone.high
    holes = np.array([[0.1, math.nan], [0.2, 0.4]])
    assert cluster_contrast(holes, [0, 0]).value == pytest.approx((0.1 + 0.3) / 2)
    with pytest.raises(ShapeError, match="no value on any problem"):
        cluster_contrast(np.array([[math.nan, math.nan]]), [0])
    with pytest.raises(ShapeError, match="2 labels"):
        cluster_contrast(np.zeros((3, 2)), [0, 0])


def simulate(bases: int, seeds: int, *, spread: float, by_problem: float, trials: int = 400) -> tuple[float, float]:
    """(coverage of the interval, rate of p < 0.05) where methods do not differ on average. 8 samples per problem."""
    rng, problems = np.random.default_rng(0), 60
    covered, found = 0, 0
    for _ in range(trials):
        difficulty = rng.beta(0.7, 0.7, problems)
        true = rng.normal(0, spread, (bases * seeds, 1)) + rng.normal(0, by_problem, problems)
        a, b = (rng.binomial(8, np.clip(difficulty + sign * true / 2, 0, 1)) / 8 for sign in (1, -1))
        result = cluster_contrast(a - b, [i // seeds for i in range(bases * seeds)], replicates=1000)
        covered += result.low <= 0 <= result.high
        found += result.p < 0.05
    return covered / trials, found / trials


# 1500 trials with 100 problems: coverage .95 (3 x 5), .94 (1 x 8), .94 (1 x 5); p < 0.05 in .06, .05 and 0 of them.
# With effects by problem p < 0.05 is more frequent: the test speaks of the problems at hand, which then differ.
@pytest.mark.parametrize(("bases", "seeds"), [(3, 5), (3, 10), (1, 8), (1, 5)])
def test_coverage_and_false_positives_without_a_difference(bases: int, seeds: int) -> None:
    coverage, false_positives = simulate(bases, seeds, spread=0.03, by_problem=0)
    assert 0.91 <= coverage <= 0.98
    assert false_positives <= 0.08
    assert false_positives >= 0.02 or bases * seeds == 5


def test_coverage_where_problems_differ() -> None:
    assert 0.91 <= simulate(3, 5, spread=0.03, by_problem=0.1)[0] <= 0.98
