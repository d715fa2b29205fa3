"""Uniform credit: plain GRPO, the off switch. Plans nothing, so the host's advantages stay as they are."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from scgrpo.credit.methods import Credit, Evidence, Groups, Plan, register_credit_method
from scgrpo.credit.routing import route_groups


@register_credit_method("uniform")
@dataclass(frozen=True)
class Uniform:
    """Every token of a rollout gets the rollout's advantage."""

    def plan(self, groups: Groups, rng: random.Random) -> Plan:
        none = groups.group.new_empty(0)
        return Plan(rollout=none, demonstration=none, verified=none.bool())

    def assign(self, groups: Groups, plan: Plan, evidence: Evidence) -> Credit:
        weights = torch.ones_like(groups.mask, dtype=groups.advantages.dtype)
        base = groups.advantages
        return Credit(base, base[:, None] * weights, weights, route_groups(groups), {})
