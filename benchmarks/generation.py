"""Tokens per CPU second of sampling inside the trainer against the plain `generate` call, as a ratio."""

from __future__ import annotations

import argparse
import statistics
import time

import _common
import torch
from transformers import GenerationConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=9)
    args = parser.parse_args()
    trainer = _common.make_trainer("uniform", 1)
    model, tokenizer, limit = trainer.model, trainer.processing_class, trainer.args.max_completion_length
    rows = trainer.args.per_device_train_batch_size
    prompts = [trainer.train_dataset[i // trainer.num_generations]["prompt"] for i in range(rows)]
    inputs = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, tokenize=True, return_dict=True, padding=True, return_tensors="pt"
    )
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

    rates: dict[str, list[float]] = {"trainer": [], "plain": []}
    for repetition in range(args.repetitions + 1):
        for name, sample in (("trainer", in_trainer), ("plain", plain)):
            start = time.process_time()
            tokens = sample()
            if repetition:  # the first is warm-up
                rates[name].append(tokens / (time.process_time() - start))
    for name, values in rates.items():
        print(f"{name:8s} {statistics.median(values):8.0f} tokens per CPU second ({rows} rollouts at once)")
    ratios = [a / b for a, b in zip(rates["trainer"], rates["plain"], strict=True)]
    print(f"trainer / plain: {_common.summary(ratios)}")


if __name__ == "__main__":
    main()
