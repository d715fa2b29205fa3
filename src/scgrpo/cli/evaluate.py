"""`scgrpo eval`: Avg@k and Pass@k of a model on a task, or of a run's model, before and after its training."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scgrpo.errors import RunError
from scgrpo.runs import RunDirectory

if TYPE_CHECKING:
    from scgrpo.evaluation import EvalResult
    from scgrpo.tasks.base import Task


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scgrpo eval", description="Avg@k and unbiased Pass@k with 95 %% intervals clustered by problem."
    )
    parser.add_argument("--model", help="hub id, folder, or `tiny`")
    parser.add_argument(
        "--run",
        type=Path,
        help="in place of a model: the trained model of this run directory, and the one it started from where that "
        "has no evaluation yet; both are added to the run's evals.jsonl. Its settings are the defaults of the rest",
    )
    parser.add_argument("--task", help="task by name; needed unless --run, whose task is the default")
    parser.add_argument("--task_options", type=json.loads, default={}, help="options of the task as JSON")
    parser.add_argument("--split", choices=["eval", "train"], default="eval")
    parser.add_argument("--problems", type=int, default=200, help="at most this many problems")
    parser.add_argument("--k", type=int, default=8, help="completions per problem")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--top_p", type=float, default=0.95)
    parser.add_argument("--max_new_tokens", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=64, help="completions per generate call")
    parser.add_argument("--success_threshold", type=float, default=0.5, help="score from which one counts as solved")
    parser.add_argument("--chat_template_kwargs", type=json.loads, help='as JSON, e.g. {"enable_thinking": false}')
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto", help="dtype of the weights: auto, float32, bfloat16")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--json", type=Path, help="also write the full record, with every problem, to this file")
    return parser


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.model is None) == (args.run is None):
        parser.error("give either --model or --run")
    if args.run is not None:
        parser.set_defaults(**_settings_of(args.run, args.task))
        args = parser.parse_args(argv)
    if args.task is None:
        parser.error("give --task")
    return args


def _settings_of(path: Path, task: str | None) -> dict[str, Any]:
    """How this run evaluates, by the names of our flags; the options of its task only if that is asked for."""
    config = RunDirectory.open(path).config()
    from scgrpo.cli.loading import heavy_imports

    with heavy_imports():
        from scgrpo.cli.arguments import RunArguments
        from scgrpo.cli.setup import task_options

    run, train, model = (config.get(part) or {} for part in ("run", "train", "model"))
    own = RunArguments(**{f.name: run[f.name] for f in dataclasses.fields(RunArguments) if f.name in run})
    settings = {
        "task": own.task,
        "task_options": task_options(own) if task in (None, own.task) else None,
        "problems": run.get("eval_problems") or None,
        "k": run.get("eval_k"),
        "temperature": run.get("eval_temperature"),
        "top_p": run.get("eval_top_p"),
        "max_new_tokens": train.get("max_completion_length"),
        "batch_size": run.get("eval_batch_rows"),
        "success_threshold": train.get("success_threshold"),
        "chat_template_kwargs": train.get("chat_template_kwargs"),
        "seed": train.get("seed"),
        "dtype": model.get("dtype"),
        "device": "cpu" if train.get("use_cpu") else None,
    }
    return {flag: value for flag, value in settings.items() if value is not None}


def eval_command(argv: Sequence[str]) -> int:
    """Evaluate, print, and keep what is asked for."""
    args = _arguments(argv)

    from scgrpo.cli.loading import heavy_imports

    with heavy_imports():
        from transformers.utils import logging as transformers_logging

        from scgrpo.tasks import get_task

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    task = get_task(args.task, **args.task_options)
    try:
        records = list(_of_run(args, task)) if args.run else [_evaluate(args, task, args.model).to_record(0, "eval")]
    finally:
        task.close()
    if args.json:
        args.json.write_text(json.dumps(records[-1], indent=2))
    return 0


def _of_run(args: argparse.Namespace, task: Task) -> Iterator[dict[str, Any]]:
    """Evaluations of a run's model as its own are recorded: where it started, unless known, and where it ended."""
    run = RunDirectory.open(args.run)
    config = run.config()
    if not run.model_dir.is_dir() or not config:
        raise RunError(
            f"{run.path} has no trained model.", "It is written when training ends: let the run end, or give --model."
        )
    known = {(e.get("task"), e.get("k")) for e in run.evals() if e.get("label") == "before"}
    model = config.get("model") or {}
    ends: list[tuple[str, int, str | None, str | None]] = [
        ("after", _last_step(run, config), str(run.model_dir), None)
    ]
    if (task.name, args.k) not in known:
        ends = [("before", 0, model.get("name_or_path"), model.get("model_revision")), *ends]
    for label, step, name, revision in ends:
        print(f"{label} training, {task.name}:")
        record = _evaluate(args, task, name, revision).to_record(step, label)
        run.log_eval(record)
        yield record


def _last_step(run: RunDirectory, config: dict[str, Any]) -> int:
    planned = int((config.get("train") or {}).get("max_steps") or 0)
    return max([planned, 0, *(int(record["step"]) for record in (*run.metrics(), *run.evals()))])


def _evaluate(args: argparse.Namespace, task: Task, name: str | None, revision: str | None = None) -> EvalResult:
    """Evaluate and print."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from scgrpo.cli.setup import resolve_model
    from scgrpo.errors import ConfigError
    from scgrpo.evaluation import evaluate

    path = resolve_model(name)
    kept = {} if revision is None else {"revision": revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **kept)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=args.dtype, **kept)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Cannot load the model {name!r}: {str(error).splitlines()[0]}",
            "Give a hub id, a folder that holds a checkpoint, or `tiny`.",
        ) from error
    result = evaluate(
        model.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu")),
        tokenizer,
        task,
        rows=task.rows(args.split, args.problems),
        k=args.k,
        temperature=args.temperature,
        top_p=args.top_p,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        seed=args.seed,
        success_threshold=args.success_threshold,
        chat_template_kwargs=args.chat_template_kwargs,
    )
    for label, e in ((f"Avg@{args.k}", result.avg_at_k), (f"Pass@{args.k}", result.pass_at_k)):
        print(f"{label:8s} {e.value:.4f}  95 % interval [{e.low:.4f}, {e.high:.4f}]  {e.num_problems} problems")
    print(
        f"ungraded {result.error_frac:.2%}, cut off {result.truncated_frac:.2%}, "
        f"{result.tokens_per_s:.0f} tokens/s, {result.seconds:.1f} s"
    )
    return result
