"""Is one method better than another? Paired differences of runs: interval, test, and correction for many tests.

Two methods are trained from the same base with the same seed and evaluated on the same problems: a *pair* of runs.
What varies between pairs is the randomness of training; what varies between problems is which ones were drawn.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from scgrpo.errors import ShapeError
from scgrpo.stats.student import Floats, t_interval, t_quantile

_MOST_EXACT = 16  # units; 2^16 sign patterns are all tried, beyond that some are drawn
_FLIPS = 19_999


@dataclass(frozen=True)
class Difference:
    """A mean paired difference.

    Attributes:
        value: the mean; NaN without a pair.
        low, high: 95 % interval; NaN where fewer than two units say nothing of the spread.
        p: two-sided sign-flip p-value; NaN without a unit.
        num_units: independent paired differences that the test counts.
    """

    value: float
    low: float
    high: float
    p: float
    num_units: int

    @property
    def smallest_p(self) -> float:
        """The smallest p that so many units can give, however large the difference."""
        return smallest_sign_flip_p(self.num_units)


def cluster_contrast(
    differences: Floats,
    strata: Sequence[Hashable],
    *,
    replicates: int = 4000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Difference:
    """Mean difference of paired runs that share their problems, by a hierarchical bootstrap.

    With `d_up` the difference of unit u on problem p, and `d_u` its mean over problems, the estimate is the mean over
    strata of the mean over their units of `d_u`: every stratum counts once. Units are the (base, seed) pairs and the
    strata the bases where the claim is about these bases; where bases stand for others like them, the caller
    averages over seeds first, units are bases, and there is one stratum.

    A replicate draws units within strata and, crossed with them, problems: the same for both methods and all units.
    Three corrections make it right for a handful of seeds, where the plain percentile bootstrap is too narrow:

    - of n units n - 1 are drawn (McCarthy and Snowden 1985), so that the variance of the replicates is unbiased;
    - sampling noise is in the units' means already: the problems' means are shrunk by it, or it would count twice
      (Owen 2007 on crossed bootstraps). For the same reason seeds are not drawn again within drawn bases (Davison
      and Hinkley 1997, section 3.8);
    - the ends, the 2.5th and 97.5th percentile, are stretched about the mean by t / 1.96, with Satterthwaite's
      degrees of freedom.

    Strata of one unit are merged (collapsed strata): their spread is that between them.

    Simulated coverage of nominal 95 %: tests/unit/test_stats.py.

    Args:
        differences: [units, problems]; NaN where a side has no grade. One column: problems are not drawn.
        strata: one label per unit.
        replicates, seed: of the bootstrap. Calls of the same shape draw the same units and problems.

    Raises:
        ShapeError: not one label per unit, or a unit without any value.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if differences.ndim != 2 or len(strata) != len(differences):
        raise ShapeError(f"{differences.shape} differences, {len(strata)} labels.", "Give one label per row.")
    known = ~np.isnan(differences)
    if not known.any(axis=1).all():
        raise ShapeError("A unit has no value on any problem.", "Leave it out, and say so.")
    if not len(differences):
        return Difference(math.nan, math.nan, math.nan, math.nan, 0)
    weights = _weights(strata)
    rows = np.nanmean(differences, axis=1)
    value = float(weights @ rows)
    p = sign_flip_p(weights * rows)
    if len(rows) < 2:
        return Difference(value, math.nan, math.nan, p, len(rows))

    groups = _collapse(strata)
    parts = [(weights * (rows - value))[group] for group in groups]
    if differences.shape[1] > 1:
        parts.append(_problem_part(differences[:, known.any(axis=0)], rows, weights, groups))
    low, high = _stretched_percentiles(parts, replicates, seed, confidence)
    return Difference(value, value + low, value + high, p, len(rows))


def unit_contrast(values: Floats) -> Difference:
    """Mean over units that count once each, with its t interval and sign-flip p."""
    mean, low, high = t_interval(values)
    return Difference(mean, low, high, sign_flip_p(values), len(values))


