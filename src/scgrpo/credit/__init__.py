"""The method: pure torch, tensors in, tensors out. Start reading at `sc_grpo.py`."""

from scgrpo.credit.methods import (
    NONE,
    Credit,
    CreditMethod,
    Evidence,
    Groups,
    Plan,
    create_credit_method,
    credit_method_names,
    register_credit_method,
)
from scgrpo.credit.routing import Route, choose_demonstrations, route_groups
from scgrpo.credit.sc_grpo import SCGRPO
from scgrpo.credit.uniform import Uniform
from scgrpo.credit.weighting import saturating_weight, thresholds

__all__ = [
    "NONE",
    "SCGRPO",
    "Credit",
    "CreditMethod",
    "Evidence",
    "Groups",
    "Plan",
    "Route",
    "Uniform",
    "choose_demonstrations",
    "create_credit_method",
    "credit_method_names",
    "register_credit_method",
    "route_groups",
    "saturating_weight",
    "thresholds",
]
