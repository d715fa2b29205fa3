"""`scgrpo eval`: a model on tasks, or a run's model before and after its training; or two evaluations compared."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scgrpo.errors import ConfigError
from scgrpo.runs import RunDirectory, files

if TYPE_CHECKING:
    from scgrpo.tasks.base import Task


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scgrpo eval", description="Avg@k and unbiased Pass@k with 95 %% intervals clustered by problem."
    )
    what = parser.add_argument_group("what")
    what.add_argument("--model", help="hub id, folder, or `tiny`")
    what.add_argument(
        "--run",
        type=Path,
        help="in place of a model: the trained model of this run directory, and the one it started from where that "
        "has no evaluation yet; both are added to the run's evals.jsonl. Its settings are the defaults of the rest",
    )
    what.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("A", "B"),
        help="in place of a model: two evaluations, paired by problem (evaluation or run directories, --json files)",
    )
    what.add_argument("--task", nargs="+", help="tasks by name; needed unless --run, whose task is the default")
    what.add_argument(
        "--task_options",
        type=json_object,
        default={},
        help='options of the task as JSON; of several tasks by name: {"a": {...}, "b": {...}}',
    )
    what.add_argument("--split", choices=["eval", "train"], default="eval")
    what.add_argument("--problems", type=int, default=200, help="at most this many problems")
    _add_sampling(parser.add_argument_group("how"))
    where = parser.add_argument_group("what comes of it")
    where.add_argument(
        "--out", type=Path, help="folder for every completion with its verdict; the same command again goes on there"
    )
    where.add_argument("--json", type=Path, help="also write the full record, with every problem, to this file")
    where.add_argument(
        "--max_error_frac", type=float, default=1.0, help="exit code 1 if more completions than this have no grade"
    )
    return parser


def _add_sampling(how: Any) -> None:
    how.add_argument(
        "--k", type=int, nargs="+", default=[8], help="k of Pass@k, one or several; the largest of Avg@k"
    )
    how.add_argument("--num_samples", type=int, help="completions per problem, at least k (default: k)")
    how.add_argument("--temperature", type=float, default=0.6)
    how.add_argument("--top_p", type=float, default=0.95)
    how.add_argument("--top_k", type=int, default=0, help="0: off")
    how.add_argument("--max_new_tokens", type=int, default=512)
    how.add_argument("--batch_size", type=int, help="completions per generate call (default: 64; vllm: 1024)")
    how.add_argument("--success_threshold", type=float, help="score that counts as solved (default: the task's)")
    how.add_argument("--chat_template_kwargs", type=json_object, help='as JSON, e.g. {"enable_thinking": false}')
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    how.add_argument("--engine_options", type=json_object, default={}, help="of vllm.LLM, as JSON")
    how.add_argument("--dtype", default="auto", help="dtype of the weights: auto, float32, bfloat16")
    how.add_argument("--device", help="default: cuda if there is one, else cpu")


def json_object(text: str) -> dict[str, Any]:
    """A flag's value: a mapping as JSON."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error}): {text!r}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'not a mapping like {{"name": "value"}}: {text!r}')
    return value


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    args = parser.parse_args(argv)
    if sum(given is not None for given in (args.model, args.run, args.compare)) != 1:
        parser.error("give either --model or --run, or two evaluations to --compare")
    args.own = {}
    if args.run is not None:
        settings, own = _settings_of(args.run)
        parser.set_defaults(**settings)
        args = parser.parse_args(argv)
        args.own = own
    if args.task is None and args.compare is None:
        parser.error("give --task")
    if args.batch_size is None:
        args.batch_size = 1024 if args.engine == "vllm" else 64
    return args


def _check(args: argparse.Namespace) -> None:
    """What would otherwise come out when all is evaluated, or not at all.

    Raises:
        ConfigError: a result that cannot be written, no problems, options of another engine.
    """
    if args.json is not None and (args.json.is_dir() or not args.json.absolute().parent.is_dir()):
        raise ConfigError(f"--json {args.json} cannot be written.", "Name a file in a folder that exists.")
    if args.problems < 1:
        raise ConfigError(f"--problems is {args.problems}.", "Evaluate on at least 1.")
    if args.engine_options and args.engine != "vllm":
        raise ConfigError(f"--engine_options are not for --engine {args.engine}.", "Leave them out, or use vllm.")


