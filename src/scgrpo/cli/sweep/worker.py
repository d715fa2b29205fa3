"""A worker process of a sweep: `python -m scgrpo.cli.sweep.worker`, see pool.py for what it reads and writes."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import os
import queue
import shutil
import signal
import statistics
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from scgrpo.runs import RunDirectory, files
from scgrpo.runs.results import Compute, Point, RunResult
from scgrpo.runs.results import Problem as ProblemScore
from scgrpo.runs.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from scgrpo.cli.arguments import Parsed
    from scgrpo.cli.sweep.plan import Job

# Logged metrics whose means over training tell what a run was like, those present.
DIAGNOSTICS = (
    *("reward", "entropy", "grad_norm", "frac_reward_zero_std", "clip_ratio/region_mean"),
    *("completions/mean_length", "completions/clipped_ratio"),
    *("credit/weight_mean", "credit/weight_mean_solved", "credit/weight_mean_failed", "credit/effective_token_frac"),
    *("credit/token_kl_p50", "credit/token_kl_p75", "credit/token_kl_p95", "credit/threshold"),
    *("credit/route_partial_frac", "credit/route_none_solved_frac", "credit/demonstration_frac"),
    *("sampling/rounds", "sampling/left_degenerate_frac", "verdicts/error_frac", "verdicts/timeout_frac"),
)


def train_one(job: Job, folder: Path, *, keep_model: bool) -> RunResult:
    """Train one run of the sweep in `folder`; whatever goes wrong is its result."""
    import torch
    from rich.console import Console

    from scgrpo.cli.arguments import parse_train
    from scgrpo.cli.run import Run
    from scgrpo.cli.train import ready

    path = folder / job.path
    shutil.rmtree(path, ignore_errors=True)  # what a killed sweep has left of it
    compute = None
    try:
        parsed = parse_train(job.argv)
        first = _FirstEvaluation(folder / "cache", parsed)
        with ready(parsed) as problem:
            run = Run(parsed, problem, path, [], ["scgrpo", "train", *job.argv], keep_model=keep_model)
            console = Console(file=sys.stderr, force_terminal=False, highlight=False)
            compute = run.train(console, before=first.read(), on_start=first.write).compute
        error = ""
    except Exception as failure:  # noqa: BLE001 (a sweep goes on; the result says what happened)
        traceback.print_exc()
        error = f"{type(failure).__name__}: {failure}"
    gc.collect()  # the model of this run
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return _result(job, path, compute, error)


def _result(job: Job, path: Path, compute: Compute | None, error: str) -> RunResult:
    """What the run directory says came of it."""
    run = RunDirectory(path)
    evals = run.evals()
    # Runs that choose a learning rate are compared by their means.
    points = [_point(record, with_problems=job.stage == "final" and record is evals[-1]) for record in evals]
    return dataclasses.replace(
        job.failed(error),
        status="failed" if error else "done",
        curve=points,
        compute=compute,
        diagnostics=_diagnostics(run.metrics()),
        path=job.path if path.is_dir() else "",
    )


def _point(record: Mapping[str, Any], *, with_problems: bool) -> Point:
    problems = [
        ProblemScore(p["problem_id"], p["n"], p["num_solved"], p["mean_score"]) for p in record["per_problem"]
    ]
    return Point(
        step=record["step"],
        tokens_sampled=record["tokens_sampled"],
        avg_at_k=record["avg_at_k"]["value"],
        pass_at_k=record["pass_at_k"]["value"],
        k=record["k"],
        problems=problems if with_problems else [],
    )


def _diagnostics(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    values = {name: [m[name] for m in metrics if m.get(name) is not None] for name in DIAGNOSTICS}
    return {name: float(f"{statistics.fmean(found):.6g}") for name, found in values.items() if found}


class _FirstEvaluation:
    """The evaluation before training, once for all runs that start from the same model and samples.

    Its file is named by everything that it depends on.
    """

    def __init__(self, folder: Path, parsed: Parsed) -> None:
        train, run = json.loads(parsed.trainer.to_json_string()), dataclasses.asdict(parsed.run)
        names = [name for name in run if name.startswith(("eval_", "task", "dataset_"))]
        of_model = ("seed", "bf16", "fp16", "tf32", "use_cpu", "model_init_kwargs", "cast_lm_head_to_fp32")
        of_sampling = ("max_completion_length", "success_threshold", "chat_template_kwargs", "chat_template_path")
        depends = {
            "model": dataclasses.asdict(parsed.model),
            "run": {name: run[name] for name in names if name != "eval_every"},
            "train": {name: train.get(name) for name in (*of_model, *of_sampling)},
        }
        text = json.dumps(depends, sort_keys=True, default=str)
        self.path = folder / f"before-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"

    def read(self) -> dict[str, Any] | None:
        return files.read_json(self.path) or None

    def write(self, record: Mapping[str, Any] | None) -> None:
        if record is not None and not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = files.to_json({**record, "schema_version": SCHEMA_VERSION})
            files.replace_text(self.path, text)


def _jobs(stdin: IO[str]) -> queue.Queue[str]:
    """Lines of standard input; the process ends with it, also in the middle of a run."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in stdin:
            lines.put(line)
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return lines


def work(_: Sequence[str]) -> int:
    """Answer jobs until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep ends its workers itself
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints must not get among the answers
    lines = _jobs(sys.stdin)
    from scgrpo.cli.loading import heavy_imports

    with heavy_imports():
        from scgrpo.cli import train  # noqa: F401 (runs need it)
        from scgrpo.cli.sweep.plan import Job

    print(json.dumps({"ready": True}), file=answers, flush=True)
    while True:
        given = json.loads(lines.get())
        result = train_one(Job(**given["job"]), Path(given["folder"]), keep_model=given["keep_model"])
        print(files.to_json(result.to_record()), file=answers, flush=True)


if __name__ == "__main__":
    from scgrpo.cli.main import run_command

    sys.exit(run_command(work, []))
