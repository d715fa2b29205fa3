"""Demonstrations and teacher prompts from what verl keeps of a rollout: messages and token ids.

The teacher's prompt is the sampled one with its start exchanged: what the messages render to, for what they render to
with the demonstration. Whatever an agent loop put behind that start stays, token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from scgrpo.credit import NONE, Plan
from scgrpo.errors import ConfigError
from scgrpo.integrations.verl.batch import Output, Session
from scgrpo.integrations.verl.scoring import Pair
from scgrpo.teacher.prompts import Demonstration, DemonstrationFormatter, Messages

# In an output's extra fields, where the agent loop tells: the whole session as messages, and those that this output's
# own prompt was rendered from (without it, the dataset's).
TRANSCRIPT, PROMPT_MESSAGES = "transcript", "prompt_messages"


def completion_messages(session: Session, decode: Callable[[Sequence[int]], str]) -> Messages:
    """What the policy wrote and what came back, as messages: the transcript of the agent loop, or the responses cut
    where the policy's own tokens begin and end."""
    told = session.outputs[-1].extra.get(TRANSCRIPT)
    if told:
        return [dict(message) for message in told]
    messages = []
    for output in session.outputs:
        tokens = zip(output.response_ids, output.mask.tolist(), strict=True)
        for own, part in groupby(tokens, key=lambda token: token[1]):
            text = decode([token for token, _ in part])
            messages.append({"role": "assistant" if own else "tool", "content": text})
    return messages


@dataclass(frozen=True)
class TeacherPrompts:
    """Makes the teacher's prompts of a batch.

    Attributes:
        render: messages and tools -> token ids, as verl renders prompts.
        decode: token ids -> text, without special tokens.
        format: completion -> demonstration.
        compose: (messages, demonstration, verified=...) -> messages of the teacher's prompt.
        tools: schemas an agent loop may have shown; None where it shows none.
    """

    render: Callable[..., list[int]]
    decode: Callable[[Sequence[int]], str]
    format: DemonstrationFormatter
    compose: Callable[..., Messages]
    tools: list[dict[str, Any]] | None = None

    def demonstrations(
        self, plan: Plan, sessions: Sequence[Session], past: Sequence[Messages]
    ) -> dict[int, Demonstration]:
        """Those a plan needs, by row number; `past` has the numbers after those of the sessions."""
        needed = set(plan.demonstration.tolist()) | set([] if plan.contrast is None else plan.contrast.tolist())
        known = [*sessions, *past]
        return {
            row: self.format(
                completion_messages(session, self.decode) if isinstance(session := known[row], Session) else session
            )
            for row in sorted(needed - {NONE})
        }

    def pairs(
        self, plan: Plan, sessions: Sequence[Session], shown: Mapping[int, Demonstration]
    ) -> tuple[list[Pair], list[tuple[int, int]]]:
        """What to score for a plan, output by output, and where its tokens stand: pair of the plan, first token."""
        pairs, places = [], []
        made: dict[Any, list[int]] = {}  # rollouts of a group share prompts: each is rendered once

        def context(session: Session, output: Output, side: int, verified: bool) -> list[int]:
            if side == NONE:
                return output.prompt_ids
            kind = (side, verified, tuple(output.prompt_ids))
            if kind not in made:
                made[kind] = self(session, output, shown[side], verified=verified)
            return made[kind]

        contrast = [NONE] * len(plan) if plan.contrast is None else plan.contrast.tolist()
        sides = zip(plan.rollout.tolist(), plan.demonstration.tolist(), plan.verified.tolist(), contrast, strict=True)
        for number, (row, demonstration, verified, against) in enumerate(sides):
            session, first = sessions[row], 0
            for output in session.outputs:
                if bool(output.mask.any()):
                    student, teacher = (context(session, output, s, verified) for s in (against, demonstration))
                    pairs.append(Pair(student, teacher, output.response_ids, output.mask.tolist()))
                    places.append((number, first))
                first += len(output)
        return pairs, places

    def tools_shown(self, session: Session) -> list[list[dict[str, Any]] | None]:
        """What an agent loop may have shown of its tools: those its row selects, or all; or it has none."""
        if not self.tools:
            return [None]
        known = {tool["function"]["name"]: tool for tool in self.tools}
        selected = [known[name] for name in session.source.get("tool_selection") or () if name in known]
        return [*([selected] if selected else []), self.tools, None]

    def __call__(
        self, session: Session, output: Output, demonstration: Demonstration, *, verified: bool
    ) -> list[int]:
        """The prompt of an output of a session, with the demonstration.

        Raises:
            ConfigError: the sampled prompt does not begin as its messages render.
        """
        messages = output.extra.get(PROMPT_MESSAGES) or session.messages
        shown = self.compose(messages, demonstration.text, verified=verified)
        prompt = output.prompt_ids
        for tools in self.tools_shown(session):
            start = self.render(messages, tools)
            if prompt[: len(start)] == start:
                return self.render(shown, tools) + prompt[len(start) :]
        raise ConfigError(
            f"A prompt that was sampled from (group {session.uid}, {len(prompt)} tokens) does not begin as its "
            "messages render: it was cut off, or an agent loop built its own.",
            "Set data.filter_overlong_prompts=True and a data.max_prompt_length that holds every prompt. An agent "
            f"loop that builds prompts says from what: extra_fields[{PROMPT_MESSAGES!r}] of each output.",
        )
