"""Loaded by verl in each of its processes (entry point `verl.plugins`); importing it registers everything.

verl hides what goes wrong here: `scgrpo doctor --verl` shows it.
"""

from scgrpo.integrations.verl import agent_loop, engine, trainer

__all__ = ["agent_loop", "engine", "trainer"]
