"""Shared fixtures. Core functions run under jaxtyping + beartype here: a wrong shape fails the test."""

from __future__ import annotations

import os

# Before torch is imported: idle OpenMP threads that spin make a busy two-core machine an order slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from jaxtyping import install_import_hook

install_import_hook(["scgrpo.credit", "scgrpo.divergence", "scgrpo.teacher"], "beartype.beartype")

import signal
import string
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)

# A shell starts background jobs with SIGINT ignored, and their children would inherit that: nothing could be
# interrupted in the tests of Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

WORDS = [*string.ascii_lowercase, *(str(n) for n in range(10)), "verified", "attempt", "solve"]
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<system>", "<user>", "<assistant>"]
CHAT_TEMPLATE = (
    "<bos>{% for m in messages %}{% if m['role'] in ('system', 'user', 'assistant') %} <{{ m['role'] }}> "
    "{% else %} <user> {% endif %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %} <assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real data that is not part of the project; tests that need it skip without it."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("the shared/ data folder is not beside this checkout")
    return path


def build_tokenizer() -> Any:
    """One token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return build_tokenizer()


def build_model(tokenizer: Any, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """A random Qwen3 with sharp enough logits that contexts matter."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.3,
    }
    model = Qwen3ForCausalLM(Qwen3Config(**{**settings, **overrides})).to(dtype)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 2
    return model


@pytest.fixture(scope="session")
def make_model(tokenizer: Any) -> Callable[..., Any]:
    return partial(build_model, tokenizer)


@pytest.fixture
def run_trainer(tokenizer: Any, make_model: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Train on the small model; returns the trainer, what it did, and its model."""
    from trl_harness import make_trainer

    count = 0

    def run(model: Any = None, **options: Any) -> tuple[Any, Any, Any]:
        nonlocal count
        count += 1
        torch.manual_seed(0)
        model = model if model is not None else make_model()
        if options.get("beta"):  # TRL loads the reference model from where the policy came from
            model.save_pretrained(tmp_path / "reference")
            model.config._name_or_path = str(tmp_path / "reference")
        trainer, seen = make_trainer(tmp_path / str(count), model, tokenizer, **options)
        trainer.train()
        return trainer, seen, model

    return run
