"""`scgrpo sweep STUDY.yaml`: every run of a study, in parallel, once."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from scgrpo.cli.beside import usable_cores
from scgrpo.cli.setup import resolve_model
from scgrpo.cli.sweep.directory import SweepDirectory
from scgrpo.cli.sweep.display import Display, Estimate
from scgrpo.cli.sweep.plan import Job, Plan
from scgrpo.cli.sweep.pool import Pool
from scgrpo.cli.sweep.study import read_study
from scgrpo.errors import RunError
from scgrpo.runs.results import RunKey, RunResult
from scgrpo.tiny.base_models import PREFIX

_TICK_S = 0.5


def sweep_command(argv: Sequence[str]) -> int:
    """Run `scgrpo sweep`; see `scgrpo sweep --help`. 0: every run is done; 1: some failed."""
    given = _arguments(argv)
    study, raw = read_study(given.study)
    plan, console = Plan(study), Console(highlight=False)
    directory = SweepDirectory(given.out or Path("sweeps") / study.name)
    if given.dry_run:
        _refuse_changed(directory, plan, redo=given.redo_changed)
        workers = given.workers or len(_environments(plan.use_cpu, None))
        console.print(_outline(plan, directory, workers))
        return 0
    with directory.locked():
        if given.redo_changed:
            _say(
                console, directory.supersede(directory.changed(plan)), "run(s) with other settings will be made again"
            )
        _refuse_changed(directory, plan, redo=False)
        if given.retry_failed:
            _say(console, directory.forget_failures(), "failed run(s) will be tried again")
        directory.remember(raw, plan)
        return _Sweep(plan, directory, console, given.workers).run()


def _make_models(names: Sequence[str], workers: int) -> dict[str, str]:
    """Make models that are made on demand now, several at a time, so that no run waits for one; their SHA-256."""
    made = [name for name in names if name.startswith(PREFIX)]
    for name in set(names) - set(made):
        resolve_model(name)  # says if there is none
    if len(made) < 2 or workers < 2:
        folders = [resolve_model(name) for name in made]
    else:
        with ProcessPoolExecutor(min(workers, len(made)), mp_context=get_context("spawn")) as pool:
            folders = list(pool.map(resolve_model, made))
    weights = (Path(folder) / "model.safetensors" for folder in folders)
    return {name: sha256(path.read_bytes()).hexdigest() for name, path in zip(made, weights, strict=True)}


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scgrpo sweep", description="Train every run of a study. See docs/sweeps.md."
    )
    parser.add_argument("study", type=Path, help="the study's YAML")
    parser.add_argument("--out", type=Path, help="folder of the sweep; default: sweeps/NAME")
    parser.add_argument("--workers", type=int, help="processes; default: one per usable core, or per accelerator")
    parser.add_argument("--dry-run", action="store_true", help="show the plan, run and write nothing")
    parser.add_argument("--retry-failed", action="store_true", help="run those again that failed")
    parser.add_argument(
        "--redo-changed", action="store_true", help="run those again whose settings the YAML has changed since"
    )
    given = parser.parse_args(argv)
    if given.workers is not None and given.workers < 1:
        parser.error("--workers must be at least 1")
    return given


class _Sweep:
    """One start of a sweep."""

    def __init__(self, plan: Plan, directory: SweepDirectory, console: Console, workers: int | None) -> None:
        self.plan, self.directory, self.console = plan, directory, console
        self.environments = _environments(plan.use_cpu, workers)
        self.estimate = Estimate(len(self.environments))
        self.estimate.learn(directory.results)

    def run(self) -> int:
        """All that is to do; then the table, and what to know of it."""
        if self._open():
            self.directory.check_models(_make_models(self.plan.models, len(self.environments)))
            try:
                self._train()
            except KeyboardInterrupt:
                self.console.print(self._table())
                self.console.print(f"stopped; {self._progress()}. The same command goes on from here.")
                raise
        results = self.directory.results
        self.console.print(self._table())
        if self.plan.study.tune:
            self.console.print(_tuning(self.plan, self.directory))
        for line in _remarks(self.plan, self.directory):
            # Elsewhere than in a terminal, lines are for programs.
            self.console.print(line, markup=False, soft_wrap=not self.console.is_terminal)
        return int(any(results[job.key].status == "failed" for job in self.plan.jobs(results)))

    def _table(self) -> Table:
        return Display(self.plan, self.directory.results, self.estimate, self.console).table()

    def _train(self) -> None:
        environments = self.environments[: self._at_most()]
        logs, timeout_s = self.directory.path / "workers", self.plan.study.timeout_s
        begun: set[RunKey] = set()
        with (
            Display(self.plan, self.directory.results, self.estimate, self.console) as display,
            Pool(environments, logs, timeout_s=timeout_s) as pool,
        ):
            todo = self._open()
            while todo or pool.running:
                while todo and pool.idle:
                    job = todo.pop(0)
                    begun.add(job.key)
                    pool.submit(self._order(job))
                display.refresh(len(pool.running))
                ended = pool.wait(_TICK_S)
                if ended is None:
                    continue
                job = Job(**ended.job["job"])
                answer = ended.answer
                result = job.failed(ended.error) if answer is None else RunResult.from_record(answer)
                self.directory.add(result)
                display.ended(job, result, ended.seconds)
                todo = [job for job in self._open() if job.key not in begun]

    def _open(self) -> list[Job]:
        """Runs to do, as far as they are known; with what has ended, later ones become known."""
        results = self.directory.results
        for line in self.directory.follow_tuning(self.plan):
            self.console.print(line, markup=False, soft_wrap=True)
        for failure in self.plan.doomed(results):
            self.directory.add(failure)
        return [job for job in self.plan.jobs(results) if job.key not in results]

    def _at_most(self) -> int:
        groups = self.plan.groups()
        return len(self.plan.tune_jobs()) + sum(self.plan.num_final(group) for group in groups)

    def _order(self, job: Job) -> dict[str, object]:
        keep_model = "model" in self.plan.study.keep
        return {"job": dataclasses.asdict(job), "folder": str(self.directory.path), "keep_model": keep_model}

    def _progress(self) -> str:
        done = sum(job.key in self.directory.results for job in self.plan.jobs(self.directory.results))
        return f"{done} of {self._at_most()} runs have ended"


def _environments(use_cpu: bool, workers: int | None) -> list[dict[str, str]]:
    """Variables of each worker: on the CPU one core's threads, else a device of its own as long as there are any."""
    devices = [] if use_cpu else _visible_devices()
    number = workers or len(devices) or usable_cores()
    if devices:
        return [{"CUDA_VISIBLE_DEVICES": devices[place % len(devices)]} for place in range(number)]
    threads = str(max(1, usable_cores() // number))
    return [{"OMP_NUM_THREADS": threads} for _ in range(number)]


def _visible_devices() -> list[str]:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [device for device in listed.split(",") if device.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def _refuse_changed(directory: SweepDirectory, plan: Plan, *, redo: bool) -> None:
    changed = directory.changed(plan)
    if not changed or redo:
        return
    (stage, testbed, base, method, *_), names = next(iter(changed.items()))
    raise RunError(
        f"{len(changed)} finished run(s) in {directory.path} were made with other settings, for example "
        f"{stage}/{testbed}/{base}/{method}: {', '.join(names)}.",
        "Give another --out; or take the study back to what it was; or make them again with --redo-changed.",
    )


def _outline(plan: Plan, directory: SweepDirectory, workers: int) -> Table:
    """The plan: a row per stage and testbed."""
    study, results = plan.study, directory.results
    estimate = Estimate(workers)
    estimate.learn(results)
    table = Table(
        title=f"plan of {study.name}: {directory.path}",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("stage", "testbed", "bases", "methods", "rates", "seeds", "runs", "done"):
        table.add_column(name, justify="right" if name in ("runs", "done") else "left", overflow="fold")
    seconds, total = 0.0, 0
    for stage in study.stages:
        rates = study.tune.learning_rates if stage == "tune" and study.tune else study.final.learning_rates
        shown = ", ".join(f"{rate:g}" for rate in rates) if rates else "chosen" if study.tune else "the settings'"
        for testbed in study.testbeds:
            groups = [(testbed, method) for method in study.methods]
            runs = {g: len(plan.tune_jobs(g)) if stage == "tune" else plan.num_final(g) for g in groups}
            keys = {job.key for job in plan.jobs(results)}
            ended = {g: sum(k in keys and (k[0], k[1], k[3]) == (stage, *g) for k in results) for g in groups}
            seeds = sorted({len(study.seeds(stage, method)) for method in study.methods})
            table.add_row(
                *(stage, testbed, ", ".join(study.bases(stage, testbed)), str(len(groups)), shown),
                *("-".join(map(str, seeds)), str(sum(runs.values())), str(sum(ended.values()))),
            )
            total += sum(runs.values())
            for group in groups:
                left = runs[group] - ended[group]
                seconds += estimate.left(group, *((left, 0) if stage == "tune" else (0, left)))
    about = (
        f"about {seconds / 60:.0f} min left, evaluations not counted" if seconds == seconds else "time not known yet"
    )
    table.caption = f"{total} runs, {workers} at a time; {about}"
    return table


def _tuning(plan: Plan, directory: SweepDirectory) -> Table:
    """Mean Avg@k per learning rate tried, and the one chosen."""
    assert plan.study.tune is not None
    table = Table(
        title="tuning: mean Avg@k", title_justify="left", caption_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("method", overflow="fold")
    for rate in plan.study.tune.learning_rates:
        table.add_column(f"{rate:g}", justify="right")
    table.add_column("chosen")
    ends = False
    for testbed in plan.study.testbeds:
        table.add_row(testbed)
        for method in plan.study.methods:
            choice = plan.choice((testbed, method), directory.results)
            if choice is None:
                continue
            means = ("failed" if mean is None else f"{mean:.3f}" for mean in choice.means)
            chosen = "every rate failed" if choice.rate is None else f"{choice.rate:g}"
            table.add_row(f"  {method}", *means, f"{chosen} ({choice.end})" if choice.end else chosen)
            ends |= bool(choice.end)
    table.caption = "(smallest), (largest): of the rates tried; a better one may lie beyond" if ends else None
    return table


def _remarks(plan: Plan, directory: SweepDirectory) -> list[str]:
    """What the tables do not say."""
    lines, results = [], directory.results
    known = {job.key for job in plan.jobs(results)}
    failed = [result for result in results.values() if result.status == "failed" and result.key in known]
    if failed:
        lines.append(f"{len(failed)} run(s) failed; --retry-failed tries them again. The last: {failed[-1].error}")
    others = len(results) - sum(key in known for key in results)
    if others:
        lines.append(f"{others} other result(s) in results.jsonl are no longer part of this study.")
    lines.append(f"results: {directory.path / 'results.jsonl'}")
    return lines


def _say(console: Console, number: int, what: str) -> None:
    if number:
        console.print(f"{number} {what}", markup=False)
