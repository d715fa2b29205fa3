"""What a person sees of a sweep: a live table in a terminal, a line per finished run elsewhere."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from scgrpo.cli.sweep.plan import Job, Plan
from scgrpo.cli.sweep.tuning import Choice, final_score
from scgrpo.runs.results import RunKey, RunResult

Results = Mapping[RunKey, RunResult]


class Estimate:
    """Seconds of runs to come, from those of the same stage and group that have ended; else from all."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._seen: dict[tuple[str, str, str], list[float]] = defaultdict(list)

    def seen(self, stage: str, group: tuple[str, str], seconds: float) -> None:
        self._seen[stage, *group].append(seconds)

    def learn(self, results: Results) -> None:
        """From runs of an earlier start, whose evaluations were not timed."""
        for result in results.values():
            if result.compute is not None:
                self.seen(result.stage, (result.testbed, result.method), result.compute.seconds)

    def left(self, group: tuple[str, str], tune: int, final: int) -> float:
        """Seconds that so many runs of a group will take with all workers; NaN: nothing has ended yet."""
        counts = {"tune": tune, "final": final}
        return sum(n * self._mean(stage, group) for stage, n in counts.items() if n) / self.workers

    def _mean(self, stage: str, group: tuple[str, str]) -> float:
        other = "tune" if stage == "final" else "final"
        everything = [second for seconds in self._seen.values() for second in seconds]
        for seconds in (self._seen.get((stage, *group)), self._seen.get((other, *group)), everything):
            if seconds:
                return statistics.fmean(seconds)
        return math.nan


class Display:
    """Shows how far the sweep is. As a context it gives the terminal back."""

    def __init__(self, plan: Plan, results: Results, estimate: Estimate, console: Console) -> None:
        self.plan, self.results, self.estimate, self.console = plan, results, estimate, console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._shown = -math.inf

    def ended(self, job: Job, result: RunResult, seconds: float) -> None:
        """A run has ended; its result is among the results."""
        self.estimate.seen(job.stage, job.group, seconds)
        if result.status == "failed":
            what = f"failed: {result.error.splitlines()[0]}"
        else:
            what = f"Avg@{result.curve[-1].k} {_number(result.curve[0].avg_at_k)} -> {_number(final_score(result))}"
        if self._live is None or result.status == "failed":
            run = f"{job.stage} {job.testbed}/{job.base} {job.method} lr {job.learning_rate:g} seed {job.seed}"
            self.console.print(f"{run}: {what}, {seconds:.0f} s", markup=False, soft_wrap=self._live is None)

    def refresh(self, running: int) -> None:
        """Show the present state, once a second."""
        if self._live is not None and time.monotonic() - self._shown > 1:
            self._shown = time.monotonic()
            self._live.update(self.table(f"{running} running"), refresh=True)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update("")  # the final table is printed whole
            self._live.stop()

    def table(self, note: str = "") -> Table:
        """A row per testbed and method. Means are over what is done so far: no ranking."""
        plan, tuned = self.plan, self.plan.study.tune is not None
        ks = {result.curve[-1].k for result in self.results.values() if result.curve}
        score = f"Avg@{ks.pop()}" if len(ks) == 1 else "Avg@k"
        table = Table(
            title=f"sweep {plan.study.name}",
            title_justify="left",
            caption_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
        )
        table.add_column("method", overflow="fold")
        for name in (*(("tuned", "rate") if tuned else ()), "final", score, "failed", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        total = 0.0
        for testbed in plan.study.testbeds:
            table.add_row(testbed)
            for method in plan.study.methods:
                cells, left = self._row((testbed, method), tuned)
                total += left
                table.add_row(f"  {method}", *cells, _duration(left))
        parts = [note, f"{_duration(total)} left" if total else ""]
        table.caption = ", ".join(part for part in parts if part) or None
        return table

    def _row(self, group: tuple[str, str], tuned: bool) -> tuple[list[str], float]:
        tune = self.plan.tune_jobs(group)
        choice = self.plan.choice(group, self.results) if tuned else None
        mine = [r for r in self.results.values() if (r.testbed, r.method) == group]
        final = [r for r in mine if r.stage == "final"]
        if not tuned:
            keys = {job.key for job in self.plan.final_jobs(group, None)}
            final = [r for r in final if r.key in keys]
        scores = [score for score in map(final_score, final) if score is not None]
        tune_done, number = sum(job.key in self.results for job in tune), self.plan.num_final(group)
        failed = sum(r.status == "failed" for r in mine)
        cells = [f"{tune_done}/{len(tune)}", _rate(choice)] if tuned else []
        cells += [f"{len(final)}/{number}", _number(statistics.fmean(scores) if scores else None), str(failed or "")]
        left = self.estimate.left(group, len(tune) - tune_done, number - len(final))
        return cells, left


def _rate(choice: Choice | None) -> str:
    if choice is None:
        return "..."
    return "none" if choice.rate is None else f"{choice.rate:g}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _duration(seconds: float) -> str:
    """`2:05`, `1:02:05`; `?` where it is not known, nothing for none."""
    if math.isnan(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not seconds:
        return ""
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
