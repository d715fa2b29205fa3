"""RLCSD (arXiv 2606.11709): what a correct sibling in the context says against what wrong ones say.

    e_t = log pi_T(y_t | correct) - log( 1/K sum_k pi_T(y_t | wrong_k) )
    r_t = strength * tanh(e_t / tau),    selected: |r_t| > delta
    A_t = A + r_t where selected, cut at 0 so that it keeps the sign of A; else A
    the means over selected and over other tokens are added: A_t * N / N_selected and A_t * N / N_other

The teacher is a snapshot of the policy, renewed every 10 steps; both contexts have the same wording, which claims
nothing. Numbers: THU-BPM/RLCSD (tau = delta = 0.02, beta * lambda = 0.5, K = 4, eta = 1). Each pair of the plan holds
one wrong sibling in the teacher's context and the correct one in the student's.

Departures from the source:
1. the two means are over the generation batch instead of each micro-batch; they are exact with a token-mean loss
   (`loss_type="dapo"` or `"bnpo"`), with "grpo" each rollout's share is as that loss has it;
2. a group needs two usable solved rollouts (the correct sibling is never the rollout itself), a rollout a failed
   sibling; the others keep their advantages.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scgrpo.credit.diagnostics import weight_metrics
from scgrpo.credit.methods import Credit, Evidence, Groups, Plan, register_credit_method, stack_pairs
from scgrpo.credit.routing import choose_demonstrations, partial_route
from scgrpo.credit.weighting import factors
from scgrpo.errors import ConfigError


@register_credit_method("rlcsd")
@dataclass(frozen=True)
class RLCSD:
    """Advantages modulated by the contrast of two kinds of demonstrations."""

    strength: float = 0.5
    num_wrong: int = 4
    tau: float = 0.02  # nats
    delta: float = 0.02
    teachers: ClassVar[tuple[str, ...]] = ("snapshot", "ema", "frozen")

    def plan(self, groups: Groups, rng: random.Random) -> Plan:
        right = choose_demonstrations(groups, partial_route(groups), rng)
        failed, group = (groups.usable & ~groups.solved).tolist(), groups.group.tolist()
        pairs: list[tuple[int, int, int]] = []
        for i, correct in zip(right.rollout.tolist(), right.demonstration.tolist(), strict=True):
            wrong = [j for j, bad in enumerate(failed) if bad and group[j] == group[i] and j != i]
            pairs += [(i, j, correct) for j in rng.sample(wrong, min(self.num_wrong, len(wrong)))]
        table = torch.tensor(pairs, dtype=torch.long, device=groups.group.device).reshape(-1, 3)
        rollout, wrong_ones, correct_ones = table.unbind(1)
        return Plan(rollout, wrong_ones, torch.zeros_like(rollout, dtype=torch.bool), correct_ones)

    def assign(self, groups: Groups, plan: Plan, evidence: Evidence) -> Credit:
        base, scored = groups.advantages, torch.zeros_like(groups.solved)
        scored[plan.rollout] = True
        active = groups.mask & scored[:, None]
        contrast = contrasts(groups, plan, evidence)
        r = self.strength * torch.tanh(contrast / self.tau).to(base.dtype)
        selected = active & (r.abs() > self.delta)
        moved = base[:, None] + r
        kept_sign = torch.where(base[:, None] > 0, moved.clamp(min=0), moved.clamp(max=0)) * (base != 0)[:, None]
        shaped = torch.where(selected, kept_sign, base[:, None])
        advantages = shaped * apart(selected, groups.mask).to(base.dtype)
        weights = factors(base, advantages)
        metrics = {
            "selected_token_frac": selected.sum().item() / max(1, int(active.sum())),
            "contrast_abs_mean": contrast[active].abs().mean().item() if bool(active.any()) else 0.0,
            **weight_metrics(groups, active, weights),
        }
        return Credit(base, advantages, weights, partial_route(groups), metrics)

    def __post_init__(self) -> None:
        if not self.strength >= 0 or self.num_wrong < 1 or not self.tau > 0 or not self.delta >= 0:
            raise ConfigError(
                f"RLCSD with strength {self.strength}, num_wrong {self.num_wrong}, tau {self.tau}, "
                f"delta {self.delta}.",
                "Choose strength >= 0, num_wrong >= 1, tau > 0, delta >= 0.",
            )


def contrasts(groups: Groups, plan: Plan, evidence: Evidence) -> Float[Tensor, "b t"]:
    """(B, T) `e`, nats; 0 for rollouts without a pair."""
    wrong, there = stack_pairs("teacher_logps", evidence.teacher_logps, groups, plan)
    right, _ = stack_pairs("student_logps", evidence.student_logps, groups, plan)
    e = torch.zeros_like(groups.mask, dtype=wrong.dtype)
    some = there.any(dim=1)
    if bool(some.any()):
        mixture = wrong[some].masked_fill(~there[some][..., None], -math.inf).logsumexp(dim=1)
        e[some] = right[some, 0] - (mixture - there[some].sum(1, keepdim=True).to(mixture.dtype).log())
    return e


def apart(selected: Bool[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Factors that make a mean over all N tokens the sum of the means over the selected and over the others."""
    n, chosen = mask.sum(), selected.sum()
    return torch.where(selected, n / chosen.clamp(min=1), n / (n - chosen).clamp(min=1))
