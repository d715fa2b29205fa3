"""SC-GRPO on TRL."""

from scgrpo.integrations.trl.config import SCGRPOConfig
from scgrpo.integrations.trl.trainer import SCGRPOTrainer

__all__ = ["SCGRPOConfig", "SCGRPOTrainer"]
