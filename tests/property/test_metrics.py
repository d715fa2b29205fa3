"""Laws of the metrics that hold for any input."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scgrpo.evaluation.compare import Evaluated, compare
from scgrpo.evaluation.metrics import mean_over_problems, pass_at_k

unit = st.floats(0, 1, allow_nan=False)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_solution(counts: tuple[int, int, int]) -> None:
    n, c, k = counts
    draws = list(combinations([True] * c + [False] * (n - c), k))
    assert math.isclose(float(pass_at_k(n, c, k)), sum(map(any, draws)) / len(draws), abs_tol=1e-12)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_pass_at_k_grows_with_k_and_starts_at_the_mean(counts: tuple[int, int]) -> None:
    n, c = counts
    values = [float(pass_at_k(n, c, k)) for k in range(1, n + 1)]
    assert math.isclose(values[0], c / n, abs_tol=1e-12)
    assert all(0 <= a <= b + 1e-12 <= 1 + 2e-12 for a, b in pairwise(values))
    assert values[-1] == float(c > 0)


@given(st.lists(unit, min_size=2, max_size=50))
def test_intervals_hold_the_mean_and_stay_in_the_unit_interval(values: list[float]) -> None:
    estimate = mean_over_problems(values)
    assert 0 <= estimate.low <= estimate.value + 1e-12
    assert estimate.value - 1e-12 <= estimate.high <= 1
    assert estimate.low < estimate.high
    assert mean_over_problems([*values, math.nan]) == estimate


@given(st.lists(st.integers(0, 8).map(lambda solved: solved / 8), min_size=2, max_size=50))
def test_right_and_wrong_are_symmetric(values: list[float]) -> None:
    estimate, mirrored = mean_over_problems(values), mean_over_problems([1 - v for v in values])
    assert np.allclose([estimate.low, estimate.high], [1 - mirrored.high, 1 - mirrored.low], atol=1e-9)


@given(st.lists(st.tuples(unit, unit), min_size=2, max_size=30))
def test_comparisons_are_antisymmetric(pairs: list[tuple[float, float]]) -> None:
    def evaluated(side: int) -> Evaluated:
        problems = [
            {"problem_id": str(i), "n": 1, "num_solved": round(pair[side]), "mean_score": pair[side]}
            for i, pair in enumerate(pairs)
        ]
        return Evaluated(str(side), {"task": "any", "k": 1, "per_problem": problems}, {})

    sides = evaluated(0), evaluated(1)
    there, back = compare(*sides).differences["Avg@1"], compare(*sides[::-1]).differences["Avg@1"]
    assert np.allclose([there.value, there.low, there.high], [-back.value, -back.high, -back.low], atol=1e-12)
    assert there.p == back.p
