"""Small trainers with controlled rollouts, for tests in this process and in processes of their own."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

FIRST_WORD = 7  # ids below are special tokens
SOLVED, FAILED, EOS = FIRST_WORD, FIRST_WORD + 1, 2  # "a", "b", "<eos>"


def starts_with_a(completions: list[Any], **_: Any) -> list[float]:
    """The verifier: a completion whose first word is "a" is solved."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(text.split(" ")[0] == "a") for text in texts]


def canned(pattern: str, *, seed: int = 0, longest: int = 7) -> Callable[[int, int], list[int]]:
    """(generation batch, row) -> completion ids: S solved, F failed, s and f the same but cut off.

    The pattern is repeated over the rows of every generation batch; lengths and words are drawn by seed.
    """

    def completion(batch: int, row: int) -> list[int]:
        letter = pattern[row % len(pattern)]
        rng = random.Random(f"{seed}/{batch}/{row}")
        words = [rng.randrange(FIRST_WORD, FIRST_WORD + 30) for _ in range(rng.randint(0, longest - 2))]
        end = [] if letter.islower() else [EOS]
        return [SOLVED if letter in "Ss" else FAILED, *words, *end]

    return completion


def prompt_rows(count: int, *, conversational: bool = True) -> list[dict[str, Any]]:
    """Prompts of different lengths."""
    texts = [" ".join("abcdefghij"[: 1 + n % 6]) + f" solve {n % 10}" for n in range(count)]
    prompts = [[{"role": "user", "content": text}] if conversational else text for text in texts]
    return [{"prompt": prompt, "number": number} for number, prompt in enumerate(prompts)]


SETTINGS: dict[str, Any] = {
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "max_completion_length": 8,
    "max_steps": 3,
    "learning_rate": 0.05,
    "optim": "sgd",
    "loss_type": "grpo",
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "seed": 0,
}


@dataclass
class Seen:
    """What a trainer did: inputs and value of every loss, every scored batch, the rewards' advantages."""

    inputs: list[dict[str, Any]] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)
    scored: list[Any] = field(default_factory=list)


def make_trainer(
    out: Path,
    model: Any,
    tokenizer: Any,
    *,
    credit: str | None = "sc_grpo",
    completions: Callable[[int, int], list[int]] | None = None,
    reward_funcs: Any = starts_with_a,
    rows: list[dict[str, Any]] | None = None,
    trainer_options: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[Any, Seen]:
    """A trainer on the small model, and a record of what it will do.

    `credit=None`: TRL's own GRPOTrainer. With a `method`, its loss type is used.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from scgrpo import SCGRPOConfig, SCGRPOTrainer

    base, config = (GRPOTrainer, GRPOConfig) if credit is None else (SCGRPOTrainer, SCGRPOConfig)
    given = {**SETTINGS, **settings}
    if "method" in settings and "loss_type" not in settings:
        del given["loss_type"]
    if credit not in (None, "of the method"):
        given["credit"] = credit
    seen, rows = Seen(), rows or prompt_rows(8)

    class Recorded(base):  # type: ignore[misc, valid-type]
        batches = 0

        def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
            if completions is None or not self.model.training:
                return super()._generate_single_turn(prompt_ids, *args, **kwargs)
            first = self.accelerator.process_index * len(prompt_ids)
            ids = [completions(self.batches, first + row) for row in range(len(prompt_ids))]
            self.batches += 1
            return ids, None

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
            loss = super()._compute_loss(model, inputs)
            if self.model.training:
                kept = {name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
                seen.inputs.append(kept)
                seen.losses.append(loss.detach().clone())
            return loss

    trainer = Recorded(
        model,
        reward_funcs,
        config(str(out), **given),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        **(trainer_options or {}),
    )
    trainer.remove_callback(PrinterCallback)
    if credit is not None:
        trainer.listeners.append(seen.scored.append)
    return trainer, seen


def parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}