def sign_flip_p(values: ArrayLike, *, flips: int = _FLIPS, seed: int = 0) -> float:
    """Two-sided p-value of the sum of independent paired differences, by flipping their signs.

        p = share of sign patterns e in {-1, 1}^n with |sum e_i v_i| >= |sum v_i|

    Where the two methods do not differ, swapping their names within a pair changes nothing, so that every pattern is
    as likely as the observed one: the test is exact for any distribution, which a t test is not for few bounded
    values. Its price: n units cannot give less than 2 / 2^n, see `smallest_sign_flip_p`. All patterns are tried for
    up to 16 units; beyond, `flips` are drawn and p = (1 + hits) / (1 + flips) (Phipson and Smyth 2010).

    Of runs, it speaks of the problems at hand; that others like them would agree is for the interval to say.

    Returns:
        NaN without values.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return math.nan
    least = abs(float(values.sum())) - 1e-12 * float(np.abs(values).sum())  # ties are ties in spite of rounding
    if len(values) > _MOST_EXACT:
        signs = np.random.default_rng(seed).integers(0, 2, (flips, len(values)), dtype=np.int8) * 2.0 - 1.0
        return (1 + int((np.abs(signs @ values) >= least).sum())) / (1 + flips)
    sums = values[:1]  # the mirrored half of the patterns has the same absolute sums
    for value in values[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return float((np.abs(sums) >= least).mean())


def smallest_sign_flip_p(num_units: int) -> float:
    """The smallest p-value that `sign_flip_p` can give: 2 / 2^n while all patterns are tried; 1 for no unit."""
    if num_units > _MOST_EXACT:
        return 1 / (1 + _FLIPS)
    return min(1.0, 2.0 ** (1 - num_units))


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test: of problems that one of two solves, does each solve its half?

        p = min(1, 2 sum_{i <= m} C(n, i) / 2^n)    n = only_first + only_second, m = the smaller of the two

    For one greedy completion per problem; with several samples, compare their means by `sign_flip_p`.

    Returns:
        1 where no problem tells the two apart.

    Source: McNemar 1947; the exact form is the sign test.
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(total, i) for i in range(fewer + 1)) / 2**total)


def holm(p_values: ArrayLike) -> Floats:
    """p-values of a family of m tests, corrected so that any false claim among them has probability < level.

        corrected_(i) = max_{j <= i} min(1, (m - j + 1) p_(j))    in ascending order of p

    NaN (nothing tested) stays NaN and does not count. Source: Holm 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
    return corrected


def _weights(strata: Sequence[Hashable]) -> Floats:
    """Of each unit: strata count once each, and so do units within one."""
    counts = {label: list(strata).count(label) for label in set(strata)}
    return np.array([1 / (len(counts) * counts[label]) for label in strata])


def _collapse(strata: Sequence[Hashable]) -> list[list[int]]:
    """Indices of units by stratum; single ones together, a lone single one with the smallest other stratum."""
    groups: dict[Hashable, list[int]] = {}
    for index, label in enumerate(strata):
        groups.setdefault(label, []).append(index)
    several = sorted((group for group in groups.values() if len(group) > 1), key=len)
    single = [index for group in groups.values() if len(group) == 1 for index in group]
    if len(single) > 1:
        return [*several, single]
    return [several[0] + single, *several[1:]] if single else several


def _problem_part(differences: Floats, rows: Floats, weights: Floats, groups: list[list[int]]) -> Floats:
    """What each problem adds to the estimate beyond its share, without the noise that `rows` already carry."""
    known = ~np.isnan(differences)
    masses = np.where(known, weights[:, None], 0.0)
    residuals = np.where(known, differences - rows[:, None], 0.0)
    effects = (masses * residuals).sum(0) / masses.sum(0)
    effects -= effects.mean()
    count = len(effects)
    if count < 2:
        return np.zeros(count)
    noise = sum(float(_spread(weights[g, None] * residuals[g]).mean()) for g in groups)
    variance = float(effects.var(ddof=1))
    shrunk = math.sqrt(max(0.0, 1 - noise / variance)) if variance > 0 else 0.0
    return shrunk * effects / count


def _spread(values: Floats) -> Floats:
    """Variance of a sum of n independent draws like these rows: n s^2, per column."""
    return len(values) * values.var(axis=0, ddof=1)


def _stretched_percentiles(parts: list[Floats], replicates: int, seed: int, confidence: float) -> tuple[float, float]:
    """Ends of the interval, relative to the estimate. `parts`: summands, resampled independently of each other."""
    variances = np.array([float(_spread(part)) if len(part) > 1 else 0.0 for part in parts])
    if not variances.sum() > 0:
        return 0.0, 0.0
    sums = sum(_draws(len(part), replicates, seed + index) @ (part - part.mean()) for index, part in enumerate(parts))
    freedoms = np.array([max(1, len(part) - 1) for part in parts])
    freedom = max(1, int(variances.sum() ** 2 / (variances**2 / freedoms).sum()))
    stretch = t_quantile(freedom, confidence) / NormalDist().inv_cdf((1 + confidence) / 2)
    low, high = np.quantile(sums, [(1 - confidence) / 2, (1 + confidence) / 2])
    return stretch * float(low), stretch * float(high)


@functools.lru_cache(maxsize=32)
def _draws(count: int, replicates: int, seed: int) -> Floats:
    """[replicates, count]: how often each of `count` is drawn, n - 1 draws, scaled to a sum of n."""
    drawn = np.random.default_rng(seed).integers(0, count, (replicates, max(1, count - 1)))
    cells = drawn + count * np.arange(replicates)[:, None]
    counts = np.bincount(cells.ravel(), minlength=replicates * count).reshape(replicates, count)
    return counts.astype(np.float64) * (count / max(1, count - 1))
