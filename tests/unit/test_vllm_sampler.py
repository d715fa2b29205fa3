"""vLLM behind the sampler, against a stand-in with its interface: what is asked, and what becomes of the answers."""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from eval_cases import Letters, interrupted_after, numbers

from scgrpo.errors import ConfigError, MissingExtraError
from scgrpo.evaluation import EvalDirectory, Sampler, evaluate
from scgrpo.evaluation.samplers import Sampling
from scgrpo.evaluation.vllm import VllmSampler
from scgrpo.tasks.maze import MazeTask


@dataclass
class SamplingParams:
    """The arguments of vLLM's that we use, and its rules for them."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int
    stop_token_ids: list[int]
    skip_special_tokens: bool
    detokenize: bool

    def __post_init__(self) -> None:
        assert 0 <= self.seed < 2**63 - self.n
        assert self.top_k == -1 or self.top_k > 0


@dataclass
class LLM:
    """Draws tokens by the request's seed until a stop token, which is part of the answer."""

    model: str
    dtype: str
    generation_config: str
    revision: str | None = None
    tensor_parallel_size: int = 1
    tokens: list[int] = field(default_factory=lambda: list(range(2, 20)))
    calls: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.model == "broken":
            raise RuntimeError("No CUDA GPUs are available\nmore")

    def generate(self, prompts: list[dict], params: list[SamplingParams], use_tqdm: bool) -> list[Any]:
        assert len(prompts) == len(params)
        assert not use_tqdm
        self.calls.append((prompts, params))
        return [self._answer(prompt["prompt_token_ids"], own) for prompt, own in zip(prompts, params, strict=True)]

    def _answer(self, prompt: list[int], params: SamplingParams) -> Any:
        outputs = []
        for index in range(params.n):
            rng, ids = random.Random(f"{prompt} {params.seed + index}"), []
            while len(ids) < params.max_tokens and not (ids and ids[-1] in params.stop_token_ids):
                ids.append(params.stop_token_ids[0] if ids and len(self.tokens) < 5 else rng.choice(self.tokens))
            outputs.append(types.SimpleNamespace(token_ids=tuple(ids)))
        return types.SimpleNamespace(outputs=outputs)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_what_is_asked_of_vllm(fake: types.ModuleType, tokenizer: Any) -> None:
    sampler = VllmSampler("some/model", tokenizer, ends=[2, 7], revision="abc", options={"tensor_parallel_size": 2})
    assert isinstance(sampler, Sampler)
    llm = sampler._llm
    assert (llm.model, llm.revision, llm.tensor_parallel_size, llm.generation_config) == (
        "some/model",
        "abc",
        2,
        "vllm",
    )
    sampling = Sampling(3, 0.6, 0.95, 0, 9, 64, 0)
    drawn = sampler.sample([[4, 5], [6]], 3, sampling, seed=11)
    assert len(drawn) == 6
    assert all(len(ids) == 9 or ids[-1] in (2, 7) for ids in drawn)
    assert not any(token in (2, 7) for ids in drawn for token in ids[:-1])
    ((prompts, params),) = llm.calls
    assert prompts == [{"prompt_token_ids": [4, 5]}, {"prompt_token_ids": [6]}]
    for own in params:
        assert (own.n, own.temperature, own.top_p, own.top_k, own.max_tokens) == (3, 0.6, 0.95, -1, 9)
        assert own.stop_token_ids == [2, 7]
    assert params[0].seed != params[1].seed
    assert sampler.sample([[4, 5], [6]], 3, sampling, seed=11) == drawn
    assert sampler.sample([[4, 5], [6]], 3, sampling, seed=12) != drawn


def test_evaluations_with_vllm_go_on_too(fake: types.ModuleType, tokenizer: Any, tmp_path: Path) -> None:
    sampler = VllmSampler("some/model", tokenizer)
    settings = {"k": 4, "max_new_tokens": 6, "batch_size": 8}
    whole = evaluate(sampler, tokenizer, Letters(), **settings)
    assert 0 < whole.avg_at_k.value < 1
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            sampler, tokenizer, Letters(), out=EvalDirectory(tmp_path), progress=interrupted_after(9), **settings
        )
    assert numbers(evaluate(sampler, tokenizer, Letters(), out=EvalDirectory(tmp_path), **settings)) == numbers(whole)


def test_conversations_with_vllm(fake: types.ModuleType) -> None:
    from scgrpo.tiny.testbeds import get_testbed

    tokenizer = get_testbed("maze").recipe.vocabulary.tokenizer()
    sampler = VllmSampler("some/model", tokenizer)
    sampler._llm.tokens = tokenizer("up down left right")["input_ids"]  # one move a turn
    task = MazeTask()
    result = evaluate(sampler, tokenizer, task, rows=task.rows("eval", 3), k=2, max_new_tokens=40)
    assert result.num_problems == 3
    assert result.error_frac == 0
    first, second, *_ = sampler._llm.calls
    assert len(first[0]) == 6
    again = {tuple(prompt["prompt_token_ids"]) for prompt in first[0]}
    for prompt in second[0]:
        ids = tuple(prompt["prompt_token_ids"])
        assert any(ids[: len(start)] == start for start in again), "a turn's prompt is all that was said before"
    assert len({params.seed for _, several in sampler._llm.calls for params in several}) == sum(
        len(several) for _, several in sampler._llm.calls
    ), "no two turns share a stream"


def test_without_vllm_or_with_a_model_it_refuses(
    fake: types.ModuleType, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="vLLM cannot load 'broken': No CUDA GPUs are available Check"):
        VllmSampler("broken", tokenizer)
    with pytest.raises(ConfigError, match="unexpected keyword argument 'colour'"):
        VllmSampler("some/model", tokenizer, options={"colour": "red"})
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match="pip install vllm"):
        VllmSampler("some/model", tokenizer)


def test_the_weights_of_a_folder_tell_checkpoints_apart(
    fake: types.ModuleType, tokenizer: Any, make_model: Callable[..., Any], tmp_path: Path
) -> None:
    identities = []
    for name, seed in (("a", 1), ("b", 2), ("c", 1)):
        make_model(seed=seed).save_pretrained(tmp_path / name)
        identities.append(VllmSampler(str(tmp_path / name), tokenizer).identity["weights"])
    assert identities[0] == identities[2] != identities[1]
