"""SC-GRPO: credit per token, not per answer, for reinforcement learning with verifiable rewards.

Public names are imported on first use: `import scgrpo` loads neither torch nor a training framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scgrpo.credit import SCGRPO, CreditMethod, register_credit_method
    from scgrpo.divergence import token_kl
    from scgrpo.evaluation import evaluate
    from scgrpo.integrations.trl import SCGRPOConfig, SCGRPOTrainer
    from scgrpo.tasks import get_task, register_task

_PUBLIC = {
    "SCGRPO": "scgrpo.credit",
    "CreditMethod": "scgrpo.credit",
    "register_credit_method": "scgrpo.credit",
    "token_kl": "scgrpo.divergence",
    "evaluate": "scgrpo.evaluation",
    "SCGRPOConfig": "scgrpo.integrations.trl",
    "SCGRPOTrainer": "scgrpo.integrations.trl",
    "get_task": "scgrpo.tasks",
    "register_task": "scgrpo.tasks",
}

__all__ = [
    "SCGRPO",
    "CreditMethod",
    "SCGRPOConfig",
    "SCGRPOTrainer",
    "evaluate",
    "get_task",
    "register_credit_method",
    "register_task",
    "token_kl",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'scgrpo' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("scgrpo"):
            raise
        from scgrpo.errors import MissingExtraError

        raise MissingExtraError(
            f"scgrpo.{name} needs {error.name!r}, which is not installed.",
            'Install what training needs: pip install "scgrpo[trl]".',
        ) from error


def __dir__() -> list[str]:
    return __all__
