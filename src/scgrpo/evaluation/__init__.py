"""Evaluation: sampling k completions per problem, Avg@k, Pass@k, intervals, paired comparison."""

from __future__ import annotations

from scgrpo.evaluation.directory import EvalDirectory
from scgrpo.evaluation.metrics import (
    Estimate,
    ProblemResult,
    avg_at_k,
    mean_over_problems,
    mean_pass_at_k,
    pass_at_k,
)
from scgrpo.evaluation.results import EvalResult
from scgrpo.evaluation.samplers import Sampler, Sampling, TransformersSampler
from scgrpo.evaluation.sampling import Crew, evaluate

__all__ = [
    "Crew",
    "Estimate",
    "EvalDirectory",
    "EvalResult",
    "ProblemResult",
    "Sampler",
    "Sampling",
    "TransformersSampler",
    "avg_at_k",
    "evaluate",
    "mean_over_problems",
    "mean_pass_at_k",
    "pass_at_k",
]
