"""Sharing prompts: the same hidden states as with a prompt copied per completion; or it falls back and says so."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from scgrpo.errors import ConfigError
from scgrpo.teacher import hidden as module
from scgrpo.teacher.hidden import SHARING, CompletionStates, Sharing, cached_hidden, rerun_hidden, sharing_candidates
from scgrpo.teacher.models import backbone
from scgrpo.teacher.packing import pack, packed_hidden

WORDS = 50
COMMON = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 4,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
# configuration, its settings, and the kind of sharing that must come out
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], Sharing]] = {
    "qwen3": ("Qwen3Config", {}, "packed"),
    "qwen3, every head its own keys": ("Qwen3Config", {"num_key_value_heads": 4}, "packed"),
    "qwen2 (biases)": ("Qwen2Config", {}, "packed"),
    "llama": ("LlamaConfig", {}, "packed"),
    "llama, llama3 rope": ("LlamaConfig", {"rope_parameters": LLAMA3}, "packed"),
    "qwen3, yarn": ("Qwen3Config", {"rope_parameters": YARN}, "packed"),
    "qwen3, window longer than the rows": ("Qwen3Config", WINDOW | {"sliding_window": 64}, "packed"),
    "qwen3, window": ("Qwen3Config", WINDOW, "cached"),
    "mistral, window everywhere": ("MistralConfig", {"sliding_window": 5}, "cached"),
    "gemma3 (window and full layers, two rotary bases)": ("Gemma3TextConfig", {"sliding_window": 5}, "cached"),
    "gemma2 (capped attention)": ("Gemma2Config", {"sliding_window": 64}, "cached"),
    "gpt-oss (attention sinks)": ("GptOssConfig", EXPERTS | {"sliding_window": 64}, "cached"),
    "qwen3-next (linear attention)": ("Qwen3NextConfig", LINEAR, "cached"),
    "llama, dynamic rope": ("LlamaConfig", {"rope_parameters": DYNAMIC}, "off"),
}


def make(config_name: str, settings: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    config = getattr(transformers, config_name)(**{**COMMON, **settings})
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def rows(seed: int = 0) -> tuple[list[list[int]], Tensor, Tensor]:
    """Seven completions of 1 to 12 tokens under three prompts of 1 to 17, out of order; padding holds rubbish."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(*shape: int) -> Tensor:
        return torch.randint(3, WORDS, shape, generator=generator)

    prompts = [tokens(17).tolist(), tokens(1).tolist(), tokens(8).tolist()]
    return [prompts[i] for i in (0, 2, 0, 1, 0, 2, 0)], tokens(7, 12), torch.tensor([5, 1, 12, 3, 1, 7, 2])


def largest_error(found: Tensor, expected: Tensor, lengths: Tensor) -> float:
    inside = torch.arange(found.shape[1]) < lengths[:, None]
    return ((found - expected)[inside].abs().max() / expected[inside].abs().max()).item()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_gets_the_fastest_sharing_that_is_right(name: str) -> None:
    config_name, settings, sharing = ARCHITECTURES[name]
    model, (prompts, completions, lengths) = make(config_name, settings), rows()
    states = CompletionStates(model, sharing_candidates(model))
    with torch.no_grad():
        found, expected = states(prompts, completions, lengths), rerun_hidden(model, prompts, completions, lengths)
    assert states.sharing == sharing
    # Linear attention goes through its recurrence from another state: more rounding.
    assert largest_error(found, expected, lengths) < (1e-4 if "linear" in name else 1e-5)
    assert backbone(model).config._attn_implementation == model.config._attn_implementation != "scgrpo_packed"


@pytest.mark.parametrize("function", [packed_hidden, cached_hidden])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 3e-6), (torch.bfloat16, 3e-2)])
def test_shared_equals_rerun(function: Any, dtype: torch.dtype, limit: float) -> None:
    model = make("Qwen3Config", {}, dtype)
    for seed in range(5):
        prompts, completions, lengths = rows(seed)
        with torch.no_grad():
            found = function(model, prompts, completions, lengths)
            expected = rerun_hidden(model, prompts, completions, lengths)
        assert found.dtype == dtype
        assert largest_error(found, expected, lengths) < limit


