"""The paper's numbers (arXiv 2606.18810v1), as far as we have them. Scores in percent, D in nats.

Model: Qwen3-8B without thinking; 8 completions per problem. The paper tells neither seeds nor error bars.
"""

from __future__ import annotations

MODEL = "Qwen3-8B"
K = 8
BENCHMARKS = ("AIME24", "AIME25", "LCB v6", "AppWorld", "WebShop")
MEAN = "mean"

Pair = tuple[float, float]  # Avg@8, Pass@8

# Table 1: by row, then by column of BENCHMARKS, the mean last; None: not told.
MAIN: dict[str, tuple[Pair | None, ...]] = {
    "Qwen3-8B": ((25.41, 46.67), (18.75, 30.00), (26.33, 35.11), (9.65, 26.31), (8.13, 14.00), (17.65, 30.42)),
    "GRPO": ((41.67, 70.00), (34.16, 50.00), (39.59, 43.51), (12.50, 33.33), (68.93, 69.40), (39.37, 53.25)),
    "DAPO": ((43.75, 70.00), (37.91, 53.33), (40.74, 44.27), (13.99, 33.33), (71.50, 75.00), (41.58, 55.19)),
    "REINFORCE++": ((18.33, 26.67), (16.25, 30.00), (39.69, 44.27), None, None, None),
    "OPSD": ((33.75, 56.67), (22.08, 33.33), (25.38, 36.64), (9.43, 31.57), (10.38, 21.60), (20.20, 35.96)),
    "SC-GRPO": ((51.67, 80.00), (42.08, 63.33), (43.22, 48.85), (22.36, 49.12), (77.88, 79.25), (47.44, 64.11)),
}

# Table 2, on LCB v6: lowest and highest Avg@8 of the KL as an additive loss instead of a weight.
ADDITIVE_LOSS = (34.35, 39.11)

# Table 3, on LCB v6: Avg@8 by what is changed.
FULL_METHOD = "full method"
ABLATIONS: dict[str, float] = {
    FULL_METHOD: 43.22,
    "partial-solve only": 41.41,
    "weights on 1 ≤ n_c ≤ 7": 38.55,
    "all-correct groups only": 40.17,
    "all groups": 36.64,
    "fixed c = 1e-4": 42.93,
    "c = p50 of D": 41.98,
    "alpha = 0.2": 40.74,
}

# Fig. 3: what SC-GRPO adds to GRPO, in percent of the actor's update and of the whole step.
OVERHEAD: dict[str, tuple[float, float]] = {"LCB v6": (51, 13), "math": (37, 2)}

# Fig. 9: range of quantiles of D over training; most tokens are near 0.
TOKEN_KL = {"p75": (0.03, 0.10), "p95": (0.2, 0.5)}
