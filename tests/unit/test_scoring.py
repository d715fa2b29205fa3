"""The conditioned pass: the same tokens in two contexts, whatever stands beside them in the batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scgrpo.credit import Evidence
from scgrpo.divergence import OutputHead
from scgrpo.errors import ConfigError, NonFiniteError, ShapeError
from scgrpo.teacher.hidden import CompletionStates, Sharing, rerun_hidden
from scgrpo.teacher.models import backbone, base_causal_lm, evaluation_mode, has_dropout, output_head
from scgrpo.teacher.scoring import ConditionedPass, Pairs

FIELDS = ("token_kl", "teacher_logps", "student_logps", "student_entropy")
WORDS = 46
LENGTHS = [5, 1, 9, 3, 7]


def make_pairs(seed: int = 0, lengths: list[int] = LENGTHS, width: int | None = None) -> Pairs:
    """Completions under prompts of different lengths; padding holds rubbish, and some tokens are not counted."""
    rng = random.Random(seed)
    length = torch.tensor(lengths)
    completions = torch.tensor([[rng.randrange(7, WORDS) for _ in range(12)] for _ in lengths])
    mask = torch.arange(12) < length[:, None]
    mask[0, 2] = False
    prompts = [
        [[rng.randrange(7, WORDS) for _ in range(rng.randint(*size))] for _ in lengths] for size in ((1, 6), (3, 15))
    ]
    width = width or int(length.max())
    return Pairs(prompts[0], prompts[1], completions[:, :width], length, mask[:, :width])


def make_pass(model: Any, sharing: Sharing = "off", **settings: Any) -> ConditionedPass:
    defaults = {"head": lambda: output_head(model, 1.0), "states": CompletionStates(model, (sharing,))}
    return ConditionedPass(model, **{**defaults, "max_tokens": 36, **settings})


def plain_rows(model: Any, prompts: Any, pairs: Pairs) -> list[Tensor]:
    """Hidden states that predict each completion token: one row at a time, no padding, no gathering."""
    rows = []
    for prompt, ids, length in zip(prompts, pairs.completions.tolist(), pairs.lengths.tolist(), strict=True):
        row = torch.tensor([[*prompt, *ids[:length]]])
        with torch.no_grad():
            hidden = model.model(input_ids=row).last_hidden_state[0]
        rows.append(torch.stack([hidden[len(prompt) + t - 1] for t in range(length)]))
    return rows


def plain_evidence(model: Any, pairs: Pairs) -> Evidence:
    """By the model's own forward and log_softmax, one pair at a time."""
    out = torch.zeros(4, *pairs.mask.shape, dtype=next(model.parameters()).dtype)
    for row, (student, teacher) in enumerate(zip(pairs.student_prompts, pairs.teacher_prompts, strict=True)):
        completion = pairs.completions[row, : int(pairs.lengths[row])].tolist()
        logps = []
        for prompt in (student, teacher):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
            logps.append(logits[len(prompt) - 1 : -1].log_softmax(-1))
        p, q = logps
        for t, token in enumerate(completion):
            if pairs.mask[row, t]:
                kl, entropy = (q[t].exp() * (q[t] - p[t])).sum(), -(p[t].exp() * p[t]).sum()
                out[:, row, t] = torch.stack([kl, q[t, token], p[t, token], entropy])
    return Evidence(*out)


def assert_equal(actual: Evidence, expected: Evidence, atol: float) -> None:
    for name in FIELDS:
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), atol=atol, rtol=0, msg=name)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_rerun_hidden_equals_one_row_at_a_time(
    make_model: Callable[..., Any], dtype: torch.dtype, atol: float
) -> None:
    model, pairs = make_model(dtype=dtype).eval(), make_pairs(width=12)
    hidden = rerun_hidden(model, pairs.teacher_prompts, pairs.completions, pairs.lengths)
    assert hidden.shape == (5, 12, 32)
    for row, expected in enumerate(plain_rows(model, pairs.teacher_prompts, pairs)):
        torch.testing.assert_close(hidden[row, : len(expected)], expected, atol=atol, rtol=0)


