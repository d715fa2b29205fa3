"""Tasks: data, prompts and a verifier, without training code. See docs/tasks.md for adding one."""

from __future__ import annotations

from scgrpo.tasks.base import Canned, Row, Split, Status, Task, Verdict
from scgrpo.tasks.registry import get_task, register_task, task_names

__all__ = ["Canned", "Row", "Split", "Status", "Task", "Verdict", "get_task", "register_task", "task_names"]
