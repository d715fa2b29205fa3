"""Parts of the engine's tests: a tiny model, verl's worker on it without Ray, pairs, and what they should give."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import verl  # noqa: F401  (loads cpu_platform)
from tensordict import TensorDict
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from transformers import AttentionInterface, Qwen3Config, Qwen3ForCausalLM
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker

from scgrpo.divergence import Divergence
from scgrpo.integrations.verl import engine as _registers_itself  # noqa: F401
from scgrpo.integrations.verl.scoring import FIELDS, Pair, score_pairs

WORDS, WIDTH = 96, 14
FP32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}


# ---- a model, its worker, a group of workers ----


def save_model(folder: Path, *, tied: bool, words: int = WORDS) -> Path:
    """A random Qwen3 with sharp enough logits that contexts matter, and dropout that a pass must not apply."""
    path = folder / f"{'tied' if tied else 'untied'}-{words}"
    if distributed.get_rank() == 0 and not path.exists():
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=words,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            tie_word_embeddings=tied,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.3,
            attention_dropout=0.2,
        )
        Qwen3ForCausalLM(config).save_pretrained(path)
    distributed.barrier()
    return path


def plain_model(path: Path) -> Any:
    return Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def make_worker(
    path: Path, *, engine: dict[str, Any] | None = None, attention: str = "sdpa", **model: Any
) -> TrainingWorker:
    """verl's own worker, as its trainer's actor makes it."""
    settings = {"strategy": "fsdp2", "mixed_precision": FP32, "use_torch_compile": False, **(engine or {})}
    config = TrainingWorkerConfig(
        model_type="language_model",
        model_config=HFModelConfig(
            path=str(path), load_tokenizer=False, override_config={"attn_implementation": attention}, **model
        ),
        engine_config=FSDPEngineConfig(**settings),
        optimizer_config=FSDPOptimizerConfig(lr=1e-2, total_training_steps=4),
        checkpoint_config=CheckpointConfig(),
    )
    worker = TrainingWorker(config)
    worker.reset()
    return worker


class Group:
    """verl's group of workers as `score_pairs` sees it. Every process plays the driver, with the same batch."""

    def __init__(self, worker: TrainingWorker) -> None:
        self.worker = worker
        self.batches: list[TensorDict] = []

    def _query_dispatch_info(self, mesh: str) -> list[int]:
        assert mesh == "actor"
        return everywhere(self.worker.engine.get_data_parallel_rank())

    def compute_log_prob(self, data: TensorDict) -> TensorDict:
        self.batches.append(data)
        mapping = self._query_dispatch_info("actor")
        answer = self.worker.infer_batch(tu.chunk_tensordict(data, max(mapping) + 1)[mapping[distributed.get_rank()]])
        found = {} if answer is None else {k: list(v.unbind()) for k, v in answer.items() if k != "metrics"}
        parts = [part for part in everywhere(found) if part]
        rows = {name: [row for part in parts for row in part[name]] for name in parts[0]}
        jagged = {name: torch.nested.as_nested_tensor(row, layout=torch.jagged) for name, row in rows.items()}
        return TensorDict(jagged, batch_size=len(data))


def everywhere(value: Any) -> list[Any]:
    out = [None] * distributed.get_world_size()
    distributed.all_gather_object(out, value)
    return out


# ---- pairs, and what they should give ----


def make_pairs(count: int = 7, words: int = WORDS, longest: int = WIDTH) -> list[Pair]:
    """Completions with holes (tool tokens), in the first one also at its end; the third has no demonstration."""
    rng = random.Random(0)

    def ids(fewest: int, most: int) -> list[int]:
        return [rng.randrange(3, words) for _ in range(rng.randint(fewest, most))]

    pairs = []
    for number in range(count):
        student, completion = ids(1, 8), ids(longest // 2, longest)
        mask = [True, False, *(rng.random() < 0.8 for _ in completion[2:])]
        mask[-1] = number != 0
        pairs.append(Pair(student, student if number == 2 else ids(5, 25), completion, mask))
    return pairs


def plain(model: Any, pairs: list[Pair], temperature: float = 1.0, reverse: bool = False) -> Tensor:
    """By the model's own forward and log_softmax, one sequence at a time."""
    out = torch.zeros(len(FIELDS), len(pairs), max(len(pair.mask) for pair in pairs))
    for row, pair in enumerate(pairs):
        logps = []
        for prompt in (pair.student_ids, pair.teacher_ids):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prompt, *pair.completion_ids]])).logits[0]
            logps.append((logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1))
        p, q = logps
        for t, token in enumerate(pair.completion_ids):
            if pair.mask[t]:
                kl = (p[t].exp() * (p[t] - q[t])).sum() if reverse else (q[t].exp() * (q[t] - p[t])).sum()
                out[:, row, t] = torch.stack([kl, q[t, token], p[t, token], -(p[t].exp() * p[t]).sum()])
    return out


def score(group: Group, pairs: list[Pair], **options: Any) -> Tensor:
    """(4, P, T) evidence; by default two or three pairs fit into a forward."""
    settings = {"temperature": 1.0, "divergence": Divergence(), **options}
    if "micro_batch_size_per_gpu" not in settings:
        settings.setdefault("max_token_len_per_gpu", 120)
    evidence = score_pairs(group, pairs, max(len(pair.mask) for pair in pairs), **settings)
    return torch.stack([getattr(evidence, name) for name in FIELDS])


# ---- attention over a packed row that several processes share ----


def _packed_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: None, length: int, *, position_ids: Tensor, **others: Any
) -> Tensor:
    """Flash attention's part on a CPU: causal within each sequence of a packed row, (1, S, heads, d)."""
    sequence = (position_ids[0] == 0).cumsum(0)
    visible = (sequence[:, None] == sequence) & torch.ones(length, length, dtype=torch.bool).tril()
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    scale = others["softmax_scale"]
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


def register_packed_attention() -> str:
    """Under this name verl's own exchange over the sequence-parallel group runs, with `_packed_attention` inside."""
    from transformers.integrations.flash_attention import flash_attention_forward
    from verl.models.transformers import monkey_patch

    monkey_patch._flash_attention_forward = _packed_attention
    AttentionInterface.register("packed_on_cpu", flash_attention_forward)
    return "packed_on_cpu"


# ---- the state of a model ----


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict()
    return {name: (x.full_tensor() if isinstance(x, DTensor) else x).clone() for name, x in state.items()}


def modes(module: nn.Module) -> dict[str, Any]:
    """What a pass must leave as it was."""
    return {
        "training": sorted(name for name, part in module.named_modules() if part.training),
        "forward": sorted(name for name, part in module.named_modules() if "forward" in vars(part)),
        "sharded": sorted(name for name, x in module.named_parameters() if isinstance(x, DTensor)),
        "gradients": sorted(name for name, x in module.named_parameters() if x.grad is not None),
    }