# ---- evidence ----


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("max_tokens", [1, 40, 1000])
@pytest.mark.parametrize("sharing", ["packed", "cached", "off"])
def test_evidence_equals_the_models_own_log_softmax(
    make_model: Callable[..., Any], dtype: torch.dtype, atol: float, max_tokens: int, sharing: Sharing
) -> None:
    model, pairs = make_model(dtype=dtype).eval(), make_pairs()
    found = make_pass(model, sharing, max_tokens=max_tokens)(pairs)
    assert found.token_kl.dtype == dtype
    assert found.token_kl[pairs.mask].mean() > 0.1  # contexts matter to this model
    assert_equal(found, plain_evidence(model, pairs), atol)
    for name in FIELDS:
        assert not getattr(found, name)[~pairs.mask].any()


def test_neighbours_padding_and_order_do_not_matter(make_model: Callable[..., Any]) -> None:
    model, pairs = make_model(dtype=torch.float64).eval(), make_pairs()
    expected = make_pass(model)(pairs)

    wide = make_pass(model, max_tokens=60)(make_pairs(width=12))
    assert_equal(Evidence(*(getattr(wide, name)[:, :9] for name in FIELDS)), expected, 1e-10)

    order = [3, 0, 4, 2, 1]
    moved = make_pass(model)(pairs.select(order))
    assert_equal(moved, Evidence(*(getattr(expected, name)[order] for name in FIELDS)), 1e-10)

    rubbish = pairs.completions.masked_fill(torch.arange(9) >= pairs.lengths[:, None], 3)
    assert_equal(make_pass(model)(replace(pairs, completions=rubbish)), expected, 1e-10)


def test_identical_contexts_do_not_diverge(make_model: Callable[..., Any]) -> None:
    model, pairs = make_model().eval(), make_pairs()
    same = replace(pairs, teacher_prompts=pairs.student_prompts)
    found = make_pass(model)(same)
    assert found.token_kl.max() < 1e-6
    torch.testing.assert_close(found.teacher_logps, found.student_logps, atol=1e-6, rtol=0)
    # Also when the student's states come from a pass that was batched otherwise.
    hidden = rerun_hidden(model, pairs.student_prompts, pairs.completions, pairs.lengths)
    assert make_pass(model, max_tokens=1)(replace(same, student_hidden=hidden.detach())).token_kl.max() < 1e-6


def test_students_states_given_or_computed(make_model: Callable[..., Any]) -> None:
    model, pairs = make_model().eval(), make_pairs()
    computed = make_pass(model)(pairs)
    hidden = rerun_hidden(model, pairs.student_prompts, pairs.completions, pairs.lengths).detach()
    passes: list[int] = []
    handle = backbone(model).register_forward_hook(lambda *_: passes.append(1))
    assert_equal(make_pass(model)(replace(pairs, student_hidden=hidden)), computed, 1e-5)
    handle.remove()
    assert len(passes) == len(list(make_pass(model).batches(pairs))) > 1  # the teacher's alone


def test_temperature_is_that_of_sampling(make_model: Callable[..., Any]) -> None:
    model, pairs = make_model().eval(), make_pairs()
    found = make_pass(model, head=lambda: output_head(model, 2.0))(pairs)
    row = torch.tensor([[*pairs.student_prompts[2], *pairs.completions[2].tolist()]])
    with torch.no_grad():
        logps = (model(input_ids=row).logits[0] / 2.0).log_softmax(-1)
    start = len(pairs.student_prompts[2]) - 1
    expected = logps[range(start, start + 9), pairs.completions[2]]
    torch.testing.assert_close(found.student_logps[2], expected, atol=1e-5, rtol=0)


def test_teacher_weights_are_the_teachers_alone(make_model: Callable[..., Any]) -> None:
    model, other, pairs = make_model().eval(), make_model(seed=1).eval(), make_pairs()

    @contextmanager
    def others() -> Iterator[None]:
        def swap() -> None:
            for mine, its in zip(model.parameters(), other.parameters(), strict=True):
                mine.data, its.data = its.data, mine.data

        swap()
        yield
        swap()

    found = make_pass(model, teacher_weights=others)(pairs)
    plain = make_pass(model)(pairs)
    assert torch.equal(found.student_logps, plain.student_logps)
    # The whole teacher: its backbone and its output head.
    expected = make_pass(other)(pairs)
    torch.testing.assert_close(found.teacher_logps, expected.teacher_logps, atol=1e-5, rtol=0)
    assert (found.teacher_logps - plain.teacher_logps).abs().max() > 0.1


