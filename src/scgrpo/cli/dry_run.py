"""`scgrpo train --dry-run`: what would happen, without training or writing anything."""

from __future__ import annotations

import dataclasses
import logging
from functools import partial
from typing import Any

from rich.console import Console
from trl import ModelConfig

from scgrpo.cli.arguments import Parsed, RunArguments
from scgrpo.cli.checks import first_line, grade_canned, prompt_text, show_graded
from scgrpo.cli.setup import SFT_MODEL, make_task, resolve_model
from scgrpo.errors import DataError, MissingDataError
from scgrpo.integrations.trl import SCGRPOConfig
from scgrpo.integrations.trl.presets import label
from scgrpo.tasks.base import Row, Task
from scgrpo.teacher.prompts import Prompt, get_template, teacher_prompt, transcript
from scgrpo.tiny.base_models import PREFIX, parse_reference
from scgrpo.tiny.testbeds import get_testbed


def dry_run(parsed: Parsed, console: Console) -> int:
    """Print the resolved settings, one example's student and teacher prompts, and verdicts on canned answers.

    Returns:
        0, or 1 if the verifier judges a canned answer differently than it should.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; what is missing is told below
    console.rule(f"settings of {parsed.recipe} that differ from their defaults")
    for key, value in changed_settings(parsed).items():
        console.print(f"{key}: {value!r}", markup=False, soft_wrap=True)
    console.print("(a run writes all of them to config.resolved.json)", markup=False)
    if parsed.run.note:
        console.print(f"\nnote: {parsed.run.note}", markup=False)
    console.print(f"\n{_rollout_plan(parsed)}", markup=False)
    task = make_task(parsed)
    if task is None:
        console.print("\nNo task: prompts and rewards come from dataset_name and reward_funcs.", markup=False)
        return 0
    try:
        _show_prompts(parsed, task, console)
        return _show_verdicts(task, console)
    finally:
        task.close()


def changed_settings(parsed: Parsed) -> dict[str, Any]:
    """Settings whose value is not what it would be without the recipe and the flags."""
    cpu_only: dict[str, Any] = {"use_cpu": True, "bf16": False} if parsed.trainer.use_cpu else {}
    defaults = (RunArguments(), SCGRPOConfig("trainer_output", report_to="none", **cpu_only), ModelConfig())
    changed = {}
    for default, values in zip(defaults, (parsed.run, parsed.trainer, parsed.model), strict=True):
        for field in dataclasses.fields(values):
            value = getattr(values, field.name)
            if str(getattr(default, field.name)) != str(value) and field.name not in ("dry_run", "note"):
                changed[field.name] = getattr(value, "value", value)
    return changed


def _rollout_plan(parsed: Parsed) -> str:
    t = parsed.trainer
    prompts = t.generation_batch_size // t.num_generations
    steps = f"{t.max_steps} steps" if t.max_steps > 0 else f"{t.num_train_epochs:g} epoch(s)"
    return (
        f"{steps}; each generation batch: {prompts} prompts x {t.num_generations} rollouts of at most "
        f"{t.max_completion_length} tokens, trained in {t.steps_per_generation} micro-batch(es) of "
        f"{t.per_device_train_batch_size} per process; method: {label(t.method, t.credit)}, loss: {t.loss_type}"
    )


def _show_prompts(parsed: Parsed, task: Task, console: Console) -> None:
    canned, first = task.canned(), _first_row(task, console)
    row, demonstration = canned.row, transcript(canned.right[0])
    template = get_template(parsed.trainer.teacher_template)
    prompts: dict[str, Prompt] = {
        **({} if first is None else {"first training row": first["prompt"]}),
        "example: student prompt": row["prompt"],
        "teacher prompt, verified demonstration": teacher_prompt(
            row["prompt"], demonstration, template, verified=True
        ),
        "teacher prompt, unverified demonstration": teacher_prompt(
            row["prompt"], demonstration, template, verified=False
        ),
    }
    tokenizer = _tokenizer(parsed, console)
    for title, prompt in prompts.items():
        text, size = _render(tokenizer, prompt, parsed.trainer.chat_template_kwargs or {})
        console.rule(f"{title} ({size})")
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _first_row(task: Task, console: Console) -> Row | None:
    try:
        rows = task.rows("train", 1)
    except (MissingDataError, OSError) as error:
        console.print(
            f"\nThe data cannot be read here ({first_line(error)}); showing a built-in example.", markup=False
        )
        return None
    if not rows:
        raise DataError("The task has no training rows.", "Check its data source and filters.")
    return rows[0]


def _tokenizer(parsed: Parsed, console: Console) -> Any:
    from transformers import AutoTokenizer

    given = parsed.model.model_name_or_path or ""
    if given.startswith(PREFIX):  # known without training the model
        return get_testbed(parse_reference(given)[0]).recipe.vocabulary.tokenizer()
    if given == SFT_MODEL:
        console.print(
            f"\nThe tokenizer of {SFT_MODEL} is made with the model: prompts are shown as messages, without token "
            "counts.",
            markup=False,
        )
        return None
    name = resolve_model(given or None)
    try:
        return AutoTokenizer.from_pretrained(name, revision=parsed.model.model_revision)
    except (OSError, ValueError) as error:
        console.print(
            f"\nNo tokenizer for {name} here ({first_line(error)}): prompts are shown as messages, without token "
            "counts.",
            markup=False,
        )
        return None


def _render(tokenizer: Any, prompt: Prompt, template_kwargs: dict[str, Any]) -> tuple[str, str]:
    if tokenizer is None:
        return prompt_text(prompt), "tokens: unknown"
    if isinstance(prompt, str):
        return prompt, f"{len(tokenizer(prompt)['input_ids'])} tokens"
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True, **template_kwargs)
    return text, f"{len(tokenizer(text, add_special_tokens=False)['input_ids'])} tokens"


def _show_verdicts(task: Task, console: Console) -> int:
    console.rule(f"verdicts of {task.name} on canned answers")
    emit = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    return 1 if show_graded(grade_canned(task), emit) else 0
