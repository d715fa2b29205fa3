"""Pass rates of a model on a small task: alone, with a correct demonstration, with a wrong one, with an attempt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from scgrpo.evaluation.conversation import Chat
from scgrpo.evaluation.episodes import play
from scgrpo.tasks.base import Row
from scgrpo.tasks.environment import EnvironmentTask, Episode
from scgrpo.tasks.procedural import ProceduralTask
from scgrpo.tiny.documents import conditioned
from scgrpo.tiny.vocabulary import prompt_text

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class PassRates:
    """Share of correct completions at temperature 1 on held-out problems (fractions of `num_samples` each).

    Attributes:
        plain: the problem alone.
        verified: with a correct solution of the same problem as a verified demonstration.
        wrong: with a correct solution of another problem, presented as verified.
        attempt: with an aimless attempt, presented as unverified.
    """

    plain: float
    verified: float
    wrong: float
    attempt: float
    num_samples: int


def measure(model: Any, tokenizer: Any, task: ProceduralTask, *, num_samples: int = 4, seed: int = 0) -> PassRates:
    """All four rates on `task.rows("eval")`, `num_samples` completions per problem and condition."""
    rows = [row for row in task.rows("eval") for _ in range(num_samples)]
    rng = random.Random(seed)
    others = [_other(task.rows("eval"), row, rng) for row in rows]
    prompts: dict[str, list[Messages]] = {
        "plain": [row["prompt"] for row in rows],
        "verified": [conditioned(row, "verified", task.demonstration(row, rng)) for row in rows],
        "wrong": [
            conditioned(row, "verified", task.demonstration(other, rng))
            for row, other in zip(rows, others, strict=True)
        ],
        "attempt": [conditioned(row, "attempt", task.attempt(row, rng)) for row in rows],
    }
    rates = {}
    for name, messages in prompts.items():
        if isinstance(task, EnvironmentTask):
            episodes = converse(model, tokenizer, task, rows, messages, task.max_completion_length, seed=seed)
            verdicts = [episode.verdict for episode in episodes]
        else:
            completions = sample(model, tokenizer, messages, task.max_completion_length, seed=seed)
            verdicts = task.verify(completions, rows)
        rates[name] = sum(verdict.score for verdict in verdicts) / len(verdicts)
    return PassRates(**rates, num_samples=len(rows))


def sample(model: Any, tokenizer: Any, prompts: list[Messages], max_new_tokens: int, *, seed: int = 0) -> list[str]:
    """One completion per prompt at temperature 1, as text; the global random state is left as it was."""
    ids = sample_ids(model, tokenizer, prompts, max_new_tokens, seed=seed)
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def sample_ids(
    model: Any, tokenizer: Any, prompts: list[Messages], max_new_tokens: int, *, seed: int = 0
) -> list[list[int]]:
    """The same as token ids, up to and with the end token."""
    import torch

    batch = tokenizer([prompt_text(messages) for messages in prompts], padding=True, return_tensors="pt")
    batch = batch.to(model.device)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=_at_temperature_one(tokenizer, max_new_tokens),
        )
    rows = output[:, batch["input_ids"].shape[1] :].tolist()
    ends = (ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids) for ids in rows)
    return [ids[:end] for ids, end in zip(rows, ends, strict=True)]


def converse(
    model: Any,
    tokenizer: Any,
    task: EnvironmentTask,
    rows: Sequence[Row],
    prompts: list[Messages],
    max_tokens: int,
    *,
    seed: int = 0,
) -> list[Episode]:
    """One conversation per prompt at temperature 1, in the environments of the rows; else as `sample`."""
    import torch

    from scgrpo.evaluation.turns import Turns

    chat = Chat(tokenizer, {tokenizer.eos_token_id})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        new_sampler = partial(Turns, model, _at_temperature_one(tokenizer, max_tokens))
        return play(task, rows, prompts, chat, new_sampler, max_tokens)[1]


def _at_temperature_one(tokenizer: Any, max_new_tokens: int) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _other(rows: list[Row], row: Row, rng: random.Random) -> Row:
    """Another problem's row."""
    while True:
        other = rng.choice(rows)
        if other["problem_id"] != row["problem_id"]:
            return other
