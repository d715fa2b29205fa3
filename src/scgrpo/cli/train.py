"""`scgrpo train`: one recipe, one or several credit methods from the same start, a table and a report."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.table import Table

from scgrpo.cli.arguments import Parsed, parse_train
from scgrpo.cli.dry_run import dry_run
from scgrpo.cli.progress import ProgressDisplay
from scgrpo.cli.setup import Problem, load_problem, make_task, resolve_model
from scgrpo.evaluation import EvalResult, evaluate
from scgrpo.integrations.trl import SCGRPOTrainer
from scgrpo.integrations.trl.recorder import RunRecorder
from scgrpo.runs import OnExists, RunDirectory


def train_command(argv: Sequence[str]) -> int:
    """Run `scgrpo train`; see `scgrpo train --help` for its settings."""
    parsed = parse_train(argv)
    console = Console(highlight=False)
    if parsed.run.num_threads:
        torch.set_num_threads(parsed.run.num_threads)
    if parsed.run.dry_run:
        return dry_run(parsed, console)
    _quiet_libraries()
    if parsed.run.note and PartialState().is_main_process:
        console.print(f"note: {parsed.run.note}", markup=False)
    task = make_task(parsed)
    try:
        problem = load_problem(parsed, task)
        return _train_all(argv, parsed, problem, console)
    finally:
        if task is not None:
            task.close()


def _train_all(argv: Sequence[str], parsed: Parsed, problem: Problem, console: Console) -> int:
    """The configured method, then those to compare with, each from the same start."""
    main = _run_path(parsed)
    compare_with = [method for method in parsed.run.compare_with or [] if method != "none"]
    methods = list(dict.fromkeys([parsed.trainer.credit, *compare_with]))
    paths = [main, *(main.with_name(f"{main.name}-{method}") for method in methods[1:])]
    results: dict[str, list[EvalResult]] = {}
    for method, path in zip(methods, paths, strict=True):
        others = [other.name for other in paths if other != path]
        variant = parsed if method == parsed.trainer.credit else parse_train([*argv, "--credit", method])
        results[method] = Run(variant, problem, path, beside=[f"../{name}" for name in others]).train(console)
    if not PartialState().is_main_process:
        return 0
    if any(results.values()):
        console.print(_table(results))
    from scgrpo.report import write_report

    for path in reversed(paths):  # the main run's page is written last and named last
        page = write_report(path)
    console.print(f"run directory: {main}\nreport:        {page}", markup=False, soft_wrap=True)
    return 0


@dataclasses.dataclass
class Run:
    """One training run in its own directory."""

    parsed: Parsed
    problem: Problem
    path: Path
    beside: list[str]

    def train(self, console: Console) -> list[EvalResult]:
        """Evaluate, train, evaluate; everything lands in the run directory. Returns the evaluations."""
        settings, args = self.parsed.run, self.parsed.trainer
        resume = args.resume_from_checkpoint
        # One process writes; the others only need to know where.
        if PartialState().is_main_process:
            run = RunDirectory.create(
                self.path, on_exists="resume" if resume else cast(OnExists, settings.on_existing)
            )
        else:
            run = RunDirectory(self.path)
        PartialState().wait_for_everyone()
        args.output_dir = str(run.checkpoints_dir)
        resume = _checkpoint(run, resume) if resume else None
        trainer = self._trainer(run)
        if PartialState().is_main_process:
            if resume:
                run.truncate_after(int(Path(resume).name.rsplit("-", 1)[1]))
            run.write_config(self._resolved())
            seeds = {"seed": args.seed, "evaluation": args.seed}
            run.write_provenance(command=["scgrpo", *sys.argv[1:]], seeds=seeds)

        held_out = _HeldOut(self, run, trainer, console)
        evaluations = [] if resume else held_out.at(0, "before")
        display = ProgressDisplay(f"{args.credit:12s}", console)
        trainer.add_callback(display)
        trainer.add_callback(held_out.callback())
        try:
            trainer.train(resume_from_checkpoint=resume)
        finally:
            display.close()
        evaluations += held_out.at(trainer.state.global_step, "after")
        trainer.save_model(str(run.model_dir))
        return evaluations

    def _trainer(self, run: RunDirectory) -> SCGRPOTrainer:
        from datasets import Dataset
        from transformers import PrinterCallback, ProgressCallback
        from trl import get_peft_config, get_quantization_config

        model, args, settings = self.parsed.model, self.parsed.trainer, self.parsed.run
        args.model_init_kwargs = {
            "revision": model.model_revision,
            "attn_implementation": model.attn_implementation,
            "dtype": model.dtype,
            **(args.model_init_kwargs or {}),
        }
        trainer = SCGRPOTrainer(
            model=resolve_model(model.model_name_or_path),
            reward_funcs=self.problem.reward_funcs,
            args=args,
            train_dataset=Dataset.from_list(self.problem.train_rows),
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        recorder = RunRecorder(
            run,
            trainer.processing_class,
            every=settings.rollouts_every,
            num_groups=settings.rollouts_groups,
            verdicts=lambda: getattr(self.problem.reward_funcs[0], "last_verdicts", ()),
        )
        trainer.add_callback(recorder)
        trainer.listeners.append(recorder.record)
        return trainer

    def _resolved(self) -> dict[str, Any]:
        parsed = self.parsed
        return {
            "recipe": parsed.recipe,
            "train": json.loads(parsed.trainer.to_json_string()),
            "task": {"name": parsed.run.task, **parsed.run.task_settings},
            "model": {"name_or_path": parsed.model.model_name_or_path, **_plain(parsed.model)},
            "run": _plain(parsed.run),
            "beside": self.beside,
        }


class _HeldOut:
    """Evaluations of a run on its held-out problems."""

    def __init__(self, run: Run, directory: RunDirectory, trainer: SCGRPOTrainer, console: Console) -> None:
        self.run, self.directory, self.trainer, self.console = run, directory, trainer, console

    def at(self, step: int, label: str) -> list[EvalResult]:
        """Evaluate now, on the first process; the others wait. Empty without held-out problems."""
        settings, args, problem = self.run.parsed.run, self.run.parsed.trainer, self.run.problem
        if problem.task is None or not problem.eval_rows:
            return []
        if self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled:
            if label == "before" and self.trainer.accelerator.is_main_process:
                self.console.print("No evaluation while weights are sharded: run `scgrpo eval` on the saved model.")
            return []
        results = []
        if self.trainer.accelerator.is_main_process:
            result = evaluate(
                self.trainer.accelerator.unwrap_model(self.trainer.model),
                self.trainer.processing_class,
                problem.task,
                rows=problem.eval_rows,
                k=settings.eval_k,
                temperature=settings.eval_temperature,
                top_p=settings.eval_top_p,
                max_new_tokens=args.max_completion_length,
                batch_size=settings.eval_batch_rows,
                seed=args.seed,
                success_threshold=args.success_threshold,
                chat_template_kwargs=args.chat_template_kwargs,
            )
            self.directory.log_eval(result.to_record(step, label))
            results.append(result)
        self.trainer.accelerator.wait_for_everyone()
        return results

    def callback(self) -> Any:
        """Evaluates every `eval_every` steps."""
        from transformers import TrainerCallback

        held_out, every = self, self.run.parsed.run.eval_every

        class DuringTraining(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if every and state.global_step % every == 0 and state.global_step < state.max_steps:
                    held_out.at(state.global_step, "during")

        return DuringTraining()


def _run_path(parsed: Parsed) -> Path:
    given = parsed.trainer.output_dir
    if given and given != "trainer_output":  # TRL's name for "not given"
        return Path(given)
    # All processes must agree on the second.
    stamp = broadcast_object_list([time.strftime("%Y%m%d-%H%M%S")])[0]
    return Path("runs") / f"{parsed.recipe.replace(' ', '-')}-{stamp}"


def _checkpoint(run: RunDirectory, wanted: str | bool) -> str:
    from transformers.trainer_utils import get_last_checkpoint

    from scgrpo.errors import RunError

    if str(wanted).lower() not in ("true", "last"):
        return str(wanted)
    last = get_last_checkpoint(str(run.checkpoints_dir)) if run.checkpoints_dir.is_dir() else None
    if last is None:
        raise RunError(f"{run.path} has no checkpoint to resume from.", "Start it anew under another output_dir.")
    return last


def _table(results: dict[str, list[EvalResult]]) -> Table:
    """Two rows per method, narrow enough for 80 columns."""
    k = next(r for evaluations in results.values() for r in evaluations).k
    table = Table(title=f"held-out problems, {k} samples each, 95 % intervals over problems")
    for column in ("credit", "", f"Avg@{k}", f"Pass@{k}", "problems"):
        table.add_column(column, justify="right" if "@" in column else "left", no_wrap=True)
    for method, evaluations in results.items():
        ends = {"before": evaluations[0], "after": evaluations[-1]} if len(evaluations) > 1 else {}
        for label, result in ends.items():
            numbers = (f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for e in (result.avg_at_k, result.pass_at_k))
            table.add_row(method if label == "before" else "", label, *numbers, str(result.num_problems))
        table.add_section()
    return table


def _plain(settings: Any) -> dict[str, Any]:
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}


def _quiet_libraries() -> None:
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("trl").setLevel(logging.ERROR)
