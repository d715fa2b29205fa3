"""Pre-training of the tiny model: a Qwen3 causal LM, from scratch, on the documents of `documents.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from scgrpo.tiny.documents import Document, Documents
from scgrpo.tiny.vocabulary import BOS, CONTEXT_LENGTH, EOS, PAD, WORD_IDS, encode, prompt_text

BATCH_SIZE = 64
# Muon for the matrices inside the blocks, AdamW for the embedding and the norms.
MATRIX_LR = 0.02
VECTOR_LR = 5e-3
WARMUP_STEPS = 50
FINAL_LR_FRAC = 0.03
# The first part of the documents is skilled, the rest careless (see documents.py).
SCHOOLING_FRAC = 0.65
_IGNORED = -100


def make_model() -> Any:
    """A random `Qwen3ForCausalLM` of the shipped shape."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(WORD_IDS),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=CONTEXT_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=True,
        # The library's 0.02 suits widths of a thousand and more.
        initializer_range=0.08,
        pad_token_id=WORD_IDS[PAD],
        bos_token_id=WORD_IDS[BOS],
        eos_token_id=WORD_IDS[EOS],
    )
    return Qwen3ForCausalLM(config)


def train(model: Any, *, steps: int, seed: int, progress: Callable[[str], None]) -> None:
    """Train in place: cross-entropy on completion tokens, learning rates with warm-up and cosine decay."""
    import torch

    matrices: list[Any] = []
    vectors: list[Any] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else vectors).append(parameter)
    optimizers = [
        torch.optim.Muon(matrices, lr=MATRIX_LR, weight_decay=0.01),
        torch.optim.AdamW(vectors, lr=VECTOR_LR, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_frac(step, steps)) for optimizer in optimizers
    ]
    documents = Documents(seed)
    running_loss = 0.0
    report_every = max(1, steps // 20)
    model.train()
    for step in range(1, steps + 1):
        input_ids, labels = tensors(documents.batch(BATCH_SIZE, schooling=step <= SCHOOLING_FRAC * steps))
        loss = model(input_ids=input_ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        running_loss += loss.item()
        if step % report_every == 0:
            progress(f"step {step}/{steps}: loss {running_loss / report_every:.3f} nats per completion token")
            running_loss = 0.0
    model.eval()


def lr_frac(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step (0-based)."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return min(1.0, (step + 1) / WARMUP_STEPS) * (FINAL_LR_FRAC + (1 - FINAL_LR_FRAC) * cosine)


def tensors(documents: list[Document]) -> tuple[Any, Any]:
    """Input ids and labels, both (documents, tokens), padded on the right; only completion and `<eos>` are labels.

    No attention mask is needed: under a causal mask nothing looks at the padding behind it.
    """
    import torch

    examples = [(encode(prompt_text(document.messages)), encode(document.completion)) for document in documents]
    width = max(len(prompt) + len(completion) + 1 for prompt, completion in examples)
    input_ids = torch.full((len(examples), width), WORD_IDS[PAD])
    labels = torch.full((len(examples), width), _IGNORED)
    for row, (prompt, completion) in enumerate(examples):
        target = torch.tensor([*completion, WORD_IDS[EOS]])
        start, end = len(prompt), len(prompt) + len(target)
        input_ids[row, :start] = torch.tensor(prompt)
        input_ids[row, start:end] = target
        labels[row, start:end] = target
    return input_ids, labels
