"""`scgrpo train`: one recipe, one or several methods from the same start, a table and a report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.table import Table

from scgrpo.cli.arguments import Parsed, parse_train
from scgrpo.cli.beside import Job, SideRuns, enough_cores, is_own_command
from scgrpo.cli.dry_run import dry_run
from scgrpo.cli.run import Record, Run
from scgrpo.cli.setup import Problem, load_problem, make_task
from scgrpo.integrations.trl.presets import label, method_names, preset
from scgrpo.runs import RunDirectory


def train_command(argv: Sequence[str]) -> int:
    """Run `scgrpo train`; see `scgrpo train --help` for its settings."""
    parsed = parse_train(argv)
    console = Console(highlight=False)
    if parsed.run.dry_run:
        return dry_run(parsed, console) if PartialState().is_main_process else 0
    with ready(parsed) as problem:
        if parsed.run.note and PartialState().is_main_process:
            console.print(f"note: {parsed.run.note}", markup=False)
        jobs = _jobs(argv, parsed)
        if _at_once(parsed, len(jobs)):
            _train_at_once(parsed, jobs, problem, console)
        else:
            _train_in_turn(parsed, list(jobs.values()), problem, console)
    PartialState().destroy_process_group()  # what is left is the first process's, and may take a while
    if PartialState().is_main_process:
        _show({method: Path(job.path) for method, job in jobs.items()}, console)
    return 0


def train_job(job: Job) -> None:
    """The work of a process of its own (`SideRuns`): one run, told in plain lines."""
    parsed = parse_train(job.argv)
    with ready(parsed) as problem:
        _run(parsed, job, problem).train(Console(highlight=False, force_terminal=False), before=job.before)


@contextmanager
def ready(parsed: Parsed) -> Iterator[Problem]:
    """The process set up for a run, and what is trained on."""
    if parsed.run.num_threads:
        torch.set_num_threads(parsed.run.num_threads)
    _quiet_libraries()
    task = make_task(parsed)
    try:
        yield load_problem(parsed, task)
    finally:
        if task is not None:
            task.close()


def _jobs(argv: Sequence[str], parsed: Parsed) -> dict[str, Job]:
    """By method: the configured one first, then those to compare with."""
    main = _run_path(parsed)
    compare_with = [method for method in parsed.run.compare_with or [] if method != "none"]
    first = label(parsed.trainer.method, parsed.trainer.credit)
    methods = list(dict.fromkeys([first, *compare_with]))
    paths = [main, *(main.with_name(f"{main.name}-{method}") for method in methods[1:])]
    jobs = {}
    for method, path in zip(methods, paths, strict=True):
        changed = [] if method == first else _flags(method)
        jobs[method] = Job([*argv, *changed], str(path), [f"../{p.name}" for p in paths if p != path])
        if changed:
            parse_train(jobs[method].argv)  # what cannot work should say so before the first run, not after it
    return jobs


def _flags(name: str) -> list[str]:
    """What makes a run the named one: a method, a credit method over the configured one, or `method+credit`."""
    method, _, credit = (name, "", "") if name in method_names() else name.rpartition("+")
    if method:
        return ["--method", method, "--credit", credit or preset(method)["credit"]]
    return ["--credit", name]


def _at_once(parsed: Parsed, runs: int) -> bool:
    """Whether to train in several processes: asked for, on the CPU, and no launcher has started several already."""
    return (
        parsed.run.side_by_side
        and runs > 1
        and parsed.trainer.use_cpu
        and PartialState().num_processes == 1
        and enough_cores(runs, parsed.run.num_threads)
        and is_own_command()
    )


def _train_at_once(parsed: Parsed, jobs: dict[str, Job], problem: Problem, console: Console) -> None:
    """The first run in this process, the others meanwhile in theirs."""
    first, *others = jobs.values()
    with SideRuns(console) as side:

        def start_others(before: Record | None) -> None:
            for job in others:
                side.start(replace(job, before=before))

        _run(parsed, first, problem).train(console, on_start=start_others)
        side.wait()


def _train_in_turn(parsed: Parsed, jobs: Sequence[Job], problem: Problem, console: Console) -> None:
    before = None  # the same for all: they start from the same model and samples
    for index, job in enumerate(jobs):
        variant = parsed if index == 0 else parse_train(job.argv)
        before = _run(variant, job, problem).train(console, before=before).before


def _run(parsed: Parsed, job: Job, problem: Problem) -> Run:
    return Run(parsed, problem, Path(job.path), job.beside, command=["scgrpo", "train", *job.argv])


def _show(paths: dict[str, Path], console: Console) -> None:
    """The table, and the pages of all runs."""
    evaluations = {method: RunDirectory(path).evals() for method, path in paths.items()}
    if any(evaluations.values()):
        console.print(_table(evaluations))
        for line in _success(evaluations):
            console.print(line, markup=False, soft_wrap=True)
    from scgrpo.report import write_report

    for path in reversed(paths.values()):  # the main run's page is written last and named last
        page = write_report(path)
    console.print(f"run directory: {path}\nreport:        {page}", markup=False, soft_wrap=True)


def _run_path(parsed: Parsed) -> Path:
    given = parsed.trainer.output_dir
    if given and given != "trainer_output":  # TRL's name for "not given"
        return Path(given)
    # All processes must agree on the second.
    stamp = broadcast_object_list([time.strftime("%Y%m%d-%H%M%S")])[0]
    return Path("runs") / f"{parsed.recipe.replace(' ', '-')}-{stamp}"


def _table(results: dict[str, list[Record]]) -> Table:
    """Two rows per method, narrow enough for 80 columns."""
    k = next(record for evaluations in results.values() for record in evaluations)["k"]
    table = Table(title=f"held-out problems, {k} samples each, 95 % intervals over problems")
    for column in ("method", "", f"Avg@{k}", f"Pass@{k}", "problems"):
        table.add_column(column, justify="right" if "@" in column else "left", no_wrap=True)
    for method, evaluations in results.items():
        ends = {"before": evaluations[0], "after": evaluations[-1]} if len(evaluations) > 1 else {}
        for end, record in ends.items():
            numbers = (_interval(record[name]) for name in ("avg_at_k", "pass_at_k"))
            table.add_row(method if end == "before" else "", end, *numbers, str(record["num_problems"]))
        table.add_section()
    return table


def _success(results: dict[str, list[Record]]) -> list[str]:
    """The share of samples that are solved, where Avg@k is a mean of scores between 0 and 1."""
    from scgrpo.report.summary import has_partial_scores

    lines = []
    for method, evaluations in results.items():
        ends = [evaluations[0], evaluations[-1]] if len(evaluations) > 1 else []
        if any(map(has_partial_scores, ends)):
            before, after = (_interval(record["success_rate"]) for record in ends)
            lines.append(f"{method}: success rate {before} before, {after} after; Avg@k is the mean score")
    return lines


def _interval(estimate: Record) -> str:
    value, low, high = ("?" if estimate[x] is None else f"{estimate[x]:.3f}" for x in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _quiet_libraries() -> None:
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="You are using 'rollout_func'")  # the range of TRL versions is pinned
    logging.getLogger("trl").setLevel(logging.ERROR)
