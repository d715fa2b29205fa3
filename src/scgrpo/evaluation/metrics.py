"""Avg@k, unbiased Pass@k, and intervals that know that samples of one problem are not independent.

All intervals are for the mean over *problems drawn like these*: each problem counts once, whatever its number of
samples (Miller 2024, arXiv 2411.00640: cluster by problem). Ungraded completions are left out, never scored 0.
numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scgrpo.errors import ConfigError, ShapeError
from scgrpo.stats import t_quantile

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its interval; NaN where there are too few problems to say.

    Attributes:
        value: the mean.
        low, high: ends of the interval (95 % unless asked otherwise).
        num_problems: problems that entered: those without a value (all completions ungraded, or n < k) do not.
    """

    value: float
    low: float
    high: float
    num_problems: int

    def to_record(self) -> dict[str, float | None]:
        """`{"value", "low", "high"}` for JSON, with None for NaN."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if math.isnan(number) else number for name, number in numbers.items()}


@dataclass(frozen=True)
class ProblemResult:
    """What the completions of one problem came to.

    Attributes:
        problem_id: its id.
        n: graded completions.
        num_solved: those that count as solved.
        mean_score: mean score of the graded ones; NaN if there are none.
        num_errors: completions without a grade (errors and timeouts).
    """

    problem_id: str
    n: int
    num_solved: int
    mean_score: float
    num_errors: int

    @classmethod
    def from_scores(cls, problem_id: str, scores: Sequence[float], success_threshold: float) -> ProblemResult:
        """From one score per completion, NaN where it has no grade."""
        graded = [score for score in scores if not math.isnan(score)]
        return cls(
            problem_id=problem_id,
            n=len(graded),
            num_solved=sum(score >= success_threshold for score in graded),
            mean_score=sum(graded) / len(graded) if graded else math.nan,
            num_errors=len(scores) - len(graded),
        )


def avg_at_k(problems: Iterable[ProblemResult], *, confidence: float = 0.95) -> Estimate:
    """Mean over problems of the mean score of their completions, with a clustered interval."""
    return mean_over_problems([p.mean_score for p in problems], confidence=confidence)


def pass_at_k(num_samples: ArrayLike, num_solved: ArrayLike, k: int) -> Floats:
    """Unbiased estimate of the chance that at least one of k completions solves the problem, per problem.

        pass@k = 1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n-c+1 .. n} (1 - k / i)

    Args:
        num_samples: n, graded completions per problem; an array or one number.
        num_solved: c, solved ones among them; same shape.
        k: completions drawn.

    Returns:
        Same shape; NaN where n < k, because n samples say nothing unbiased about more than n.

    Raises:
        ConfigError: k < 1, or not 0 <= c <= n.
        ShapeError: shapes differ.

    Source: Chen et al. 2021, arXiv 2107.03374, section 2.1.
    """
    n, c = np.asarray(num_samples, dtype=np.int64), np.asarray(num_solved, dtype=np.int64)
    if n.shape != c.shape:
        raise ShapeError(f"num_samples has shape {n.shape}, num_solved {c.shape}.", "Give one of each per problem.")
    if k < 1 or bool(((c < 0) | (c > n)).any()):
        raise ConfigError(f"pass@{k} needs k >= 1 and 0 <= num_solved <= num_samples.", "Check the counts.")
    estimates = [_pass_at_k(int(a), int(b), k) for a, b in zip(n.flat, c.flat, strict=True)]
    return np.array(estimates, dtype=np.float64).reshape(n.shape)


def _pass_at_k(n: int, c: int, k: int) -> float:
    if n < k:
        return math.nan
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def mean_pass_at_k(problems: Sequence[ProblemResult], k: int, *, confidence: float = 0.95) -> Estimate:
    """Mean over problems of `pass_at_k`, with a clustered interval; problems with n < k do not enter."""
    values = pass_at_k([p.n for p in problems], [p.num_solved for p in problems], k)
    return mean_over_problems(values, confidence=confidence)


def mean_over_problems(values: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """Mean of one value per problem, with an interval over problems. NaN values do not enter.

    With mean p, standard error s and the t quantile of (problems - 1) degrees of freedom, values within [0, 1] get
    the Wilson score interval at the effective sample size p (1 - p) / s^2. It stays inside [0, 1] and has a length
    also when every problem has the same value, where p +- t s would be a single point. Other values get p +- t s.

    Simulated coverage of nominal 95 % (8 samples each, difficulties Beta(0.5, 1)): 0.96 with 30 and 200 problems;
    for very hard sets (mean 0.03, Beta(0.1, 3)) 0.89 and 0.93, where p +- t s has 0.84 and 0.92.

    Returns:
        All NaN without a value; NaN interval with a single one.
    """
    kept = np.asarray(values, dtype=np.float64).ravel()
    kept = kept[~np.isnan(kept)]
    count = len(kept)
    if count == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = float(kept.mean())
    if count == 1:
        return Estimate(mean, math.nan, math.nan, 1)
    variance, quantile = float(kept.var(ddof=1)) / count, t_quantile(count - 1, confidence)
    if kept.min() < 0 or kept.max() > 1:
        half = quantile * math.sqrt(variance)
        return Estimate(mean, mean - half, mean + half, count)
    return Estimate(mean, *_wilson(mean, mean * (1 - mean) / variance if variance > 0 else count, quantile), count)


def _wilson(mean: float, size: float, quantile: float) -> tuple[float, float]:
    square = quantile**2 / size
    center = (mean + square / 2) / (1 + square)
    half = math.sqrt(mean * (1 - mean) * square + square**2 / 4) / (1 + square)
    return max(0.0, center - half), min(1.0, center + half)
