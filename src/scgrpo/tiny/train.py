"""Pre-training: a small Qwen3 causal LM, from scratch, on the documents of `documents.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from scgrpo.tiny.documents import Document, Documents
from scgrpo.tiny.recipe import Recipe
from scgrpo.tiny.vocabulary import BOS, EOS, PAD, Vocabulary, completion_words, prompt_text

BATCH_SIZE = 64
# Muon for the matrices inside the blocks at any width; AdamW for the embedding and the norms, at a width of 64.
MATRIX_LR = 0.02
VECTOR_LR = 5e-3
WARMUP_STEPS = 50
FINAL_LR_FRAC = 0.03
_IGNORED = -100


def make_model(recipe: Recipe) -> Any:
    """A freshly initialised model of the recipe's shape (random state: torch's global one)."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape, ids = recipe.shape, recipe.vocabulary.ids
    config = Qwen3Config(
        vocab_size=len(ids),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_attention_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context_length,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=True,
        # The library's 0.02 suits widths of a thousand and more; this is 0.08 at 64.
        initializer_range=0.64 / math.sqrt(shape.hidden_size),
        pad_token_id=ids[PAD],
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
    )
    return Qwen3ForCausalLM(config)


def train(model: Any, recipe: Recipe, *, seed: int, progress: Callable[[str], None]) -> None:
    """Train in place: cross-entropy on completion tokens, learning rates with warm-up and cosine decay."""
    import torch

    steps = recipe.steps
    matrices: list[Any] = []
    vectors: list[Any] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else vectors).append(parameter)
    optimizers = [
        torch.optim.Muon(matrices, lr=MATRIX_LR, weight_decay=0.01),
        torch.optim.AdamW(
            vectors, lr=VECTOR_LR * math.sqrt(64 / recipe.shape.hidden_size), betas=(0.9, 0.98), weight_decay=0.0
        ),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_frac(step, steps)) for optimizer in optimizers
    ]
    documents = Documents(recipe, seed)
    running_loss = 0.0
    report_every = max(1, steps // 20)
    model.train()
    for step in range(1, steps + 1):
        input_ids, labels = tensors(
            documents.batch(BATCH_SIZE, schooling=step <= recipe.schooling_frac * steps),
            recipe.vocabulary,
        )
        loss = model(input_ids=input_ids.to(model.device), labels=labels.to(model.device), use_cache=False).loss
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


def tensors(documents: list[Document], vocabulary: Vocabulary) -> tuple[Any, Any]:
    """Input ids and labels, both (documents, tokens), padded on the right; only what the model writes is a label.

    No attention mask is needed: under a causal mask nothing looks at the padding behind it.
    """
    import torch

    ids = vocabulary.ids
    examples = [
        (vocabulary.encode(prompt_text(document.messages)), completion_words(document.completion))
        for document in documents
    ]
    width = max(len(prompt) + len(completion) for prompt, completion in examples)
    input_ids = torch.full((len(examples), width), ids[PAD])
    labels = torch.full((len(examples), width), _IGNORED)
    for row, (prompt, completion) in enumerate(examples):
        start, end = len(prompt), len(prompt) + len(completion)
        input_ids[row, :start] = torch.tensor(prompt)
        input_ids[row, start:end] = torch.tensor([ids[word] for word, _ in completion])
        labels[row, start:end] = torch.tensor([ids[word] if own else _IGNORED for word, own in completion])
    return input_ids, labels
