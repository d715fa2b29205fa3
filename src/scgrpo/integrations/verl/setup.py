"""What the trainer needs of verl's configuration and of the model, put together before any worker starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, cast

from transformers import AutoConfig
from verl.utils.fs import copy_to_local
from verl.utils.model import get_generation_config
from verl.utils.tokenizer.chat_template import apply_chat_template

from scgrpo.errors import ConfigError
from scgrpo.integrations.verl.prompts import TeacherPrompts
from scgrpo.integrations.verl.settings import VerlSettings
from scgrpo.teacher.prompts import DemonstrationFormatter, Messages, control_tokens, get_template, teacher_prompt


def check_model(config: Any, settings: VerlSettings, processor: Any) -> None:
    """Raise ConfigError, with all problems at once, unless credit per token can work with this model."""
    if settings.credit == "uniform":
        return
    problems = []
    if processor is not None:
        problems.append("Models with images are not supported: their prompts cannot be re-rendered as text.")
    rollout, model = config.actor_rollout_ref.rollout, config.actor_rollout_ref.model
    changed = (model.get("override_config") or {}).get("max_position_embeddings")
    limit = changed or getattr(_hf_config(model).get_text_config(), "max_position_embeddings", None)
    shown = settings.demonstration_max_tokens or rollout.response_length
    longest = rollout.prompt_length + shown + rollout.response_length
    if limit and longest > limit:
        problems.append(
            f"A prompt ({rollout.prompt_length} tokens), a demonstration ({shown}) and a completion "
            f"({rollout.response_length}) exceed the model's {limit} positions: set "
            "trainer.v1.scgrpo.demonstration_max_tokens."
        )
    if problems:
        raise ConfigError("This set-up cannot work:", " | ".join(problems))


def eos_token_ids(config: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a completion: the tokenizer's, and those of the model's generation config."""
    model = config.actor_rollout_ref.model
    return frozenset({tokenizer.eos_token_id, *_ends(model.path, model.get("trust_remote_code", False))} - {None})


@cache
def _ends(path: str, trust_remote_code: bool) -> tuple[int, ...]:
    known = get_generation_config(copy_to_local(path), trust_remote_code=trust_remote_code)
    ends = getattr(known, "eos_token_id", None)
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)


def teacher_prompts(config: Any, settings: VerlSettings, tokenizer: Any) -> TeacherPrompts:
    """What makes the teacher's prompts, rendered as verl renders the policy's."""
    template = get_template(settings.teacher_template)
    arguments: Mapping[str, Any] = dict(config.data.get("apply_chat_template_kwargs") or {})

    def render(messages: Messages, tools: list[dict[str, Any]] | None) -> list[int]:
        return list(apply_chat_template(tokenizer, messages, tools=tools, **arguments))

    return TeacherPrompts(
        render=render,
        decode=partial(tokenizer.decode, skip_special_tokens=True),
        format=DemonstrationFormatter(
            encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
            decode=tokenizer.decode,
            max_tokens=settings.demonstration_max_tokens or config.actor_rollout_ref.rollout.response_length,
            special_tokens=control_tokens(tokenizer),
            turns=template.turns,
        ),
        compose=settings.prompt_function()
        or cast(Callable[..., Messages], partial(teacher_prompt, template=template)),
        tools=_tool_schemas(config),
    )


def updates_per_batch(config: Any) -> int:
    """Optimizer steps that verl makes of one batch."""
    actor = config.actor_rollout_ref.actor
    return math.ceil(config.data.train_batch_size / actor.ppo_mini_batch_size) * int(actor.get("ppo_epochs") or 1)


def _hf_config(model: Any) -> Any:
    """The model's configuration, from where verl reads it."""
    path = copy_to_local(model.get("hf_config_path") or model.path)
    return AutoConfig.from_pretrained(path, trust_remote_code=model.get("trust_remote_code", False))


def _tool_schemas(config: Any) -> list[dict[str, Any]] | None:
    """Of the tools that verl's agent loops show, if there are any."""
    turns = config.actor_rollout_ref.rollout.multi_turn
    paths = [turns.get("tool_config_path"), turns.get("function_tool_path")]
    if not any(paths):
        return None
    from verl.tools.tool_registry import load_all_tools  # it pulls in every tool
    from verl.utils.import_utils import resolve_config_path

    names = ("tool_config_path", "function_tool_path")
    given = {name: resolve_config_path(path) if path else None for name, path in zip(names, paths, strict=True)}
    tools = load_all_tools(**given)
    return [tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True) for tool in tools]
