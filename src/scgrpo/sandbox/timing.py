"""How long a trivial run takes, and how many a sandbox makes per second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from scgrpo.errors import ConfigError, SandboxError
from scgrpo.sandbox.base import Limits, Outcome, Program, Sandbox

TRIVIAL = Program("n = int(input())\nprint(sum(range(n)))", stdin="1000")
_ANSWER = "499500\n"
_CANDIDATE, _TESTS = "def add(a, b):\n    return a + b", "assert add(2, 3) == 5\nassert add(-1, 1) == 0"


@dataclass(frozen=True)
class Timing:
    """Milliseconds per run, one after the other, and runs per second on all workers.

    `cpu_ms`: median CPU time of the confined process from its fork to its end, which a busy machine changes least.
    """

    what: str
    minimum_ms: float
    p10_ms: float
    median_ms: float
    p95_ms: float
    cpu_ms: float | None
    per_second: float | None


def measure(sandbox: Sandbox, num_runs: int = 300) -> list[Timing]:
    """Time trivial programs and trivial judgements.

    Raises:
        ConfigError: no runs.
        SandboxError: a run went wrong.
    """
    if num_runs < 1:
        raise ConfigError(f"num_runs={num_runs} cannot work.", "Take at least 1.")

    def run() -> float:
        result = sandbox.run(TRIVIAL)
        _expect(result.stdout == _ANSWER, result.outcome, result.detail)
        return result.cpu_s * 1000

    def judge() -> float:
        judged = sandbox.judge(_CANDIDATE, _TESTS)
        _expect(judged.passed is True, judged.outcome, judged.detail)
        return 0.0

    timings = [_time("run a program", run, num_runs, _throughput(sandbox, num_runs))]
    if sandbox.level != "remote":
        timings.append(_time("judge a candidate", judge, num_runs, None))
    return timings


def _time(what: str, work: Callable[[], float], num_runs: int, per_second: float | None) -> Timing:
    for _ in range(5):
        work()
    taken, cpu = [], []
    for _ in range(num_runs):
        started = time.perf_counter()
        cpu.append(work())
        taken.append((time.perf_counter() - started) * 1000)
    taken.sort()
    p10, p95 = taken[len(taken) // 10], taken[int(len(taken) * 0.95)]
    return Timing(what, taken[0], p10, statistics.median(taken), p95, statistics.median(cpu) or None, per_second)


def _throughput(sandbox: Sandbox, num_runs: int) -> float:
    started = time.perf_counter()
    results = sandbox.run_many([(TRIVIAL, Limits())] * (2 * num_runs))
    taken = time.perf_counter() - started
    for result in results:
        _expect(result.outcome is Outcome.OK, result.outcome, result.detail)
    return len(results) / taken


def _expect(right: bool, outcome: Outcome, detail: str) -> None:
    if not right:
        raise SandboxError(
            f"A trivial run went wrong ({outcome}: {detail}).", "Nothing can be timed before it works."
        )
