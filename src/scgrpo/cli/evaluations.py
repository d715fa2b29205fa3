"""The evaluations of one `scgrpo eval`: which models, on which tasks, into which folders."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from scgrpo.cli.eval_show import show
from scgrpo.cli.setup import SFT_MODEL, resolve_model
from scgrpo.errors import ConfigError, RunError
from scgrpo.evaluation import EvalDirectory, evaluate
from scgrpo.runs import RunDirectory
from scgrpo.tasks.base import Task


class _Subject(NamedTuple):
    """A model to evaluate: name, revision on the hub, and how its evaluation is labelled."""

    name: str | None
    revision: str | None
    step: int
    label: str


@dataclass
class Evaluations:
    """Makes and shows them.

    Attributes:
        options: of each task, by name.
        tasks: by the name they were asked for with; may be filled later.
    """

    args: argparse.Namespace
    options: Mapping[str, Mapping[str, Any]]
    tasks: Mapping[str, Task]
    _directory: EvalDirectory | None = None

    def all(self) -> Iterator[dict[str, Any]]:
        """Evaluate; the records, as they are done."""
        run = None if self.args.run is None else RunDirectory.open(self.args.run)
        subjects = [_Subject(self.args.model, None, 0, "eval")] if run is None else _ends_of(run)
        evals = [] if run is None else run.evals()
        own_options = self.args.own.get("options") or {}
        known = [_how_of(e, own_options) for e in evals if e.get("label") == "before"]
        for subject in subjects:
            wanted = {
                name: task
                for name, task in self.tasks.items()
                if subject.label != "before" or self._how(name, task) not in known
            }
            if not wanted:
                continue
            model, tokenizer = self._load(subject)
            for name, task in wanted.items():
                if run is not None or len(self.tasks) > 1:
                    print(f"{task.name}:" if run is None else f"{subject.label} training, {task.name}:")
                record = self._one(subject, model, tokenizer, name, task)
                if run is not None:
                    run.log_eval(record)
                yield record

    def _how(self, name: str, task: Task) -> dict[str, Any]:
        """How a task is evaluated now, as `_how_of` has it of a record."""
        args, largest = self.args, max(self.args.k, default=0)
        now = {**vars(args), "task": task.name, "k": largest, "num_samples": args.num_samples or largest}
        return _how_of({**now, "settings": {"task_options": dict(self.options[name]), "split": args.split}}, {})

    def kept(self) -> str:
        """What is left of the evaluation that was under way, in words."""
        if self._directory is None:
            return "nothing is kept of what was under way: with --out DIR, the same command would go on"
        kept = self._directory
        return f"{kept.num_kept} graded completions are kept in {kept.path}; the same command goes on there"

    def _one(self, subject: _Subject, model: Any, tokenizer: Any, name: str, task: Task) -> dict[str, Any]:
        args = self.args
        about = {
            "model": _short_name(subject.name),
            "revision": subject.revision,
            "task_options": dict(self.options[name]),
            "split": args.split,
        }
        self._directory = None if args.out is None else EvalDirectory(self._folder(subject, name), about)
        threshold = args.success_threshold
        if threshold is None and name == args.own.get("task"):
            threshold = args.own.get("success_threshold")
        with _progress() as progress:
            result = evaluate(
                model,
                tokenizer,
                task,
                rows=task.rows(args.split, args.problems),
                k=args.k,
                num_samples=args.num_samples,
                temperature=args.temperature,
                top_p=args.top_p,
                top_k=args.top_k,
                max_new_tokens=args.max_new_tokens,
                batch_size=args.batch_size,
                seed=args.seed,
                success_threshold=threshold,
                chat_template_kwargs=args.chat_template_kwargs,
                out=self._directory,
                progress=progress,
            )
        show(result)
        self._directory = None
        return {**result.to_record(subject.step, subject.label), "settings": about}

    def _folder(self, subject: _Subject, name: str) -> Path:
        parts = [name] if len(self.tasks) > 1 else []
        parts += [subject.label] if self.args.run is not None else []
        return self.args.out.joinpath(*(re.sub(r"[^\w.-]", "_", part) for part in parts))

    def _load(self, subject: _Subject) -> tuple[Any, Any]:
        """A model and its tokenizer, or what samples in its place."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = resolve_model(subject.name)
        kept = {} if subject.revision is None else {"revision": subject.revision}
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, **kept)
            if self.args.engine == "vllm":
                return _vllm(path, tokenizer, subject.revision, self.args), tokenizer
            if self.args.dtype != "auto" and not isinstance(getattr(torch, self.args.dtype, None), torch.dtype):
                raise ConfigError(f"There is no dtype {self.args.dtype!r}.", "Choose auto, float32 or bfloat16.")
            model = AutoModelForCausalLM.from_pretrained(path, dtype=self.args.dtype, **kept)
        except (ConfigError, ImportError):
            raise
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"Cannot load the model {subject.name!r}: {str(error).splitlines()[0]}",
                "Give a hub id, a folder that holds a checkpoint, or `tiny`.",
            ) from error
        device = self.args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return model.to(device), tokenizer
        except (RuntimeError, AssertionError) as error:  # torch says so if it was built without CUDA
            raise ConfigError(
                f"The model does not go to the device {device!r}: {str(error).splitlines()[0]}",
                "Choose another --device, for example cpu.",
            ) from error


def _how_of(record: Mapping[str, Any], own_options: Mapping[str, Any]) -> dict[str, Any]:
    """What must be alike before and after training; records of the training itself are of the run's own options."""
    settings = {"task_options": dict(own_options), "split": "eval", **(record.get("settings") or {})}
    names = ("task", "k", "num_samples", "temperature", "top_p", "top_k", "max_new_tokens")
    return {
        **{name: record.get(name) for name in names},
        "task_options": settings["task_options"],
        "split": settings["split"],
    }


def _vllm(path: str, tokenizer: Any, revision: str | None, args: argparse.Namespace) -> Any:
    from transformers import GenerationConfig

    from scgrpo.evaluation.vllm import VllmSampler

    try:
        own = GenerationConfig.from_pretrained(path, **({} if revision is None else {"revision": revision}))
    except OSError:  # a model may have none
        own = GenerationConfig()
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    return VllmSampler(
        path,
        tokenizer,
        ends=[end for end in ends if end is not None],
        revision=revision,
        dtype=args.dtype,
        options=args.engine_options,
    )


def _ends_of(run: RunDirectory) -> list[_Subject]:
    """Where a run started and where it ended."""
    config = run.config()
    if not run.model_dir.is_dir() or not config:
        raise RunError(
            f"{run.path} has no trained model.", "It is written when training ends: let the run end, or give --model."
        )
    model = config.get("model") or {}
    start = model.get("name_or_path")
    if start == SFT_MODEL:
        start = str(run.start_model_dir)
    planned = int((config.get("train") or {}).get("max_steps") or 0)
    last = max([planned, 0, *(int(record["step"]) for record in (*run.metrics(), *run.evals()))])
    return [
        _Subject(start, model.get("model_revision"), 0, "before"),
        _Subject(str(run.model_dir), None, last, "after"),
    ]


def _short_name(model: str | None) -> str | None:
    """A folder may be moved: what it holds is told by its weights."""
    return Path(model).resolve().name if model and Path(model).is_dir() else model


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, which is gone afterwards."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        sampled = bar.add_task("completions", total=None)
        yield lambda done, total: bar.update(sampled, completed=done, total=total)
