"""Random models and trainers of a given shape, so that every candidate does the same work."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measure import Work

FIRST_WORD, EOS = 3, 2


@dataclass(frozen=True)
class ModelShape:
    """A Qwen3. `dtype` is that of the weights."""

    layers: int = 6
    hidden: int = 256
    intermediate: int = 768
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    vocabulary: int = 4096
    dtype: torch.dtype = torch.float32

    @property
    def body(self) -> int:
        """Parameters of the layers."""
        attention = self.head_dim * self.hidden * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    def make(self, device: torch.device) -> Any:
        """Random weights, the same every time."""
        from transformers import Qwen3Config, Qwen3ForCausalLM

        config = Qwen3Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=65536,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=EOS,
            tie_word_embeddings=self.layers > 6,  # as the small ones of the family are
        )
        torch.manual_seed(0)
        with device:
            return Qwen3ForCausalLM(config).to(self.dtype).eval()

    def forward_work(self, tokens: int, keys: float) -> Work:
        """Backbone forward of `tokens` that attend to `keys` others on average."""
        attention = 4.0 * self.layers * self.heads * self.head_dim * tokens * keys
        return Work(2.0 * self.body * tokens + attention)


@dataclass(frozen=True)
class Rollouts:
    """What is trained on: `groups` of `group` completions, the first `solved` of each group solved.

    Attributes:
        demonstration: tokens of it that the teacher sees; None: all.
    """

    prompt: int = 64
    completion: int = 256
    group: int = 8
    groups: int = 1
    solved: int = 4
    demonstration: int | None = None

    def __str__(self) -> str:
        shown = f", demonstration {self.demonstration}" if self.demonstration else ""
        return (
            f"prompt {self.prompt}, completion {self.completion}, {self.groups} x G = {self.group}, "
            f"{self.solved} solved{shown}"
        )


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


class Steps:
    """One training step of a trainer per call: rollouts, verdicts, credit, loss, backward, optimizer."""

    def __init__(self, trainer: Any) -> None:
        trainer.current_gradient_accumulation_steps = 1
        if trainer.args.gradient_checkpointing:  # `Trainer.train` would
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.trainer = trainer
        self.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1e-6)
        self.batches = self._batches()

    def _batches(self) -> Iterator[Any]:
        while True:
            yield from self.trainer.get_train_dataloader()

    def __call__(self) -> None:
        self.trainer.model.train()
        self.trainer.training_step(self.trainer.model, next(self.batches), None)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.trainer.state.global_step += 1


def make_steps(
    method: str,
    shape: ModelShape,
    rollouts: Rollouts,
    device: torch.device,
    *,
    sampled: bool = False,
    **settings: Any,
) -> Steps:
    """Steps of "grpo" (TRL's), "sc_grpo" (ours) or "sdpo" (TRL's, full logits) on given or on sampled rollouts."""
    from datasets import Dataset

    words = random.Random(0)
    prompt = " ".join(f"w{words.randrange(FIRST_WORD, shape.vocabulary)}" for _ in range(rollouts.prompt - 1))
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for _ in range(max(8, rollouts.groups))]
    trainer_class, config, options = _METHODS[method](rollouts)
    config = {
        "num_generations": rollouts.group,
        "per_device_train_batch_size": rollouts.group * rollouts.groups,
        "max_completion_length": rollouts.completion,
        "use_cpu": device.type == "cpu",
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        **config,
        **settings,
    }
    if sampled:  # to full length, so that everyone trains on as many tokens
        config["generation_kwargs"] = {"min_new_tokens": rollouts.completion}
    else:
        trainer_class = _given(trainer_class, rollouts, shape.vocabulary)

    def verifier(completions: list[Any], **_: Any) -> list[float]:
        return [float(row % rollouts.group < rollouts.solved) for row in range(len(completions))]

    trainer = trainer_class(
        shape.make(device),
        verifier,
        options.pop("args")(tempfile.mkdtemp(), **config),
        train_dataset=Dataset.from_list(rows),
        processing_class=word_tokenizer(shape.vocabulary),
        **options,
    )
    return Steps(trainer)


def _given(trainer_class: type, rollouts: Rollouts, vocabulary: int) -> type:
    """The trainer with rollouts of random words instead of its own."""

    def completion(batch: int, row: int) -> list[int]:
        words = random.Random(f"{batch}/{row}")
        return [*(words.randrange(FIRST_WORD, vocabulary) for _ in range(rollouts.completion - 1)), EOS]

    class Given(trainer_class):  # type: ignore[misc]
        batches = 0

        def _completions(self, count: int) -> list[list[int]]:
            self.batches += 1
            return [completion(self.batches, row) for row in range(count)]

        def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
            return self._completions(len(prompt_ids)), None

    if "SDPO" in trainer_class.__name__:
        Given._generate = lambda self, ids: (ids, self._completions(len(ids)))  # type: ignore[attr-defined]
    return Given


def _grpo(rollouts: Rollouts) -> tuple[type, dict[str, Any], dict[str, Any]]:
    from trl import GRPOConfig, GRPOTrainer

    return GRPOTrainer, {"loss_type": "grpo"}, {"args": GRPOConfig}


def _sc_grpo(rollouts: Rollouts) -> tuple[type, dict[str, Any], dict[str, Any]]:
    from scgrpo import SCGRPOConfig, SCGRPOTrainer

    def shown(prompt: Any, demonstration: str, *, verified: bool) -> Any:
        words = demonstration.split()[: rollouts.demonstration]
        while rollouts.demonstration and len(words) < rollouts.demonstration:
            words = (words * 2)[: rollouts.demonstration]
        return [{"role": "system", "content": " ".join(words)}, *prompt]

    return SCGRPOTrainer, {}, {"args": SCGRPOConfig, "teacher_prompt_fn": shown}


def _sdpo(rollouts: Rollouts) -> tuple[type, dict[str, Any], dict[str, Any]]:
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    settings = {
        "distillation_mode": "full_logits",
        "distillation_alpha": 0.0,
        "teacher_model_kind": "live",
        "success_reward_threshold": 0.5,
        "max_prompt_length": None,
        "reprompt_template": "{solution} {prompt}",
        "solution_template": "{successful_previous_attempt}",
    }
    return SDPOTrainer, settings, {"args": SDPOConfig}


_METHODS: dict[str, Callable[[Rollouts], tuple[type, dict[str, Any], dict[str, Any]]]] = {
    "grpo": _grpo,
    "sc_grpo": _sc_grpo,
    "sdpo": _sdpo,
}
