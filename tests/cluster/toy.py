"""The toy task of these tests: a small random Qwen3, one token per word, right about half of the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPECIAL = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>"]
LETTERS = "abcdefgh"
WORDS = ["\n", "system", "user", "assistant", *LETTERS]  # few, so that most answers of 24 tokens end
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REWARD = '''"""Right if the answer begins with an even character: about half of the random answers do.

A test may make it fail: `TOY_REWARD_FAILS=n:m` raises from the n-th call to before the m-th.
"""

import itertools
import os

calls = itertools.count()
first, _, last = os.environ.get("TOY_REWARD_FAILS", "").partition(":")


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **ignored):
    if first and int(first) <= next(calls) < int(last):
        raise ValueError("the toy judge fell over")
    return float(solution_str != "" and ord(solution_str[0]) % 2 == 0)
'''


@dataclass(frozen=True)
class Inputs:
    """What a run reads."""

    model: Path  # folder, tokenizer included
    train: Path
    val: Path
    reward: Path


def build_tokenizer() -> Any:
    """Words and newlines, in Qwen's chat format (verl treats the model type qwen3 so)."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: Any, seed: int = 2) -> Any:
    """Logits sharp enough that contexts matter."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,  # Ulysses splits heads over two workers
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    model = Qwen3ForCausalLM(config).to(torch.float32)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def prompts(count: int = 16) -> list[str]:
    return [f"{LETTERS[i % 8]} {LETTERS[(3 * i + i // 8) % 8]}" for i in range(count)]


def make_inputs(folder: Path, questions: Sequence[str] = (), reward: str = REWARD) -> Inputs:
    """Write the model, the tokenizer, one row per question, and the reward function."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    inputs = Inputs(folder / "model", folder / "train.parquet", folder / "val.parquet", folder / "reward.py")
    tokenizer = build_tokenizer()
    build_model(tokenizer).save_pretrained(inputs.model)
    tokenizer.save_pretrained(inputs.model)
    rows = [
        {
            "data_source": "toy",
            "prompt": [{"role": "system", "content": "a b"}, {"role": "user", "content": question}],
            "ability": "toy",
            "reward_model": {"style": "rule", "ground_truth": "even"},
            "extra_info": {"index": index},
        }
        for index, question in enumerate(questions or prompts())
    ]
    pq.write_table(pa.Table.from_pylist(rows), inputs.train)
    pq.write_table(pa.Table.from_pylist(rows[:4]), inputs.val)
    inputs.reward.write_text(reward)
    return inputs


def shout(messages: list[dict[str, Any]], demonstration: str, verified: bool) -> list[dict[str, Any]]:
    """A teacher's prompt of one's own."""
    return [*messages, {"role": "user", "content": demonstration}]