def _settings_of(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """How this run evaluates, by the names of our flags; and what goes with its own task alone."""
    config = RunDirectory.open(path).config()
    from scgrpo.cli.loading import heavy_imports

    with heavy_imports():
        from scgrpo.cli.arguments import RunArguments
        from scgrpo.cli.setup import task_options

    run, train, model = (config.get(part) or {} for part in ("run", "train", "model"))
    own = RunArguments(**{f.name: run[f.name] for f in dataclasses.fields(RunArguments) if f.name in run})
    settings = {
        "task": [own.task] if own.task else None,
        "problems": run.get("eval_problems") or None,
        "k": [run["eval_k"]] if "eval_k" in run else None,
        "temperature": run.get("eval_temperature"),
        "top_p": run.get("eval_top_p"),
        "max_new_tokens": train.get("max_completion_length"),
        "batch_size": run.get("eval_batch_rows"),
        "chat_template_kwargs": train.get("chat_template_kwargs"),
        "seed": train.get("seed"),
        "dtype": model.get("dtype"),
        "device": "cpu" if train.get("use_cpu") else None,
    }
    of_task = {
        "task": own.task,
        "options": task_options(own),
        "success_threshold": train.get("success_threshold"),
    }
    return {flag: value for flag, value in settings.items() if value is not None}, of_task


def options_of(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Options of each task.

    Raises:
        ConfigError: options of several tasks that are not given by their names.
    """
    given = args.task_options
    own = {args.own.get("task"): args.own.get("options") or {}}
    if len(args.task) == 1:
        return {name: given or own.get(name, {}) for name in args.task}
    odd = [name for name, value in given.items() if name not in args.task or not isinstance(value, dict)]
    if odd:
        raise ConfigError(
            f"--task_options has {odd[0]!r}, which is none of the tasks {', '.join(args.task)}.",
            f"With several tasks, give each one its own: {{{args.task[0]!r}: {{...}}}}.",
        )
    return {name: given.get(name, own.get(name, {})) for name in args.task}


def eval_command(argv: Sequence[str]) -> int:
    """Evaluate, print, and keep what is asked for; or compare.

    Returns:
        0; 1 if it was interrupted, or more completions than `--max_error_frac` have no grade.
    """
    args = _arguments(argv)
    _check(args)
    if args.compare is not None:
        return _compare(args)

    from scgrpo.cli.loading import heavy_imports

    with heavy_imports():
        from transformers.utils import logging as transformers_logging

        from scgrpo.cli.evaluations import Evaluations
        from scgrpo.tasks import get_task

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    options = options_of(args)
    tasks: dict[str, Task] = {}
    evaluations = Evaluations(args, options, tasks)
    try:
        for name in args.task:
            tasks[name] = get_task(name, **options[name])
        records = list(evaluations.all())
    except KeyboardInterrupt:
        print(f"interrupted; {evaluations.kept()}", file=sys.stderr)
        return 1
    finally:
        for task in tasks.values():
            task.close()
    if args.json:
        last = list({record["task"]: record for record in records}.values())
        files.replace_text(args.json, files.to_json(last[0], indent=2) if len(tasks) == 1 else _listed(last))
    return _enough_grades(records, args.max_error_frac)


def _listed(records: list[dict[str, Any]]) -> str:
    return "[\n" + ",\n".join(files.to_json(record, indent=2) for record in records) + "\n]"


def _enough_grades(records: Sequence[dict[str, Any]], most: float) -> int:
    bad = [record for record in records if record["error_frac"] > most]
    for record in bad:
        print(
            f"error: {record['error_frac']:.2%} of the completions of {record['task']} have no grade, which is more "
            f"than --max_error_frac {most:g}",
            file=sys.stderr,
        )
    return 1 if bad else 0


def _compare(args: argparse.Namespace) -> int:
    from scgrpo.evaluation.compare import compare, in_words, load_evaluated

    task = args.task[0] if args.task else None
    comparison = compare(*(load_evaluated(path, task) for path in args.compare))
    print("\n".join(in_words(comparison)))
    if args.json:
        files.replace_text(args.json, files.to_json(comparison.to_record(), indent=2))
    return 0
