"""A tiny model that has been shown right answers of a task: it solves some of its training rows some of the time.

A random model solves nothing, so that training it shows little: no program runs, no demonstration is right, every
advantage is 0. This one is fine-tuned on solutions of the rows it will be trained on, and stops half way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scgrpo.errors import ConfigError
from scgrpo.tasks.base import Completion, Message, Task
from scgrpo.tiny.random_model import byte_tokenizer, random_model

# A vocabulary that knows the repeated parts of prompts and pages keeps sequences short.
_VOCAB_SIZE = 4000
_MAX_STEPS = 400
_WARMUP_STEPS = 20
_LEARNING_RATE = 3e-3
# Mean -log p of a whole solution, nats, at which it is stopped: some samples are right, some are not.
_ENOUGH = 1.0
_END = 1


class _Sequence(NamedTuple):
    """Token ids, and where the model's own tokens are."""

    ids: list[int]
    own: list[bool]


def write_sft_model(
    folder: Path, task: Task, rows: Sequence[Mapping[str, Any]], *, seed: int = 0, progress: Callable[[str], None]
) -> Path:
    """Fine-tune a random model on right answers to the rows; write the checkpoint and return its folder.

    Args:
        rows: each is shown with one answer that the task's verifier accepts; those without one are left out.

    Raises:
        ConfigError: there is no such answer to any row.
    """
    chats = [[*row["prompt"], *answer] for row in rows if (answer := right_answer(task, row)) is not None]
    if not chats:
        raise ConfigError(
            f"Task {task.name!r} has no right answers to its first {len(rows)} training rows.",
            "Take another model, for example `tiny-random`.",
        )
    texts = [message["content"] for chat in chats for message in chat]
    tokenizer = byte_tokenizer(texts, vocab_size=_VOCAB_SIZE)
    model = random_model(len(tokenizer), seed=seed, hidden_size=64, num_heads=4, max_positions=16384)
    progress(f"fine-tuning a tiny model on right answers to {len(chats)} of {len(rows)} training rows")
    _fit(model, [_sequence(tokenizer, chat) for chat in chats], progress)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def right_answer(task: Task, row: Mapping[str, Any]) -> list[Message] | None:
    """A conversation that solves a row, made of the task's own solution in a form that its verifier reads; None if
    there is none."""
    solution = getattr(task, "solution", None)
    if solution is None:
        return None
    known: Completion = solution(row, random.Random(f"solution/{row['problem_id']}"))
    forms: list[Completion] = [known]
    if isinstance(known, str):
        forms += [f"```python\n{known.strip()}\n```", f"\\boxed{{{row.get('answer')}}}"]
    for form, verdict in zip(forms, task.verify(forms, [row] * len(forms)), strict=True):
        if verdict.score >= task.success_threshold:  # not true of NaN, an answer without a verdict
            return [{"role": "assistant", "content": form}] if isinstance(form, str) else form
    return None


def _sequence(tokenizer: Any, chat: Sequence[Message]) -> _Sequence:
    """A conversation as the chat template writes it, turn by turn."""
    ids, own = list[int](), list[bool]()
    for message in chat:
        head = tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>")
        said = tokenizer(message["content"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids += [head, *said, _END]
        own += [False, *[message["role"] == "assistant"] * (len(said) + 1)]
    return _Sequence(ids, own)


def _fit(model: Any, sequences: Sequence[_Sequence], progress: Callable[[str], None]) -> None:
    """AdamW on the own tokens of all sequences, until their solutions are likely enough."""
    import torch
    from torch.nn import functional

    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _WARMUP_STEPS))
    num_own = sum(sum(sequence.own) for sequence in sequences)
    nats = float("inf")
    for step in range(1, _MAX_STEPS + 1):  # noqa: B007 (told below)
        total = 0.0
        for ids, own in sequences:  # one at a time: without padding, attention needs no mask
            tokens, targets = torch.tensor([ids]), torch.tensor(own[1:])
            hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[0, :-1][targets]
            loss = functional.cross_entropy(model.lm_head(hidden), tokens[0, 1:][targets], reduction="sum")
            (loss / num_own).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        nats = total / len(sequences)
        if nats < _ENOUGH:
            break
    progress(f"fine-tuned in {step} steps: {nats:.2f} nats for a solution")
