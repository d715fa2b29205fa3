"""The embedded base model: the code that makes it, and its weights."""

from __future__ import annotations

from pathlib import Path


def tiny_model_path() -> Path:
    """Folder of the shipped checkpoint, an ordinary Hugging Face one."""
    return Path(__file__).parent / "model"
