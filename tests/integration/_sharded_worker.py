"""Run by test_sharded_heads.py under torchrun: `worker.py FOLDER`. Saves what this process found."""

from __future__ import annotations

import os
import random
import sys
from datetime import timedelta
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from conftest import build_model, build_tokenizer
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from scgrpo.credit import Evidence
from scgrpo.divergence import OutputHead, merge_vocab_shards, vocabulary_sums
from scgrpo.teacher.hidden import CompletionStates, Sharing
from scgrpo.teacher.models import backbone, output_head, through_wrapper
from scgrpo.teacher.scoring import ConditionedPass, Pairs

# First word of each of two shards, and the size of the vocabulary.
SPLITS = {"even": (0, 30, 60), "uneven": (0, 53, 60), "a shard of one word": (0, 1, 60)}
LAYOUTS = ("tied", "untied", "head of its own", "head of its own, with bias", "outputs in bf16")
# Completion lengths of each process's pairs; at MAX_TOKENS these are different numbers of batches.
SHARES = {"unequal": ([5, 1, 9, 3, 7], [4]), "one-sided": ([5, 1, 9, 3, 7], []), "other side": ([], [6, 2])}
MAX_TOKENS = 30


# ---- a vocabulary in two shards ----


def vocabulary_case() -> tuple[Tensor, Tensor, Tensor, OutputHead]:
    """Hidden states and a head with bias; every word is some token, so either shard owns some."""
    generator = torch.Generator().manual_seed(0)
    student, weight = (torch.randn(60, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    teacher = student + 0.5 * torch.randn(60, 8, generator=generator, dtype=torch.float64)
    bias = torch.linspace(-1, 1, 60, dtype=torch.float64)
    return student, teacher, torch.randperm(60, generator=generator), OutputHead(weight, bias, softcap=3.0)


def merged(rank: int) -> dict[str, Any]:
    """Evidence from the sums over this process's words and the other's."""
    student, teacher, tokens, head = vocabulary_case()
    found: dict[str, Any] = {}
    for (name, bounds), direction in product(SPLITS.items(), ("forward", "reverse")):
        first, stop = list(pairwise(bounds))[rank]
        mine = OutputHead(head.weight[first:stop], head.bias[first:stop], softcap=head.softcap)
        sums = vocabulary_sums(
            student, teacher, tokens, mine, direction=direction, first_word=first, words_per_tile=7
        )
        found[f"{name}-{direction}"] = vars(merge_vocab_shards(sums).evidence())
        found[f"{name}-{direction} of one shard"] = vars(sums.evidence())
    sums = vocabulary_sums(student, teacher, None, head, entropy=False)
    alone = distributed.new_group([0])  # a group of one: its shard is the vocabulary
    if rank == 0:
        found["group of one"] = vars(merge_vocab_shards(sums, alone).evidence())
    return found


# ---- a sharded model ----


def make_pairs(lengths: list[int], seed: int) -> Pairs:
    rng = random.Random(seed)
    width = 9
    ids = torch.tensor([[rng.randrange(7, 46) for _ in range(width)] for _ in lengths], dtype=torch.long).view(
        -1, width
    )
    length = torch.tensor(lengths, dtype=torch.long)
    prompts = [[[rng.randrange(7, 46) for _ in range(size)] for _ in lengths] for size in (4, 12)]
    return Pairs(prompts[0], prompts[1], ids, length, torch.arange(width) < length[:, None])


def make_model(layout: str) -> Any:
    model = build_model(build_tokenizer(), tie_word_embeddings=layout == "tied")
    if layout.endswith("bias"):
        weight = model.lm_head.weight.detach().clone()
        model.lm_head = nn.Linear(weight.shape[1], weight.shape[0])
        model.lm_head.weight.data = weight
        model.lm_head.bias.data = torch.linspace(-2, 2, len(weight))
    return model.train()


def shard(model: Any, layout: str) -> None:
    units = list(model.model.layers) + ([model.lm_head] if layout.startswith("head") else [])
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    # As accelerate does under bf16, but for the weights, whose rounding would be seen too.
    policy = MixedPrecisionPolicy(output_dtype=torch.bfloat16) if "bf16" in layout else MixedPrecisionPolicy()
    for unit in units:
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True, mp_policy=policy)


def agree(verdict: bool) -> bool:
    votes = torch.tensor(int(verdict))
    distributed.all_reduce(votes, op=distributed.ReduceOp.MIN)
    return bool(votes)


def most(mine: int) -> int:
    count = torch.tensor(mine)
    distributed.all_reduce(count, op=distributed.ReduceOp.MAX)
    return int(count)


def stacked(evidence: Evidence) -> Tensor:
    return torch.stack([getattr(evidence, name) for name in Evidence.__dataclass_fields__])


def gathered(model: Any) -> list[str]:
    return [name for name, value in model.named_parameters() if not isinstance(value, DTensor)]


def scored(layout: str, sharing: tuple[Sharing, ...], rank: int) -> dict[str, Any]:
    """Evidence of the model before it is sharded and after, and what is sharded when."""
    model, head_kinds = make_model(layout), []

    def head() -> OutputHead:
        head_kinds.append(type(model.get_output_embeddings().weight).__name__)
        return output_head(model, 0.9)

    found: dict[str, Any] = {"whole": {}, "sharded": {}, "batches": {}, "forwards": {}}
    pairs = {name: make_pairs(lengths[rank], seed=rank) for name, lengths in SHARES.items()}
    score = ConditionedPass(model, head, CompletionStates(model, sharing, agree), max_tokens=MAX_TOKENS)
    for name, share in pairs.items():
        number = most(len(list(score.batches(share))))
        found["whole"][name] = stacked(score(share, number))
    head_kinds.clear()

    shard(model, layout)
    calls: list[int] = []
    backbone(model).register_forward_hook(lambda *_: calls.append(1))
    found["gathered before"] = gathered(model)
    score = ConditionedPass(
        model,
        head,
        CompletionStates(model, sharing, agree),
        max_tokens=MAX_TOKENS,
        redirect=through_wrapper(model, model),
    )
    for name, share in pairs.items():
        calls.clear()
        found["batches"][name] = len(list(score.batches(share)))
        found["sharded"][name] = stacked(score(share, most(found["batches"][name])))
        found["forwards"][name] = len(calls)
    found["gathered after"] = gathered(model)
    found["head"] = sorted(set(head_kinds))
    found["sharing"] = score.states.sharing
    found["trains"] = trains(model)
    return found


def trains(model: Any) -> bool:
    """Whether a forward and a backward still work, and the gradients are shards."""
    ids = torch.arange(7, 17)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    return all(
        isinstance(p.grad, DTensor) and bool(p.grad.full_tensor().isfinite().all()) for p in model.parameters()
    )


def main() -> None:
    torch.set_num_threads(1)
    # A process that waits for a pass the other does not run fails after this, and the test with it.
    distributed.init_process_group("gloo", timeout=timedelta(seconds=240))
    rank = int(os.environ["RANK"])
    found = {"merged": merged(rank)}
    for layout, sharing in product(LAYOUTS, (("off",), ("packed", "off"))):
        found[f"{layout}-{sharing[0]}"] = scored(layout, sharing, rank)
    torch.save(found, Path(sys.argv[1]) / f"found-{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
