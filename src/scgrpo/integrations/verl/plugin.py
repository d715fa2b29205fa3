"""Loaded by verl in each of its processes (entry point `verl.plugins`); importing it registers everything.

verl hides what goes wrong here: `scgrpo doctor --verl` shows it.
"""

from scgrpo.integrations.verl import engine, trainer

__all__ = ["engine", "trainer"]