def test_completions_of_one_token_alone() -> None:
    model, (prompts, completions, _) = make("Qwen3Config", {}), rows()
    lengths = torch.ones(7, dtype=torch.long)
    with torch.no_grad():
        expected = rerun_hidden(model, prompts, completions, lengths)
        for function in (packed_hidden, cached_hidden):
            assert largest_error(function(model, prompts, completions, lengths), expected, lengths) < 1e-5


def test_a_packed_row_holds_each_prompt_once_and_no_padding() -> None:
    prompts, completions, lengths = rows()
    row = pack(prompts, completions, lengths)
    assert row.ids.shape == (1, (17 + 8 + 1) + (5 + 1 + 12 + 3 + 1 + 7 + 2) - 7)  # a last token predicts nothing
    assert row.prompts.lengths == (17, 8, 1)
    assert row.completions.lengths == (4, 11, 1, 6, 2)
    assert row.answers.lengths == (16, 6, 2)
    assert row.longest == 17 + 12
    assert row.positions[0, :17].tolist() == list(range(17))
    assert row.positions[0, 26:30].tolist() == [17, 18, 19, 20]  # row 0 goes on where its prompt ended
    assert row.ids[0, 26:30].tolist() == completions[0, :4].tolist()
    assert row.predicts[0, :5].tolist() == [16, 26, 27, 28, 29]
    assert row.predicts[1, 0] == 24  # a completion of one token is predicted by its prompt's last state


def test_a_wrong_result_is_found_out_and_said(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """As if the packed attention were subtly wrong for some model."""
    monkeypatch.setitem(module._FUNCTIONS, "packed", lambda *a: rerun_hidden(*a) * 1.01)
    model, batch = make("Qwen3Config", {}), rows()
    states = CompletionStates(model)
    with torch.no_grad(), caplog.at_level(logging.INFO):
        found = states(*batch)
    assert states.sharing == "cached"
    assert largest_error(found, rerun_hidden(model, *batch), batch[2]) < 1e-5
    assert "packed prompts give other hidden states than plain ones (by 1.0e-02, relative)" in caplog.text
    assert "prompts are shared (cached)" in caplog.text


def test_rows_longer_than_a_window_after_shorter_ones_are_passed_another_way(caplog: Any) -> None:
    model = make("Qwen3Config", WINDOW | {"sliding_window": 40})
    states, (prompts, completions, lengths) = CompletionStates(model, sharing_candidates(model)), rows()
    with torch.no_grad():
        states(prompts, completions, lengths)
        assert states.sharing == "packed"
        longer = [prompt * 4 for prompt in prompts]
        found = states(longer, completions, lengths)
        expected = rerun_hidden(model, longer, completions, lengths)
    assert states.sharing == "cached"
    assert largest_error(found, expected, lengths) < 1e-5
    assert "packed prompts are given up" in caplog.text


def test_the_only_kind_asked_for_says_what_to_do_where_it_cannot_be() -> None:
    model, (prompts, completions, lengths) = make("Qwen3Config", WINDOW), rows()
    with torch.no_grad(), pytest.raises(ConfigError, match=r"'packed'.*Set teacher_prefix_sharing='auto'"):
        CompletionStates(model, ("packed",))(prompts, completions, lengths)


def test_all_processes_take_what_is_right_on_all() -> None:
    verdicts: list[bool] = []

    def agree(verdict: bool) -> bool:
        verdicts.append(verdict)
        return False  # another process found it wrong

    states = CompletionStates(make("Qwen3Config", {}), ("packed", "off"), agree)
    with torch.no_grad():
        states(*rows())
    assert verdicts == [True]
    assert states.sharing == "off"


def test_the_check_is_made_once() -> None:
    model, batch = make("Qwen3Config", {}), rows()
    states, passes = CompletionStates(model, SHARING), []
    backbone(model).register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        states(*batch)
        assert len(passes) == 3
        states(*batch)
    assert len(passes) == 4


def test_the_attention_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("Qwen3Config", WINDOW)
    with pytest.raises(NotImplementedError, match="window"):
        packed_hidden(model, *rows())
    assert backbone(model).config._attn_implementation == "sdpa"
