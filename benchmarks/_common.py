"""Shared by the benchmarks: one thread, the tiny model, trainers on the `reach` recipe."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import statistics
import tempfile
import warnings
from typing import Any

import torch

torch.set_num_threads(1)
warnings.filterwarnings("ignore")


def make_trainer(credit: str, steps: int, seed: int = 0) -> Any:
    """An SCGRPOTrainer on the settings of the `reach` recipe."""
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback
    from transformers.utils import logging

    from scgrpo.cli.arguments import parse_train
    from scgrpo.cli.setup import resolve_model
    from scgrpo.integrations.trl import SCGRPOTrainer
    from scgrpo.tasks import get_task
    from scgrpo.tasks.reward import reward_function

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    out = tempfile.mkdtemp()
    flags = ["--credit", credit, "--max_steps", str(steps), "--seed", str(seed), "--output_dir", out]
    parsed = parse_train(["--config", "reach", *flags])
    task = get_task("reach")
    trainer = SCGRPOTrainer(
        resolve_model("tiny"),
        [reward_function(task)],
        parsed.trainer,
        train_dataset=Dataset.from_list(task.rows("train", 2000)),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def summary(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f}, n={len(values)})"


FIRST_WORD, EOS = 3, 2


def random_qwen3(vocabulary: int) -> Any:
    """A random Qwen3 of 6 layers and width 256."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    return Qwen3ForCausalLM(config).eval()


def word_tokenizer(vocabulary: int) -> Any:
    """One token per word w3, w4, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<bos>": 1, "<eos>": EOS, **{f"w{n}": n for n in range(FIRST_WORD, vocabulary)}}
    tokens = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, padding_side="left", **special)
    tokenizer.chat_template = "<bos>{% for m in messages %} {{ m['content'] }}{% endfor %}"
    return tokenizer


def given_rollouts_trainer(model: Any, vocabulary: int, completion: Any, **settings: Any) -> Any:
    """An SCGRPOTrainer whose rollouts are `completion(batch, row)`; those that begin with w3 are solved."""
    from datasets import Dataset
    from transformers import PrinterCallback

    from scgrpo import SCGRPOConfig, SCGRPOTrainer

    class Given(SCGRPOTrainer):
        batches = 0

        def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
            self.batches += 1
            return [completion(self.batches, row) for row in range(len(prompt_ids))], None

    def solved(completions: list[Any], **_: Any) -> list[float]:
        return [float(c[0]["content"].startswith(f"w{FIRST_WORD} ")) for c in completions]

    prompt = " ".join(f"w{n}" for n in range(10, 70))
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for _ in range(8)]
    arguments = SCGRPOConfig(
        tempfile.mkdtemp(),
        num_generations=8,
        per_device_train_batch_size=8,
        learning_rate=1e-5,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
        **settings,
    )
    tokenizer = word_tokenizer(vocabulary)
    trainer = Given(model, solved, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    return trainer
