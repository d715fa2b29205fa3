"""Running untrusted Python: no network, no writes, no other processes, bounded time, memory and output.

    with open_sandbox() as sandbox:
        result = sandbox.run(Program("print(input())", stdin="hello"), Limits(wall_s=2))

Standard library only; knows nothing of tasks. What it holds against and what it does not: docs/security.md.
"""

from scgrpo.sandbox.base import CallResult, Judged, Limits, Outcome, Program, Result, Sandbox
from scgrpo.sandbox.opening import Probe, open_sandbox, probe

__all__ = [
    "CallResult",
    "Judged",
    "Limits",
    "Outcome",
    "Probe",
    "Program",
    "Result",
    "Sandbox",
    "open_sandbox",
    "probe",
]
