"""The run directory: all that training, evaluation and reports know of each other. docs/runs.md lists every field."""

from scgrpo.runs.directory import OnExists, RunDirectory
from scgrpo.runs.schema import SCHEMA_VERSION, RolloutRow

__all__ = ["SCHEMA_VERSION", "OnExists", "RolloutRow", "RunDirectory"]
