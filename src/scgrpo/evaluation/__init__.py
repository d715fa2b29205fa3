"""Evaluation: sampling k completions per problem, Avg@k, Pass@k, intervals, paired comparison."""

from __future__ import annotations

from scgrpo.evaluation.metrics import (
    Estimate,
    ProblemResult,
    avg_at_k,
    mean_over_problems,
    mean_pass_at_k,
    paired_difference,
    pass_at_k,
)
from scgrpo.evaluation.sampling import EvalResult, evaluate

__all__ = [
    "Estimate",
    "EvalResult",
    "ProblemResult",
    "avg_at_k",
    "evaluate",
    "mean_over_problems",
    "mean_pass_at_k",
    "paired_difference",
    "pass_at_k",
]