@contextmanager
def swapped(model: Any, other: Any) -> Iterator[None]:
    def swap() -> None:
        for mine, its in zip(model.parameters(), other.parameters(), strict=True):
            mine.data, its.data = its.data, mine.data

    swap()
    yield
    swap()


def count_passes(model: Any) -> list[int]:
    calls: list[int] = []
    backbone(model).register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("given", [True, False])
def test_a_pair_without_a_demonstration_needs_no_teacher(make_model: Callable[..., Any], given: bool) -> None:
    model, pairs = make_model(dtype=torch.float64).eval(), make_pairs()
    expected = make_pass(model, max_tokens=1000)(pairs)
    alone = replace(pairs, teacher_prompts=pairs.student_prompts, alone=True)
    if given:
        hidden = rerun_hidden(model, pairs.student_prompts, pairs.completions, pairs.lengths)
        alone = replace(alone, student_hidden=hidden.detach().requires_grad_())
    calls = count_passes(model)
    found = make_pass(model, max_tokens=1000)(alone)
    assert len(calls) == (0 if given else 1)
    assert not found.token_kl.any()
    for name in ("student_logps", "student_entropy"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-10, rtol=0)
        assert getattr(found, name).requires_grad is given
    torch.testing.assert_close(found.teacher_logps, expected.student_logps, atol=1e-10, rtol=0)


def test_without_a_demonstration_other_weights_make_a_teacher(make_model: Callable[..., Any]) -> None:
    model, other, pairs = make_model().eval(), make_model(seed=1).eval(), make_pairs()
    alone = replace(pairs, teacher_prompts=pairs.student_prompts, alone=True)
    found = make_pass(model, teacher_weights=lambda: swapped(model, other))(alone)
    assert torch.equal(found.student_logps, make_pass(model)(pairs).student_logps)
    torch.testing.assert_close(found.teacher_logps, make_pass(other)(alone).student_logps, atol=1e-5, rtol=0)
    assert found.token_kl[pairs.mask].mean() > 0.1


def test_a_contrast_is_read_by_the_teacher_on_both_sides(make_model: Callable[..., Any]) -> None:
    model, other, pairs = make_model().eval(), make_model(seed=1).eval(), make_pairs()
    found = make_pass(model, teacher_weights=lambda: swapped(model, other))(replace(pairs, contrasted=True))
    assert_equal(found, make_pass(other)(pairs), 2e-5)
    assert_equal(make_pass(model)(replace(pairs, contrasted=True)), make_pass(model)(pairs), 0)


# ---- the model's state ----


def test_dropout_is_off_in_the_pass_and_every_flag_comes_back(make_model: Callable[..., Any]) -> None:
    model = make_model(attention_dropout=0.5)
    pairs = make_pairs()
    assert has_dropout(model)
    assert not has_dropout(make_model())
    expected = make_pass(model.eval())(pairs)

    model.train()
    model.model.layers[0].eval()  # a user froze this one
    before = {name: module.training for name, module in model.named_modules()}
    assert set(before.values()) == {True, False}
    found = make_pass(model)(pairs)
    assert {name: module.training for name, module in model.named_modules()} == before
    for name in FIELDS:
        assert torch.equal(getattr(found, name), getattr(expected, name))
    # The trap: in training mode the same context differs from itself.
    first, second = (rerun_hidden(model, pairs.student_prompts, pairs.completions, pairs.lengths) for _ in range(2))
    assert (first - second).abs().max() > 0.01


def test_flags_come_back_after_an_exception(make_model: Callable[..., Any]) -> None:
    model = make_model().train()
    with pytest.raises(RuntimeError, match=r"inside, model\.training=False"), evaluation_mode(model):
        raise RuntimeError(f"inside, {model.training=}")
    assert all(module.training for module in model.modules())


def test_no_gradient_and_no_trace(make_model: Callable[..., Any]) -> None:
    model = make_model()
    found = make_pass(model)(make_pairs())
    assert not any(getattr(found, name).requires_grad for name in FIELDS)
    assert all(parameter.grad is None for parameter in model.parameters())


# ---- odd input ----


