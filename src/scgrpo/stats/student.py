"""Student's t: quantiles, and the interval of a mean."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from scgrpo.errors import ConfigError

Floats = NDArray[np.float64]


@functools.lru_cache(maxsize=256)
def t_quantile(freedom: int, confidence: float) -> float:
    """Two-sided quantile of Student's t. With t = sqrt(freedom) tan(u) its density is cos(u)^(freedom - 1).

    Raises:
        ConfigError: confidence is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}.", "Give a number between 0 and 1, for example 0.95.")
    # The density is negligible beyond 40 standard widths; a finer grid there keeps many degrees of freedom exact.
    u = np.linspace(0.0, min(np.pi / 2, 40 / math.sqrt(freedom)), 200_001)
    density = np.cos(u) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(confidence, mass / mass[-1], u)))


def t_interval(values: Floats, confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high): `mean +- t_{n-1} s / sqrt(n)`. Without a value all NaN; of a single one no interval."""
    count = len(values)
    if count < 2:
        return (float(values.mean()) if count else math.nan), math.nan, math.nan
    mean = float(values.mean())
    half = t_quantile(count - 1, confidence) * float(values.std(ddof=1)) / math.sqrt(count)
    return mean, mean - half, mean + half
