"""One training run in its own directory: evaluated before and after, recorded."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console

from scgrpo.cli.arguments import Parsed
from scgrpo.cli.progress import ProgressDisplay
from scgrpo.cli.setup import SFT_MODEL, Problem, resolve_model
from scgrpo.errors import ConfigError, RunError, ScgrpoError
from scgrpo.evaluation import Crew, EvalResult, evaluate
from scgrpo.integrations.trl import SCGRPOTrainer
from scgrpo.integrations.trl.compute import COUNTS
from scgrpo.integrations.trl.environments import EnvironmentRollouts
from scgrpo.integrations.trl.evidence import everywhere, shares_weights
from scgrpo.integrations.trl.host_sampling import HostSampler
from scgrpo.integrations.trl.presets import label
from scgrpo.integrations.trl.recorder import RunRecorder
from scgrpo.runs import OnExists, RunDirectory
from scgrpo.runs.results import Compute
from scgrpo.tasks.base import Task
from scgrpo.tasks.environment import EnvironmentTask

# An evaluation as `evals.jsonl` has it.
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run leaves to others.

    Attributes:
        before: its first evaluation; None where there is none (resumed, no held-out problems).
        compute: what it cost.
    """

    before: Record | None
    compute: Compute


@dataclasses.dataclass
class Run:
    """One training run in its own directory.

    Attributes:
        beside: directories of the runs to show beside it, relative to its own.
        command: the command line, for the record.
        keep_model: write the trained model.
    """

    parsed: Parsed
    problem: Problem
    path: Path
    beside: list[str]
    command: list[str]
    keep_model: bool = True

    def train(
        self,
        console: Console,
        *,
        before: Record | None = None,
        on_start: Callable[[Record | None], None] = lambda before: None,
    ) -> Trained:
        """Evaluate, train, evaluate; everything lands in the run directory.

        Args:
            before: the first evaluation, if another run has made it from the same start.
            on_start: called with the first evaluation when training is about to start.
        """
        args = self.parsed.trainer
        _check_enough(len(self.problem.train_rows), args.generation_batch_size // args.num_generations)
        run = self._directory()
        resume = _checkpoint(run, args.resume_from_checkpoint) if args.resume_from_checkpoint else None
        trainer = self._trainer(run)
        if PartialState().is_main_process:
            if resume:
                run.truncate_after(int(Path(resume).name.rsplit("-", 1)[1]))
            run.write_config(self._resolved())
            run.write_provenance(command=self.command, seeds={"seed": args.seed, "evaluation": args.seed})

        held_out = _HeldOut(self, run, trainer, console, known=before, resumed=resume is not None)
        if not held_out.in_training:
            held_out.start()
        on_start(held_out.first)
        display = ProgressDisplay(f"{label(args.method, args.credit):12s}", console)
        trainer.add_callback(display)
        trainer.add_callback(held_out.callback())
        try:
            trainer.train(resume_from_checkpoint=resume)
        finally:
            display.close()
        held_out.at(trainer.state.global_step, "after")
        if self.keep_model:
            if trainer.is_fsdp_enabled:  # with the shards of a checkpoint, nothing would be written here
                trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
            trainer.save_model(str(run.model_dir))
        return Trained(held_out.first, _compute(trainer))

    def _directory(self) -> RunDirectory:
        """The run directory. One process makes it and writes; the others only need to know where."""
        args = self.parsed.trainer
        on_exists = "resume" if args.resume_from_checkpoint else self.parsed.run.on_existing
        on_first_process(lambda: RunDirectory.create(self.path, on_exists=cast(OnExists, on_exists)))
        run = RunDirectory(self.path)
        args.output_dir = str(run.checkpoints_dir)
        return run

    def _start_model(self, run: RunDirectory) -> str:
        """What training starts from. `tiny-sft` is made once, and kept in the run directory."""
        name, task = self.parsed.model.model_name_or_path, self.problem.task
        if name != SFT_MODEL:
            return resolve_model(name)
        if task is None:
            raise ConfigError(f"The model {SFT_MODEL!r} needs a task.", "Set task, or take another model.")
        from scgrpo.tiny.sft_model import write_sft_model

        if not run.start_model_dir.is_dir():
            tell = partial(print, file=sys.stderr)
            on_first_process(
                lambda: write_sft_model(run.start_model_dir, task, self.problem.train_rows, progress=tell)
            )
        return str(run.start_model_dir)

    def _trainer(self, run: RunDirectory) -> SCGRPOTrainer:
        from datasets import Dataset
        from transformers import PrinterCallback, ProgressCallback
        from trl import get_peft_config, get_quantization_config

        model, args, settings = self.parsed.model, self.parsed.trainer, self.parsed.run
        task = self.problem.task
        args.model_init_kwargs = {
            "revision": model.model_revision,
            "attn_implementation": model.attn_implementation,
            "dtype": model.dtype,
            **(args.model_init_kwargs or {}),
        }
        if args.teacher_model_name_or_path is not None:
            args.teacher_model_name_or_path = resolve_model(args.teacher_model_name_or_path)
        trainer = SCGRPOTrainer(
            model=self._start_model(run),
            reward_funcs=self.problem.reward_funcs,
            args=args,
            train_dataset=Dataset.from_list(self.problem.train_rows),
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
            rollout_func=EnvironmentRollouts(task) if isinstance(task, EnvironmentTask) else None,
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
            "label": label(parsed.trainer.method, parsed.trainer.credit),
            "train": json.loads(parsed.trainer.to_json_string()),
            "task": {"name": parsed.run.task, **parsed.run.task_settings},
            "model": {"name_or_path": parsed.model.model_name_or_path, **_plain(parsed.model)},
            "run": _plain(parsed.run),
            "beside": self.beside,
        }


class _HeldOut:
    """Evaluations of a run on its held-out problems, by all processes together.

    Attributes:
        in_training: the first one must wait until training has begun, where the model is split or wrapped then.
        first: the evaluation before training, once it is made.
    """

    def __init__(
        self,
        run: Run,
        directory: RunDirectory,
        trainer: SCGRPOTrainer,
        console: Console,
        *,
        known: Record | None,
        resumed: bool,
    ) -> None:
        self.run, self.directory, self.trainer, self.console = run, directory, trainer, console
        self.in_training = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or trainer.use_vllm
        self.first: Record | None = None
        self._known, self._resumed = known, resumed
        accelerator = trainer.accelerator
        self._crew = Crew(
            accelerator.process_index,
            accelerator.num_processes,
            gather=partial(everywhere, accelerator),
            in_step=shares_weights(accelerator) or trainer.use_vllm,
        )

    def start(self) -> None:
        """The evaluation before training, or another run's from the same start."""
        if not self._resumed:
            self.first = self.at(0, "before", self._known)

    def at(self, step: int, label: str, known: Record | None = None) -> Record | None:
        """Evaluate now, or take a known record. The first process keeps it."""
        problem, accelerator = self.run.problem, self.trainer.accelerator
        if problem.task is None or not problem.eval_rows:
            return None
        with self.trainer.meter.paused():
            record = self._evaluate(problem.task).to_record(step, label) if known is None else known
            record = {**record, "tokens_sampled": round(self.trainer.meter.totals["tokens_sampled"])}
            if accelerator.is_main_process:
                self.directory.log_eval(record)
            accelerator.wait_for_everyone()
        return record

    def _evaluate(self, task: Task) -> EvalResult:
        settings, args = self.run.parsed.run, self.run.parsed.trainer
        trainer = self.trainer
        return evaluate(
            HostSampler(trainer) if trainer.use_vllm else trainer.accelerator.unwrap_model(trainer.model),
            trainer.processing_class,
            task,
            rows=self.run.problem.eval_rows,
            k=settings.eval_k,
            temperature=settings.eval_temperature,
            top_p=settings.eval_top_p,
            max_new_tokens=args.max_completion_length,
            batch_size=settings.eval_batch_rows,
            seed=args.seed,
            success_threshold=args.success_threshold,
            chat_template_kwargs=args.chat_template_kwargs,
            crew=self._crew,
        )

    def callback(self) -> Any:
        """Evaluates every `eval_every` steps, and before the first one if that had to wait."""
        from transformers import TrainerCallback

        held_out, every = self, self.run.parsed.run.eval_every

        class DuringTraining(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if held_out.in_training:
                    held_out.start()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if every and state.global_step % every == 0 and state.global_step < state.max_steps:
                    held_out.at(state.global_step, "during")

        return DuringTraining()


def _check_enough(num_rows: int, num_prompts: int) -> None:
    """TRL leaves out incomplete batches: with fewer rows it would train no step and say nothing."""
    if num_rows < num_prompts:
        raise ConfigError(
            f"There are {num_rows} training rows, and a generation batch takes {num_prompts} prompts.",
            "Give more rows (max_train_rows), or a smaller batch (per_device_train_batch_size).",
        )


def on_first_process(work: Callable[[], object]) -> None:
    """Do it on the first process alone, while the others wait; its failure is everyone's.

    Raises:
        ScgrpoError: what it raised.
    """
    failure: list[tuple[type[ScgrpoError], str, str] | None] = [None]
    if PartialState().is_main_process:
        try:
            work()
        except ScgrpoError as error:
            failure = [(type(error), error.problem, error.remedy)]
    broadcast_object_list(failure)
    if failure[0] is not None:
        kind, problem, remedy = failure[0]
        raise kind(problem, remedy)


def _compute(trainer: SCGRPOTrainer) -> Compute:
    totals = trainer.meter.totals
    return Compute(
        updates=trainer.state.global_step,
        **{name: round(totals[name]) for name in COUNTS},
        seconds=round(totals["seconds"], 3),
        cpu_seconds=round(totals["cpu_seconds"], 3),
    )


def _checkpoint(run: RunDirectory, wanted: str | bool) -> str:
    from transformers.trainer_utils import get_last_checkpoint

    if str(wanted).lower() not in ("true", "last"):
        return str(wanted)
    last = get_last_checkpoint(str(run.checkpoints_dir)) if run.checkpoints_dir.is_dir() else None
    if last is None:
        raise RunError(f"{run.path} has no checkpoint to resume from.", "Start it anew under another output_dir.")
    return last


def _plain(settings: Any) -> dict[str, Any]:
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
