"""AppWorld: the paper's benchmark of apps and their APIs, in its own engine. See docs/benchmarks/appworld.md."""

from __future__ import annotations

from scgrpo.tasks.appworld.task import AppWorldTask

__all__ = ["AppWorldTask"]
