"""Run by test_engine.py under torchrun: `worker.py FOLDER SCENARIO...`. Saves what this process found."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from engine_cases import (
    WORDS,
    Group,
    make_pairs,
    make_worker,
    modes,
    plain,
    plain_model,
    register_packed_attention,
    save_model,
    score,
    whole_state,
)
from tensordict import TensorDict
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3ForCausalLM
from verl.utils import tensordict_utils as tu

from scgrpo.divergence import Divergence
from scgrpo.integrations.verl.scoring import PASS, Pair
from scgrpo.teacher.models import backbone

Found = dict[str, Any]


def compared(
    folder: Path,
    *,
    tied: bool = False,
    worker: dict[str, Any] | None = None,
    pairs: list[Pair] | None = None,
    **options: Any,
) -> Found:
    """Evidence of the engine, of the plain forward, and how many forwards the engine made."""
    path, pairs = save_model(folder, tied=tied), pairs or make_pairs()
    reverse = options.get("divergence", Divergence()).direction == "reverse"
    expected = plain(plain_model(path), pairs, options.get("temperature", 1.0), reverse)
    group = Group(make_worker(path, **(worker or {})))
    calls: list[int] = []
    backbone(group.worker.engine.module).register_forward_hook(lambda *_: calls.append(1))
    found = score(group, pairs, **options)
    limit = tu.get_non_tensor_data(group.batches[0], "max_token_len_per_gpu", None)
    rows = group.batches[0]["input_ids"].offsets().diff()
    return {"found": found, "expected": expected, "forwards": len(calls), "limit": limit, "rows": rows}


def fused(folder: Path) -> Found:
    """verl's fused kernels replace the forward of the class; the pass does not go through it."""
    own = Qwen3ForCausalLM.forward
    try:
        model = {"use_fused_kernels": True, "fused_kernel_options": {"impl_backend": "torch"}}
        return {**compared(folder, worker=model), "patched": Qwen3ForCausalLM.forward is not own}
    finally:
        Qwen3ForCausalLM.forward = own


def lora(folder: Path, **options: Any) -> Found:
    """The policy is the model with its adapter, whose B is not 0 as it would be at the start."""
    from peft import LoraConfig, get_peft_model

    path, pairs = save_model(folder, tied=options.pop("tied", False)), make_pairs()
    group = Group(make_worker(path, lora_rank=4, lora_alpha=8, **options))
    module = group.worker.engine.module
    for number, (name, parameter) in enumerate(module.named_parameters()):
        if "lora_B" in name:
            drawn = 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            with torch.no_grad():
                parameter.copy_(distribute_tensor(drawn, parameter.device_mesh, parameter.placements))
    base = plain_model(path)
    without = plain(base, pairs)
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.load_state_dict(whole_state(module))
    return {"found": score(group, pairs), "expected": plain(adapted.eval(), pairs), "without": without}


def fsdp1(folder: Path) -> Found:
    """FSDP1 runs on a CPU but for two details of how it is set up: a check, and verl's name for the device."""
    from torch.distributed.fsdp import _init_utils
    from verl.workers.engine.fsdp import transformer_impl

    own = _init_utils._check_module_states_for_sync_module_states, transformer_impl.get_device_id
    _init_utils._check_module_states_for_sync_module_states = lambda states: None
    transformer_impl.get_device_id = lambda: torch.device("cpu")
    try:
        return compared(folder, worker={"engine": {"strategy": "fsdp"}})
    finally:
        _init_utils._check_module_states_for_sync_module_states, transformer_impl.get_device_id = own


def nan_weights(folder: Path) -> Found:
    """A word whose embedding is NaN, in one pair."""
    path, pairs = save_model(folder, tied=False), make_pairs(words=WORDS - 1)
    ids = list(pairs[3].completion_ids)
    ids[4] = WORDS - 1
    pairs[3] = Pair(pairs[3].student_ids, pairs[3].teacher_ids, ids, [True] * len(ids))
    worker = make_worker(path, use_remove_padding=False)  # packed, NaN would reach the neighbours of a forward too
    embedding = worker.engine.module.get_input_embeddings().weight
    values = embedding.full_tensor().detach().clone()
    values[WORDS - 1] = torch.nan
    with torch.no_grad():
        embedding.copy_(distribute_tensor(values, embedding.device_mesh, embedding.placements))
    try:
        score(Group(worker), pairs)
    except Exception as error:  # noqa: BLE001
        return {"raised": type(error).__name__, "message": str(error)}
    return {"raised": None}


class Largest(TorchDispatchMode):
    """Size of the largest floating-point tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not isinstance(tensor, DTensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def logits(folder: Path) -> Found:
    """The largest tensor of the pass, and of verl's own log-probs of the same tokens."""
    words, found = 30_000, {}
    path, pairs = save_model(folder, tied=False, words=words), make_pairs(4, words, 150)
    group = Group(make_worker(path))
    with Largest() as largest:
        score(group, pairs, max_token_len_per_gpu=10_000)
    found["pass"], data = largest.numel, group.batches[0].exclude(PASS)
    with Largest() as largest:
        answer = group.compute_log_prob(data)
    scored = sum(sum(pair.mask) for pair in pairs)
    return {**found, "verl": largest.numel, "tokens x words": scored * words, "answer": sorted(answer.keys())}


