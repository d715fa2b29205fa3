"""A toy rollout engine for verl: one Ray actor that generates with the Hugging Face model, on a CPU.

For tests only. Requests that arrive together are generated as one batch. What a request gets depends on the seed,
the number of weight updates, its prompt, and how many times that prompt was asked for; not on what it shares a batch
with (up to the rounding of padded forwards).

A test may hold generation: with `HF_CPU_HOLD=<step>:<folder>` in the environment, the server with that step's weights
writes `<folder>/held` when asked, and answers once `<folder>/go` is there.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

GATHER = 0.05  # seconds a batch waits for more requests


def server_name(rank: int) -> str:
    return f"hf_cpu_server_{rank}"


class _Request(NamedTuple):
    prompt: list[int]
    limit: int
    temperature: float
    generator: torch.Generator
    answer: asyncio.Future


class HFServer:
    """What vLLM's server is to verl: `generate`, and weights by name."""

    def __init__(self, path: str, seed: int, response_length: int) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(
            path, attn_implementation="sdpa", dtype=torch.float32
        ).eval()
        self.eos = self.model.generation_config.eos_token_id or self.model.config.eos_token_id
        self.seed, self.response_length = seed, response_length
        self.version: int | None = None  # global step of the weights
        self.asked: Counter[tuple[int, ...]] = Counter()
        self.waiting: list[_Request] = []

    async def address(self) -> str:
        return ray.util.get_node_ip_address()

    async def update_weights(self, weights: dict[str, torch.Tensor], global_steps: int | None = None) -> None:
        result = self.model.load_state_dict(weights, strict=False)
        self.version, self.asked = global_steps, Counter()
        print(
            f"hf_cpu weights: step {global_steps}, {len(weights)} tensors, missing {result.missing_keys}, "
            f"unexpected {result.unexpected_keys}, sum {sum(float(w.double().sum()) for w in weights.values()):.9f}",
            flush=True,
        )

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **ignored: Any
    ) -> TokenOutput:
        prompt = [int(token) for token in prompt_ids]
        self.asked[tuple(prompt)] += 1
        label = f"{self.seed} {self.version} {prompt} {self.asked[tuple(prompt)]}"
        seed = int.from_bytes(hashlib.sha256(label.encode()).digest()[:7], "big")
        room = self.model.config.max_position_embeddings - len(prompt)
        asked = sampling_params.get("max_tokens") or sampling_params.get("max_new_tokens") or self.response_length
        request = _Request(
            prompt,
            min(asked, room),
            float(sampling_params.get("temperature", 1.0) or 0.0),
            torch.Generator().manual_seed(seed),
            asyncio.get_running_loop().create_future(),
        )
        await self._hold()
        self.waiting.append(request)
        if len(self.waiting) == 1:
            asyncio.get_running_loop().call_later(GATHER, self._answer)
        tokens, logps = await request.answer
        stopped = "completed" if tokens and tokens[-1] == self.eos else "length"
        return TokenOutput(
            token_ids=tokens, log_probs=logps, stop_reason=stopped, extra_fields={"global_steps": self.version}
        )

    async def _hold(self) -> None:
        step, _, folder = os.environ.get("HF_CPU_HOLD", "").partition(":")
        if step == str(self.version):
            (Path(folder) / "held").touch()
            while not (Path(folder) / "go").exists():
                await asyncio.sleep(0.1)

    def _answer(self) -> None:
        batch, self.waiting = self.waiting, []
        try:
            outputs = self._generate(batch)
        except Exception as error:  # noqa: BLE001 - the caller's to see
            for request in batch:
                request.answer.set_exception(error)
            return
        for request, output in zip(batch, outputs, strict=True):
            request.answer.set_result(output)

    @torch.no_grad()
    def _generate(self, batch: list[_Request]) -> list[tuple[list[int], list[float]]]:
        width = max(len(request.prompt) for request in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        for row, request in enumerate(batch):
            ids[row, width - len(request.prompt) :] = torch.tensor(request.prompt)
            mask[row, width - len(request.prompt) :] = 1
        outputs: list[tuple[list[int], list[float]]] = [([], []) for _ in batch]
        positions, cache = (mask.cumsum(-1) - 1).clamp(min=0), None
        for _ in range(max(request.limit for request in batch)):
            out = self.model(
                ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache, chosen = out.past_key_values, []
            for request, logits, (tokens, logps) in zip(batch, out.logits[:, -1].float(), outputs, strict=True):
                logp = (logits / request.temperature if request.temperature else logits).log_softmax(-1)
                token = int(
                    torch.multinomial(logp.exp(), 1, generator=request.generator)
                    if request.temperature
                    else logp.argmax()
                )
                chosen.append(token)
                if len(tokens) < request.limit and tokens[-1:] != [self.eos]:
                    tokens.append(token)
                    logps.append(float(logp[token]))
            if all(t[-1] == self.eos or len(t) == r.limit for r, (t, _) in zip(batch, outputs, strict=True)):
                break
            ids = torch.tensor(chosen)[:, None]
            mask = torch.cat([mask, torch.ones(len(batch), 1, dtype=torch.long)], dim=1)
            positions = positions[:, -1:] + 1
        return outputs

    async def nothing(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to put to sleep, to abort or to profile."""

    wake_up = sleep = abort_all_requests = resume_generation = nothing
    clear_kv_cache = release_kv_cache = resume_kv_cache = start_profile = stop_profile = nothing


class HFReplica(RolloutReplica):
    async def launch_servers(self) -> None:
        server = (
            ray.remote(HFServer)
            .options(num_cpus=0, name=server_name(self.replica_rank), max_concurrency=self.max_concurrency)
            .remote(self.model_config.path, self.config.seed + self.replica_rank, self.config.response_length)
        )
        self.servers = [server]
        self._server_handle = server
        self._server_address = f"{await server.address.remote()}:{self.replica_rank}"


class ServerAdapter(BaseRollout):
    """In each FSDP worker: hands the live weights to the replica it belongs to."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1) -> None:
        super().__init__(config, model_config, device_mesh)
        size = self.config.tensor_model_parallel_size * self.config.data_parallel_size
        rank = int(os.environ["RANK"])
        self.replica_rank = rank // size if replica_rank == -1 else replica_rank
        self.is_leader_rank = rank % size == 0

    async def resume(self, tags: list[str]) -> None:
        pass

    async def release(self) -> None:
        pass

    async def update_weights(
        self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None, **ignored: Any
    ) -> None:
        # Every rank reads them all: reading gathers the shards.
        full = {name: weight.detach().cpu().float().clone() for name, weight in weights}
        if self.is_leader_rank:
            server = ray.get_actor(server_name(self.replica_rank))
            await server.update_weights.remote(full, global_steps=global_steps)