@pytest.mark.parametrize("max_tokens", [1, 40, 1000])
def test_nan_logits_name_pair_and_token(make_model: Callable[..., Any], max_tokens: int) -> None:
    model, pairs = make_model().eval(), make_pairs()
    hidden = rerun_hidden(model, pairs.student_prompts, pairs.completions, pairs.lengths).detach()
    hidden[3, 2] = torch.nan
    hidden[0, 2] = torch.nan  # token 2 of pair 0 is not counted, nor is the padding of pair 1
    hidden[1, 1:] = torch.nan
    with pytest.raises(NonFiniteError, match=r"NaN or infinite for pair 3, completion token 2 \(1 of \d+ tokens"):
        make_pass(model, max_tokens=max_tokens)(replace(pairs, student_hidden=hidden))


def test_nan_weights_are_an_error(make_model: Callable[..., Any]) -> None:
    model = make_model().train()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"for pair \d, completion token 0"):
        make_pass(model)(make_pairs())
    assert model.training


def test_pairs_without_counted_tokens_cost_nothing(make_model: Callable[..., Any]) -> None:
    model, pairs = make_model().eval(), make_pairs()
    mask = pairs.mask.clone()
    mask[[0, 3]] = False
    masked = replace(pairs, mask=mask)
    conditioned = make_pass(model, max_tokens=1)
    assert sorted(row for batch in conditioned.batches(masked) for row in batch) == [1, 2, 4]
    found, whole = conditioned(masked), conditioned(pairs)
    assert not found.token_kl[[0, 3]].any()
    for row in (1, 2, 4):
        assert torch.equal(found.token_kl[row], whole.token_kl[row])


def batches_of(pairs: Pairs, sharing: Sharing, **settings: Any) -> list[list[int]]:
    model = nn.Linear(1, 1)
    states = CompletionStates(model, (sharing,))
    return list(ConditionedPass(model, lambda: OutputHead(torch.ones(1, 1)), states, **settings).batches(pairs))


def test_batches_are_longest_first_and_complete() -> None:
    pairs = make_pairs()
    sizes = [len(prompt) + n for prompt, n in zip(pairs.teacher_prompts, LENGTHS, strict=True)]
    assert sizes == [10, 5, 13, 14, 19]
    assert batches_of(pairs, "off", max_tokens=36) == [[4], [3, 2], [0, 1]]  # 19, 2 x 14 padded, 2 x 10 padded
    assert batches_of(pairs, "packed", max_tokens=36) == [[4, 3], [2, 0, 1]]  # 19 + 14, 13 + 10 + 5
    assert batches_of(pairs, "packed", max_tokens=1) == [[4], [3], [2], [0], [1]]
    assert batches_of(pairs, "packed", max_rows=3) == batches_of(pairs, "packed", max_tokens=3 * 19)


def test_a_shared_prompt_counts_once_and_keeps_its_rows_together() -> None:
    one, two = [7] * 10, [8] * 4
    lengths = torch.tensor([3, 5, 4, 2])
    ids = torch.full((4, 5), 9)
    pairs = Pairs([[7]] * 4, [one, two, one, two], ids, lengths, torch.arange(5) < lengths[:, None])
    assert batches_of(pairs, "packed", max_tokens=17) == [[2, 0], [1, 3]]  # 10 + 4 + 3, 4 + 5 + 2
    assert batches_of(pairs, "packed", max_tokens=16) == [[2], [0], [1, 3]]
    assert batches_of(pairs, "off", max_tokens=28) == [[2, 0], [1, 3]]  # 2 x 14


def test_no_pairs_is_no_evidence(make_model: Callable[..., Any]) -> None:
    nothing = Pairs([], [], torch.zeros(0, 7).long(), torch.zeros(0).long(), torch.zeros(0, 7).bool())
    found = make_pass(make_model())(nothing)
    assert [getattr(found, name).shape for name in FIELDS] == [(0, 7)] * 4


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("num_forwards", "expected"), [(None, 3), (3, 3), (5, 5), (0, 3)])
def test_missing_batches_run_on_a_dummy_row(
    make_model: Callable[..., Any], num_forwards: int | None, expected: int, given: bool
) -> None:
    """Processes that share sharded weights run the same number of passes, each inside the wrapper's forward."""
    model, pairs = make_model().eval(), make_pairs()
    if given:
        hidden = rerun_hidden(model, pairs.student_prompts, pairs.completions, pairs.lengths)
        pairs = replace(pairs, student_hidden=hidden.detach())
    calls: list[str] = []
    handle = backbone(model).register_forward_hook(lambda *_: calls.append("backbone"))

    def redirect(score: Callable[[], Any]) -> Any:
        calls.append("redirect")
        return score()

    found = make_pass(model, redirect=redirect)(pairs, num_forwards)
    handle.remove()
    assert len(list(make_pass(model).batches(pairs))) == 3
    assert calls.count("redirect") == expected
    assert calls.count("backbone") == expected * (1 if given else 2)
    assert_equal(found, make_pass(model)(pairs), 0)