def training(folder: Path, **worker: Any) -> Found:
    """Two steps of verl's, with a pass between them and without; what it leaves behind, and what verl's own log-probs
    do."""
    path, pairs = save_model(folder, tied=worker.pop("tied", False)), make_pairs()
    found: Found = {"steps": {}, "weights": {}, "left": {}}
    for name in ("with", "without"):
        group = Group(make_worker(path, **worker))
        group.worker.set_loss_fn(likelihood)
        norms = [step(group.worker)]
        if name == "with":
            score(group, pairs)
            found["left"]["pass"] = modes(group.worker.engine.module)
            group.compute_log_prob(group.batches[0].exclude(PASS))
            found["left"]["verl"] = modes(group.worker.engine.module)
            score(group, pairs)
        found["steps"][name] = [*norms, step(group.worker)]
        found["weights"][name] = whole_state(group.worker.engine.module)
    return found


def likelihood(model_output: Found, data: TensorDict, dp_group: Any = None) -> tuple[Tensor, Found]:
    return -model_output["log_probs"].values().mean(), {}


def step(worker: Any) -> float:
    rank = distributed.get_rank()
    rows = [torch.arange(3 + rank, 11), torch.arange(20, 33 + rank)]
    columns = {"input_ids": rows, "position_ids": [torch.arange(len(row)) for row in rows]}
    columns["loss_mask"] = [torch.ones(len(row)) for row in rows]
    jagged = {name: torch.nested.as_nested_tensor(column, layout=torch.jagged) for name, column in columns.items()}
    data = TensorDict(jagged, batch_size=2)
    torch.manual_seed(0)  # dropout
    tu.assign_non_tensor(data, temperature=1.0, use_dynamic_bsz=False, micro_batch_size_per_gpu=2)
    return tu.get(worker.train_batch(data), "metrics")["grad_norm"]


def bf16(folder: Path, **options: Any) -> Found:
    """verl's default precision: an untied head is gathered in it."""
    return compared(folder, worker={"engine": {"mixed_precision": None}}, **options)


def sequence_parallel(folder: Path, **options: Any) -> Found:
    worker = {"engine": {"ulysses_sequence_parallel_size": 2}, "attention": register_packed_attention()}
    return compared(folder, worker=worker, **options)


PADDED = {"use_remove_padding": False}
LONG = make_pairs(longest=60)
SCENARIOS: dict[str, Callable[[Path], Found]] = {
    "packed, dynamic": compared,
    "packed, dynamic, tied": lambda folder: compared(folder, tied=True),
    "packed, fixed": lambda folder: compared(folder, micro_batch_size_per_gpu=5),
    "packed, to a length": lambda folder: compared(
        folder, worker={"engine": {"pad_to_length": True, "pad_to_length_bucket": 64}}
    ),
    "padded, dynamic": lambda folder: compared(folder, worker=PADDED),
    "padded, fixed, tied": lambda folder: compared(folder, tied=True, worker=PADDED, micro_batch_size_per_gpu=4),
    "one sequence per forward": lambda folder: compared(folder, micro_batch_size_per_gpu=1),
    "longer than the budget": lambda folder: compared(folder, pairs=LONG, max_token_len_per_gpu=40),
    "one pair": lambda folder: compared(folder, pairs=make_pairs(1)),
    "temperature": lambda folder: compared(folder, temperature=0.7),
    "reverse": lambda folder: compared(folder, divergence=Divergence(direction="reverse")),
    "fused kernels": fused,
    "LoRA": lora,
    "LoRA, padded, tied": lambda folder: lora(folder, tied=True, **PADDED),
    "FSDP1": fsdp1,
    "bf16": bf16,
    "bf16, tied": lambda folder: bf16(folder, tied=True),
    "NaN": nan_weights,
    "logits": logits,
    "training": training,
    "training, tied": lambda folder: training(folder, tied=True),
    "training, LoRA": lambda folder: training(folder, lora_rank=4),
    "sequence parallel": sequence_parallel,
    "sequence parallel, tied, fixed": lambda folder: sequence_parallel(folder, tied=True, micro_batch_size_per_gpu=4),
    "sequence parallel, longer than the budget": lambda folder: sequence_parallel(
        folder, pairs=LONG, max_token_len_per_gpu=40
    ),
}


def main() -> None:
    torch.set_num_threads(1)
    # A process that waits for a pass the other does not run fails after this, and the test with it.
    distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
    folder, found = Path(sys.argv[1]), {}
    for name in sys.argv[2:]:
        try:
            found[name] = SCENARIOS[name](folder)
        except Exception:  # noqa: BLE001
            found[name] = {"error": traceback.format_exc()}
    torch.save(found, folder / f"found-{distributed.get_rank()}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
