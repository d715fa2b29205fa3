"""`scgrpo eval`: Avg@k and Pass@k of a model on a task."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scgrpo eval", description="Avg@k and unbiased Pass@k with 95 %% intervals clustered by problem."
    )
    parser.add_argument("--model", required=True, help="hub id, folder, or `tiny`")
    parser.add_argument("--task", required=True, help="task by name")
    parser.add_argument("--task_options", type=json.loads, default={}, help="options of the task as JSON")
    parser.add_argument("--split", choices=["eval", "train"], default="eval")
    parser.add_argument("--problems", type=int, default=200, help="at most this many problems")
    parser.add_argument("--k", type=int, default=8, help="completions per problem")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--top_p", type=float, default=0.95)
    parser.add_argument("--max_new_tokens", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=64, help="completions per generate call")
    parser.add_argument("--chat_template_kwargs", type=json.loads, help='as JSON, e.g. {"enable_thinking": false}')
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto", help="dtype of the weights: auto, float32, bfloat16")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--json", type=Path, help="also write the full record, with every problem, to this file")
    return parser


def eval_command(argv: Sequence[str]) -> int:
    """Evaluate and print one table row."""
    args = _parser().parse_args(argv)

    from scgrpo.cli.loading import heavy_imports

    with heavy_imports():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        from scgrpo.cli.setup import resolve_model
        from scgrpo.errors import ConfigError
        from scgrpo.evaluation import evaluate
        from scgrpo.tasks import get_task

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    task = get_task(args.task, **args.task_options)
    name = resolve_model(args.model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=args.dtype)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Cannot load the model {args.model!r}: {str(error).splitlines()[0]}",
            "Give a hub id, a folder that holds a checkpoint, or `tiny`.",
        ) from error
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        result = evaluate(
            model.to(device),
            tokenizer,
            task,
            rows=task.rows(args.split, args.problems),
            k=args.k,
            temperature=args.temperature,
            top_p=args.top_p,
            max_new_tokens=args.max_new_tokens,
            batch_size=args.batch_size,
            seed=args.seed,
            chat_template_kwargs=args.chat_template_kwargs,
        )
    finally:
        task.close()
    for label, e in ((f"Avg@{args.k}", result.avg_at_k), (f"Pass@{args.k}", result.pass_at_k)):
        print(f"{label:8s} {e.value:.4f}  95 % interval [{e.low:.4f}, {e.high:.4f}]  {e.num_problems} problems")
    print(
        f"ungraded {result.error_frac:.2%}, cut off {result.truncated_frac:.2%}, "
        f"{result.tokens_per_s:.0f} tokens/s, {result.seconds:.1f} s"
    )
    if args.json:
        args.json.write_text(json.dumps(result.to_record(0, "eval"), indent=2))
    return 0
