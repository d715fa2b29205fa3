"""The teacher's prompt: the student's prompt with a demonstration in the system message.

    teacher prompt = task's system prompt + guide + demonstration; the user turn is unchanged.

The completion is never touched: the host appends the student's very token ids. Wording is ours (arXiv 2606.18810
shows its code template only). An unverified demonstration (solve-none groups) gets a wording that claims nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scgrpo.errors import ConfigError

Messages = list[dict[str, Any]]
Prompt = str | Messages


@dataclass(frozen=True)
class TeacherTemplate:
    """Wording around a demonstration; both texts contain `{demonstration}` exactly once.

    Attributes:
        verified: used when a verifier accepted the demonstration.
        attempt: used when nothing is known to be correct; must not claim correctness.
        turns: what a transcript's turns start with, by role; `role: ` where nothing else is said.
    """

    verified: str
    attempt: str
    turns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("verified", "attempt"):
            if getattr(self, name).count("{demonstration}") != 1:
                raise ConfigError(
                    f"TeacherTemplate.{name} must contain {{demonstration}} exactly once.",
                    "Write the guide text around that one placeholder.",
                )

    def block(self, demonstration: str, *, verified: bool) -> str:
        """The text that goes into the system message. No other placeholder or brace is interpreted."""
        return (self.verified if verified else self.attempt).replace("{demonstration}", demonstration)


def _template(noun: str, how: str, **turns: str) -> TeacherTemplate:
    return TeacherTemplate(
        turns=turns,
        verified=(
            f"For this request you have a {noun} of your own that was checked and is correct. {how} "
            "Then work out the request yourself, in your own words.\n\n"
            f"[Checked {noun}]\n{{demonstration}}\n[End of the checked {noun}]"
        ),
        attempt=(
            f"For this request you have an earlier {noun} of your own. It has not been checked and may be right or "
            "wrong. Read it as one possible approach. Then work out the request yourself, in your own words.\n\n"
            f"[Earlier {noun}]\n{{demonstration}}\n[End of the earlier {noun}]"
        ),
    )


TEMPLATES: dict[str, TeacherTemplate] = {
    "generic": _template("answer", "Understand why it works."),
    "math": _template("solution", "Follow its reasoning and note the steps the result depends on."),
    "code": _template("program", "Understand its algorithm and how it handles the edge cases."),
    # Its observations come as user or tool messages: what was said by whom must not be mixed up with a request.
    "agent": _template(
        "trajectory",
        "[Action] marks your own turns, [Observation] and [Tool output] what came back. Note which actions made "
        "progress and what they relied on.",
        assistant="[Action]\n",
        user="[Observation]\n",
        tool="[Tool output]\n",
    ),
    # The form of the documents the embedded tiny model was trained on.
    "tiny": TeacherTemplate(verified="verified {demonstration}", attempt="attempt {demonstration}"),
}


def get_template(name: str) -> TeacherTemplate:
    """A template by name.

    Raises:
        ConfigError: unknown name; the known ones are listed.
    """
    if name not in TEMPLATES:
        raise ConfigError(f"Unknown teacher template {name!r}.", f"Choose one of {', '.join(TEMPLATES)}.")
    return TEMPLATES[name]


def teacher_prompt(prompt: Prompt, demonstration: str, template: TeacherTemplate, *, verified: bool) -> Prompt:
    """The teacher's prompt for one rollout.

    Conversational prompts: the block is appended to the system (or developer) message, or becomes one if there is
    none; all other turns stay as they are. Plain prompts: the block stands in front, separated by an empty line.
    """
    block = template.block(demonstration, verified=verified)
    if isinstance(prompt, str):
        return f"{block}\n\n{prompt}"
    if prompt and prompt[0].get("role") in ("system", "developer"):
        system = prompt[0]
        return [{**system, "content": _append_text(system["content"], block)}, *prompt[1:]]
    return [{"role": "system", "content": block}, *prompt]


def _append_text(content: Any, block: str) -> Any:
    if isinstance(content, list):  # content parts, as multimodal templates use
        return [*content, {"type": "text", "text": block}]
    return f"{content}\n\n{block}" if content else block


@dataclass(frozen=True)
class Demonstration:
    """A rollout made fit for the teacher's context.

    Attributes:
        text: what is inserted.
        truncated: the token budget cut its end off.
        thinking_dropped: a `<think>` part was removed.
    """

    text: str
    truncated: bool
    thinking_dropped: bool


def demonstration_counts(shown: Sequence[Demonstration]) -> dict[str, int]:
    """How many of the demonstrations shown were cut, lost a `<think>` part, or are empty."""
    return {
        "demonstration_truncated": sum(d.truncated for d in shown),
        "thinking_dropped": sum(d.thinking_dropped for d in shown),
        "demonstration_empty": sum(not d.text for d in shown),
    }


@dataclass(frozen=True)
class DemonstrationFormatter:
    """Turns completions into demonstrations.

    Attributes:
        encode, decode: the tokenizer's, without special tokens.
        max_tokens: budget; what exceeds it is cut from the right.
        special_tokens: texts that must not act as control tokens when a completion spells them out.
        turns: see `TeacherTemplate.turns`.
    """

    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    max_tokens: int
    special_tokens: tuple[str, ...] = ()
    turns: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, completion: str | Messages) -> Demonstration:
        completion, thinking_dropped = without_thinking(completion)
        text = transcript(completion, self.turns)
        for token in self.special_tokens:
            # A space inside is enough: the tokenizer then reads ordinary text. One character has no inside.
            text = text.replace(token, f"{token[:1]} {token[1:]}" if len(token) > 1 else "")
        ids = self.encode(text)
        truncated = len(ids) > self.max_tokens
        if truncated:
            text = self.decode(ids[: self.max_tokens])
        return Demonstration(text=text, truncated=truncated, thinking_dropped=thinking_dropped)


_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)|\A(?:(?!<think>).)*?</think>", re.DOTALL)


def drop_thinking(text: str) -> tuple[str, bool]:
    """Text without its `<think>` parts, and whether there were any.

    A part that is never closed reaches to the end (the rollout was cut off while thinking); one that is never
    opened reaches back to the start (the chat template had opened it).
    """
    kept = _THINKING.sub("", text)
    return (kept.strip(), True) if kept != text else (text, False)


def without_thinking(completion: str | Messages) -> tuple[str | Messages, bool]:
    """A completion without its `<think>` parts, and whether there were any: each assistant turn for itself, so that
    a part left open in one turn does not swallow the next."""
    if isinstance(completion, str):
        return drop_thinking(completion)
    kept, dropped = [], False
    for message in completion:
        if message.get("role", "assistant") == "assistant":
            text, had_any = drop_thinking(_content_text(message.get("content")))
            message, dropped = {**message, "content": text}, dropped or had_any
        kept.append(message)
    return kept, dropped


def transcript(completion: str | Messages, turns: Mapping[str, str] | None = None) -> str:
    """A completion as text: the string itself, one assistant message's content, or a transcript of several turns with
    their tool calls, each behind its role (or what `turns` says for it). Separate reasoning fields are left out, like
    `<think>` parts."""
    if isinstance(completion, str):
        return completion
    if len(completion) == 1 and not completion[0].get("tool_calls"):
        return _content_text(completion[0].get("content"))
    return "\n".join(_turn(message, turns or {}) for message in completion)


def _turn(message: Mapping[str, Any], turns: Mapping[str, str]) -> str:
    parts = [_content_text(message.get("content"))]
    for call in message.get("tool_calls") or []:
        function = call.get("function", call)
        parts.append(f"{function.get('name')}({function.get('arguments')})")
    role = message.get("role", "assistant")
    return turns.get(role, f"{role}: ") + "\n".join(part for part in parts if part)


def _content_text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content or ""


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Every text a tokenizer reads as a control token, those without a named role too (`<|eot_id|>`)."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True))
