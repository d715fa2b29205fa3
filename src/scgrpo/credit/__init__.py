"""The method: pure torch, tensors in, tensors out. Start reading at `sc_grpo.py`."""

from scgrpo.credit.antisd import AntiSD
from scgrpo.credit.cast import CAST
from scgrpo.credit.entropy import Entropy
from scgrpo.credit.entropy_mask import EntropyMask
from scgrpo.credit.failed_demonstration import FailedDemonstration
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
from scgrpo.credit.oracle import Oracle
from scgrpo.credit.other_prompt import OtherPrompt
from scgrpo.credit.permuted import Permuted
from scgrpo.credit.prefix_value import ValueBaseline
from scgrpo.credit.random_weights import RandomWeights
from scgrpo.credit.reinforce import ReinforcePlusPlus
from scgrpo.credit.rlcsd import RLCSD
from scgrpo.credit.rlcsd_weight import RLCSDWeight
from scgrpo.credit.rlsd import RLSD
from scgrpo.credit.routing import Route, choose_demonstrations, route_groups
from scgrpo.credit.sc_grpo import SCGRPO
from scgrpo.credit.stare import STARE
from scgrpo.credit.uniform import Uniform
from scgrpo.credit.weighting import saturating_weight, thresholds

__all__ = [
    "CAST",
    "NONE",
    "RLCSD",
    "RLSD",
    "SCGRPO",
    "STARE",
    "AntiSD",
    "Credit",
    "CreditMethod",
    "Entropy",
    "EntropyMask",
    "Evidence",
    "FailedDemonstration",
    "Groups",
    "Oracle",
    "OtherPrompt",
    "Permuted",
    "Plan",
    "RLCSDWeight",
    "RandomWeights",
    "ReinforcePlusPlus",
    "Route",
    "Uniform",
    "ValueBaseline",
    "choose_demonstrations",
    "create_credit_method",
    "credit_method_names",
    "register_credit_method",
    "route_groups",
    "saturating_weight",
    "thresholds",
]