def test_a_process_without_pairs_still_takes_part(make_model: Callable[..., Any]) -> None:
    calls: list[int] = []

    def redirect(score: Callable[[], Any]) -> Any:
        calls.append(1)
        return score()

    nothing = Pairs([], [], torch.zeros(0, 7).long(), torch.zeros(0).long(), torch.zeros(0, 7).bool())
    found = make_pass(make_model(), redirect=redirect)(nothing, num_forwards=4)
    assert len(calls) == 4
    assert found.token_kl.shape == (0, 7)


def test_pairs_that_do_not_fit_are_an_error() -> None:
    pairs = make_pairs()
    with pytest.raises(ShapeError, match=r"5 completions, but \(5, 4, 5, 5\) student prompts, teacher prompts"):
        replace(pairs, teacher_prompts=pairs.teacher_prompts[:4])
    with pytest.raises(ShapeError, match="A prompt of pair 3 has no tokens"):
        replace(pairs, teacher_prompts=[[] if row == 3 else p for row, p in enumerate(pairs.teacher_prompts)])
    with pytest.raises(ShapeError, match="A prompt of pair 1 has no tokens"):
        replace(pairs, student_prompts=[[] if row == 1 else p for row, p in enumerate(pairs.student_prompts)])


# ---- the head of many families ----

TINY = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3": {"head_dim": 8},
    "Llama": {"attention_bias": True},
    "Gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0},
    "Granite": {"logits_scaling": 4.0},
    "Cohere": {"logit_scale": 0.25},
    "FalconH1": {"lm_head_multiplier": 0.125, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8},
    "Phi": {},  # its head has a bias
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4},  # absolute positions
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_gives_the_models_own_logits(family: str) -> None:
    import transformers

    config_class = getattr(transformers, f"{family}Config", None)
    if config_class is None:
        pytest.skip(f"this transformers has no {family}")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_class(**TINY, **FAMILIES[family])).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "lm_head.bias":
                parameter.normal_()
    head = output_head(model, 1.0)
    assert (head.bias is not None) == (family == "Phi")
    assert (head.softcap == 3.0) == (family == "Gemma2")
    expected_scale = {"Granite": 0.25, "Cohere": 0.25, "FalconH1": 0.125}.get(family, 1.0)
    assert head.scale == expected_scale

    rng = random.Random(0)
    ids = torch.tensor([[rng.randrange(3, 50) for _ in range(11)]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
        hidden = backbone(model)(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(head.logits(hidden, 0, 50), logits, atol=1e-9, rtol=0)
    torch.testing.assert_close(
        output_head(model, 0.5).logits(hidden, 10, 20), 2 * logits[:, 10:20], atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["lm_head"]}], ids=["plain", "trained head"])
def test_a_peft_model_is_scored_with_its_adapter(make_model: Callable[..., Any], settings: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    base = make_model(dtype=torch.float64, tie_word_embeddings=False)
    bare = plain_evidence(base.eval(), make_pairs())
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.3, **settings)
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    assert has_dropout(model)
    assert type(base_causal_lm(model)).__name__ == "Qwen3ForCausalLM"
    found = make_pass(model.train())(make_pairs())
    expected = plain_evidence(model.eval(), make_pairs())
    assert_equal(found, expected, 1e-10)
    assert (expected.student_logps - bare.student_logps).abs().max() > 0.05  # the adapter does something


def test_a_lora_adapter_on_the_head_is_refused(make_model: Callable[..., Any]) -> None:
    """Its weight alone is not what the model multiplies with: D would be wrong without a sign of it."""
    peft = pytest.importorskip("peft")
    model = make_model(tie_word_embeddings=False)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ConfigError, match=r"output head carries a PEFT adapter.*modules_to_save"):
        output_head(model, 1.0)
