"""Sampling inside the trainer against the plain generate call."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from transformers import GenerationConfig

from benchmarks.cases.recipe import make_trainer
from benchmarks.context import Context
from benchmarks.results import Row, Table


def run(context: Context) -> Iterator[Table]:
    """Tokens per CPU second of the `reach` recipe's sampling, and of `generate` on the same prompts."""
    trainer = make_trainer("uniform", 1)
    model, tokenizer, limit = trainer.model, trainer.processing_class, trainer.args.max_completion_length
    rows = trainer.args.per_device_train_batch_size
    prompts = [trainer.train_dataset[i // trainer.num_generations]["prompt"] for i in range(rows)]
    inputs = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, tokenize=True, return_dict=True, padding=True, return_tensors="pt"
    ).to(trainer.accelerator.device)
    config = GenerationConfig(
        max_new_tokens=limit,
        do_sample=True,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )

    def in_trainer() -> int:
        return sum(len(ids) for ids in trainer._generate(prompts)[1])

    def plain() -> int:
        with torch.no_grad():
            out = model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]
        return int((out != tokenizer.pad_token_id).sum())

    rates: dict[str, list[float]] = {"generate": [], "in the trainer": []}
    for repetition in range(-1, 2 * context.repetitions):
        for name, sample in (("generate", plain), ("in the trainer", in_trainer)):
            start = context.clock.now()
            tokens = sample()
            if repetition >= 0:
                rates[name].append(tokens / (context.clock.now() - start))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    table = [Row(name, value=value) for name, value in middle.items()]
    ratio = [a / b for a, b in zip(rates["in the trainer"], rates["generate"], strict=True)]
    note = f"in the trainer / generate: {statistics.median(ratio):.3f} ({min(ratio):.3f} to {max(ratio):.3f})"
    yield Table("sampling", f"{rows} rollouts at once", "", table, value="tokens per second", notes=[note])
