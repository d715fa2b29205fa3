"""Statistics that evaluations and comparisons share. numpy only, no file, no model."""

from scgrpo.stats.curve import area_under_curve
from scgrpo.stats.paired import (
    Difference,
    cluster_contrast,
    holm,
    mcnemar_p,
    sign_flip_p,
    smallest_sign_flip_p,
    unit_contrast,
)
from scgrpo.stats.student import Floats, t_interval, t_quantile

__all__ = [
    "Difference",
    "Floats",
    "area_under_curve",
    "cluster_contrast",
    "holm",
    "mcnemar_p",
    "sign_flip_p",
    "smallest_sign_flip_p",
    "t_interval",
    "t_quantile",
    "unit_contrast",
]
