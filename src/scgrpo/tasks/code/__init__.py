"""Tasks whose answers are Python programs, run in the sandbox. See docs/benchmarks/code.md."""

from __future__ import annotations

from scgrpo.tasks.code.codeforces import CodeforcesSource
from scgrpo.tasks.code.humaneval import HumanEvalPlusSource, HumanEvalSource
from scgrpo.tasks.code.livecodebench import LiveCodeBenchSource
from scgrpo.tasks.code.mbpp import MBPPPlusSource, MBPPSource
from scgrpo.tasks.code.rows import RowsSource
from scgrpo.tasks.code.suite import AssertCase, CallCase, StdinCase, Suite
from scgrpo.tasks.code.task import CodeTask, Problem, Source, code_task

code = code_task("code", RowsSource)
livecodebench = code_task("livecodebench", LiveCodeBenchSource)
codeforces = code_task("codeforces", CodeforcesSource)
humaneval = code_task("humaneval", HumanEvalSource)
humanevalplus = code_task("humanevalplus", HumanEvalPlusSource)
mbpp = code_task("mbpp", MBPPSource)
mbppplus = code_task("mbppplus", MBPPPlusSource)

__all__ = [
    "AssertCase",
    "CallCase",
    "CodeTask",
    "Problem",
    "Source",
    "StdinCase",
    "Suite",
    "code",
    "code_task",
    "codeforces",
    "humaneval",
    "humanevalplus",
    "livecodebench",
    "mbpp",
    "mbppplus",
]
