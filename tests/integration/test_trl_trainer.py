"""The trainer in use: what it computes and how often, what it logs, what it works with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from trl_harness import canned, make_trainer, parameters, prompt_rows

from scgrpo import SCGRPO
from scgrpo.errors import ConfigError, IncompatibleHostError
from scgrpo.integrations.trl import compat
from scgrpo.teacher.models import backbone

Run = Callable[..., tuple[Any, Any, Any]]
MIXED = "SSFFSFFFSSSFFFFF"
CREDIT = {
    *(f"route_{name}_frac" for name in ("partial", "none_solved", "fallback")),
    *(f"token_kl_{name}" for name in ("p25", "p50", "p75", "p90", "p95", "max")),
    *("threshold", "weight_mean", "weight_mean_solved", "weight_mean_failed", "demonstration_frac"),
    *("effective_token_frac", "teacher_pass_s", "noise_floor"),
    *("demonstration_truncated_frac", "thinking_dropped_frac", "demonstration_empty_frac"),
}


def test_the_parts_of_a_step_are_timed(build: Callable[..., tuple[Any, Any]]) -> None:
    completions = canned(MIXED)
    trainer, _ = build(
        completions=completions, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=2
    )
    trainer.listeners.append(lambda _: time.sleep(0.2))
    trainer.train()
    for log in trainer.state.log_history[:2]:
        sampling, scoring, recording = (log[f"timing/{part}_s"] for part in ("sampling", "scoring", "recording"))
        assert sampling > 0
        assert scoring > 0
        assert 0.2 <= recording < log["step_time"], "it is not in the scoring"
        assert sampling + scoring + recording < log["step_time"]


def count_forwards(trainer: Any) -> list[bool]:
    """One entry per pass through the backbone: was it training (with gradient)?"""
    calls: list[bool] = []
    core = backbone(trainer.accelerator.unwrap_model(trainer.model))
    core.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    return calls


@pytest.fixture
def build(tokenizer: Any, make_model: Callable[..., Any], tmp_path: Any) -> Callable[..., tuple[Any, Any]]:
    return lambda **options: make_trainer(tmp_path, options.pop("model", None) or make_model(), tokenizer, **options)


def test_all_metrics_are_logged_and_trls_names_are_untouched(run_trainer: Run) -> None:
    ours, _, _ = run_trainer(completions=canned(MIXED), per_device_train_batch_size=16)
    theirs, _, _ = run_trainer(completions=canned(MIXED), per_device_train_batch_size=16, credit=None)
    logs = [log for log in ours.state.log_history if "loss" in log]
    names = {name.removeprefix("credit/") for name in logs[0] if name.startswith("credit/")}
    assert names >= CREDIT, CREDIT - names
    assert "credit/noise_floor" not in logs[1]  # probed once
    assert {name for name in logs[1] if not name.startswith(("credit/", "timing/"))} == {
        name for name in theirs.state.log_history[1] if not name.startswith("credit/")
    }
    assert all(isinstance(value, float) or name == "step" for name, value in logs[0].items()), logs[0]
    first = {name.removeprefix("credit/"): value for name, value in logs[0].items()}
    assert [first[f"route_{name}_frac"] for name in ("partial", "none_solved", "fallback")] == [0.5, 0.25, 0.25]
    assert first["demonstration_frac"] == 11 / 16  # 4 + 4 + 3: the demonstration of a solve-none group has none
    assert 0 < first["token_kl_p25"] < first["token_kl_p50"] < first["token_kl_p75"]
    assert first["token_kl_p75"] == pytest.approx(first["threshold"])
    assert first["noise_floor"] < 1e-5


# ---- the student's forward is not paid twice ----


@pytest.mark.parametrize(
    ("settings", "without_gradient"),
    [
        ({"teacher_timing": "generation"}, 2),  # a student pass and a teacher pass
        ({}, 1),  # the loss's forward is the student's
        ({"num_iterations": 2, "steps_per_generation": 1, "max_steps": 2}, 2),  # TRL's pass for the old log-probs
    ],
    ids=["own pass", "in the loss", "old log-probs"],
)
def test_number_of_forwards(build: Any, settings: dict[str, Any], without_gradient: int) -> None:
    options = {"completions": canned("SSFF"), "teacher_prefix_sharing": "packed", "teacher_max_tokens": 10**6}
    trainer, seen = build(**{**options, "max_steps": 1, **settings})
    trainer._evidence.probed = True  # the probe at the start has passes of its own
    calls = count_forwards(trainer)
    trainer.train()
    assert calls.count(False) == without_gradient
    assert calls.count(True) == len(seen.losses) == settings.get("max_steps", 1)


@pytest.mark.parametrize(
    ("settings", "timing"),
    [
        ({}, True),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 2}, False),
        ({"attention_dropout": 0.1}, False),
    ],
    ids=["one micro-batch", "two", "dropout"],
)
def test_scoring_is_put_in_the_loss_where_that_is_the_same(
    build: Any, make_model: Callable[..., Any], settings: dict[str, Any], timing: bool
) -> None:
    model = make_model(**{k: v for k, v in settings.items() if "dropout" in k})
    trainer, _ = build(model=model, **{k: v for k, v in settings.items() if "dropout" not in k})
    assert trainer._in_loss is timing


def test_one_product_with_the_output_head_gives_log_probs_and_divergence(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL's kernel sees only the tokens that have no teacher: those of the group that is all solved."""
    trainer, seen = build(completions=canned("SSFFSSSS"), max_steps=1)
    tokens: list[int] = []
    kernel = compat.trl_utils._ChunkedLogProbFunction

    class Counted(kernel):  # type: ignore[misc, valid-type]
        @classmethod
        def apply(cls, hidden: torch.Tensor, *rest: Any) -> Any:
            tokens.append(len(hidden))
            return kernel.apply(hidden, *rest)

    monkeypatch.setattr(compat.trl_utils, "_ChunkedLogProbFunction", Counted)
    trainer.train()
    assert tokens == [sum(len(ids) for ids in seen.scored[0].rollouts.completion_ids[4:])]
    assert compat.trl_utils._ChunkedLogProbFunction is Counted  # put back


@pytest.mark.parametrize("change", [{"top_entropy_quantile": 0.5}, {"entropy_coef": 0.01}, {"beta": 0.1}])
def test_scoring_in_the_loss_gives_it_the_same_log_probs_entropies_and_gradients(
    run_trainer: Run, change: dict[str, Any]
) -> None:
    options = {"completions": canned("SSFFSSSSFFFF"), "per_device_train_batch_size": 12, "max_steps": 2, **change}
    (first, _, a), (second, _, b) = (
        run_trainer(teacher_timing=timing, **options) for timing in ("loss", "generation")
    )
    for name in ("loss", "entropy", "grad_norm"):
        for x, y in zip(first.state.log_history[:2], second.state.log_history[:2], strict=True):
            assert x[name] == pytest.approx(y[name], abs=2e-6), name
    for (name, x), y in zip(parameters(a).items(), parameters(b).values(), strict=True):
        torch.testing.assert_close(x, y, atol=2e-6, rtol=0, msg=name)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo"])
@pytest.mark.parametrize("settings", [{}, {"teacher_timing": "generation"}, {"credit": "uniform"}], ids=str)
def test_rows_without_a_gradient_can_be_left_out(run_trainer: Run, loss_type: str, settings: dict[str, Any]) -> None:
    """Half of the rows: an all-solved group and an all-failed one, whose members are the longest."""

    def completion(batch: int, row: int) -> list[int]:
        return canned("SSFFSSSS", longest=4 if row < 4 else 8)(batch, row)

    options = {"completions": completion, "loss_type": loss_type, "max_steps": 2, **settings}
    _, whole, model = run_trainer(**options)
    _, part, other = run_trainer(drop_zero_advantages=True, **options)
    assert [len(i["completion_ids"]) for i in whole.inputs] == [8, 8]
    torch.testing.assert_close(part.losses, whole.losses, atol=1e-6, rtol=0)
    for (name, a), b in zip(parameters(model).items(), parameters(other).values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0, msg=name)


@pytest.mark.parametrize("credit", ["uniform", "sc_grpo"])
def test_left_out_rows_see_no_forward(build: Any, credit: str) -> None:
    trainer, _ = build(completions=canned("SSFFSSSS"), drop_zero_advantages=True, max_steps=1, credit=credit)
    rows: list[int] = []
    backbone(trainer.model).register_forward_hook(
        lambda _m, _a, out: rows.append(len(out.last_hidden_state)) if torch.is_grad_enabled() else None
    )
    trainer.train()
    assert rows == [4]


def test_a_method_that_credits_what_was_left_out_is_an_error(build: Any) -> None:
    class Generous(SCGRPO):
        def assign(self, groups: Any, plan: Any, evidence: Any) -> Any:
            credit = super().assign(groups, plan, evidence)
            return replace(credit, advantages=credit.advantages + 0.1)

    options = {"completions": canned("SSFFSSSS"), "drop_zero_advantages": True, "max_steps": 1}
    trainer, _ = build(trainer_options={"credit_method": Generous()}, **options)
    with pytest.raises(ConfigError, match="gave rollout 4 an advantage, but it was neither scored nor had one"):
        trainer.train()


def test_leaving_rows_out_is_refused_where_they_have_a_gradient(build: Any) -> None:
    with pytest.raises(ConfigError, match=r"top_entropy_quantile < 1: the quantile is over all rows"):
        build(drop_zero_advantages=True, top_entropy_quantile=0.5)


def test_old_log_probs_and_student_log_probs_come_from_one_pass(run_trainer: Run) -> None:
    _, seen, _ = run_trainer(completions=canned("SSFF"), num_iterations=2, max_steps=1)
    scored, inputs = seen.scored[0], seen.inputs[0]
    old = {
        tuple(ids[:n]): logps[:n]
        for ids, n, logps in zip(
            inputs["completion_ids"].tolist(),
            inputs["completion_mask"].sum(1).tolist(),
            inputs["old_per_token_logps"].tolist(),
            strict=True,
        )
    }
    for pair, row in enumerate(scored.plan.rollout.tolist()):
        ids = tuple(scored.rollouts.completion_ids[row])
        assert scored.evidence.student_logps[pair, : len(ids)].tolist() == pytest.approx(old[ids], abs=1e-5)


def test_dropout_is_off_while_scoring_and_on_while_training(build: Any, make_model: Callable[..., Any]) -> None:
    """TRL's own no-grad passes leave it on: there, the same context would differ from itself."""
    model = make_model(attention_dropout=0.5)
    trainer, seen = build(model=model, completions=canned("SSFF"), num_iterations=2, max_steps=1)
    modes: list[tuple[bool, bool]] = []
    layer = backbone(model).layers[0].self_attn
    layer.register_forward_hook(lambda module, *_: modes.append((torch.is_grad_enabled(), module.training)))
    trainer.train()
    assert (True, True) in modes
    assert (False, False) in modes  # ours
    assert (True, False) not in modes
    expected = seen.scored[0].evidence.token_kl
    other, again = build(model=make_model(), completions=canned("SSFF"), num_iterations=2, max_steps=1)
    other.train()
    torch.testing.assert_close(expected, again.scored[0].evidence.token_kl, atol=1e-5, rtol=0)


def test_scoring_in_the_loss_is_refused_with_dropout(build: Any, make_model: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="scores with the loss's own forward, whose dropout is on"):
        build(model=make_model(attention_dropout=0.1), teacher_timing="loss")


# ---- what it works with ----


def test_lora_is_scored_with_its_adapter_and_without_its_dropout(run_trainer: Run) -> None:
    from peft import LoraConfig

    def run(steps: int) -> tuple[Any, Any, Any]:
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.2, init_lora_weights=False)
        options = {"completions": canned("SSFF"), "trainer_options": {"peft_config": lora}, "learning_rate": 1.0}
        return run_trainer(max_steps=steps, **options)

    trainer, _, _ = run(1)
    assert all("lora" in name for name, p in trainer.model.named_parameters() if p.requires_grad)
    _, seen, _ = run(2)
    model, scored = trainer.model.eval(), seen.scored[1]  # the policy as it was when the second batch was scored
    row = int(scored.plan.rollout[0])
    prompt, ids = scored.prompt_ids[row], scored.rollouts.completion_ids[row]

    def logps() -> list[float]:
        with torch.no_grad():
            rows = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return rows[range(len(ids)), ids].tolist()

    found = scored.evidence.student_logps[0, : len(ids)].tolist()
    assert found == pytest.approx(logps(), abs=1e-5)
    with model.disable_adapter():
        assert found != pytest.approx(logps(), abs=1e-2)


@pytest.mark.parametrize("kind", ["topk", "k1", "k3"])
@pytest.mark.parametrize("timing", ["loss", "generation"])
def test_approximations_train_in_place_of_the_exact_divergence(run_trainer: Run, kind: str, timing: str) -> None:
    options = {"completions": canned("SSFF"), "max_steps": 1, "teacher_timing": timing}
    _, exact, _ = run_trainer(**options)
    _, seen, _ = run_trainer(divergence=kind, divergence_topk=4, **options)
    a, b = seen.scored[0].evidence, exact.scored[0].evidence
    assert (a.token_kl - b.token_kl).abs().max() > 1e-3
    torch.testing.assert_close(a.student_logps, b.student_logps, atol=1e-6, rtol=0)
    if kind == "topk":
        assert bool((a.token_kl <= b.token_kl + 1e-6).all())


def test_bf16_weights(run_trainer: Run, make_model: Callable[..., Any]) -> None:
    options = {"model": make_model(dtype=torch.bfloat16), "completions": canned("SSFF"), "max_steps": 2}
    with pytest.warns(UserWarning, match=r"identical contexts is \d\.\de-0\d nats here.* Set credit_floor"):
        _, seen, _ = run_trainer(**options)
    weights = seen.scored[0].credit.weights
    assert torch.isfinite(weights).all()
    assert seen.scored[0].evidence.token_kl.dtype == torch.float32
    assert 0 < weights[seen.scored[0].groups.mask].mean() < 1


def test_truncated_rollouts_that_are_masked_get_no_credit_and_are_no_demonstrations(run_trainer: Run) -> None:
    _, seen, _ = run_trainer(completions=canned("SsSFfFSS"), num_generations=8, mask_truncated_completions=True)
    for scored in seen.scored:
        assert set(scored.plan.rollout.tolist()) == {0, 2, 3, 5, 6, 7}
        assert set(scored.plan.demonstration.tolist()) <= {0, 2, 6, 7}
        assert scored.groups.truncated.tolist() == [False, True, False, False, True, False, False, False]


def test_a_checkpointed_model_gets_the_same_credit(run_trainer: Run) -> None:
    options = {"completions": canned(MIXED), "per_device_train_batch_size": 16, "max_steps": 1}
    _, plain, _ = run_trainer(**options)
    for timing in ("generation", "loss"):
        _, seen, _ = run_trainer(gradient_checkpointing=True, teacher_timing=timing, **options)
        torch.testing.assert_close(
            seen.scored[0].credit.advantages, plain.scored[0].credit.advantages, atol=1e-6, rtol=0
        )


def test_evaluation_measures_and_assigns_no_credit(build: Any) -> None:
    from datasets import Dataset

    trainer, seen = build(
        completions=canned("SSFF"),
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=4,
        trainer_options={"eval_dataset": Dataset.from_list(prompt_rows(4))},
    )
    trainer.train()
    evals = [log for log in trainer.state.log_history if "eval_reward" in log]
    assert len(evals) == 2
    assert not any("credit" in name for log in evals for name in log)
    assert len(seen.scored) == 2


def test_plain_prompts_continue_as_text(run_trainer: Run, tokenizer: Any) -> None:
    """Without a chat, the demonstration stands before the prompt in plain text."""
    _, seen, _ = run_trainer(completions=canned("SSFF"), rows=prompt_rows(8, conversational=False), max_steps=1)
    scored = seen.scored[0]
    shown = tokenizer.decode(scored.teacher_prompt_ids[0])
    assert shown.endswith(tokenizer.decode(scored.prompt_ids[int(scored.plan.rollout[0])]))
    assert scored.demonstrations[int(scored.plan.demonstration[0])].text in shown


@pytest.mark.parametrize("kind", ["snapshot", "ema", "frozen"])
def test_other_teacher_weights_train_and_differ_from_the_policys(run_trainer: Run, kind: str) -> None:
    options = {"completions": canned("SSFF"), "learning_rate": 0.5, "max_steps": 3}
    _, seen, _ = run_trainer(teacher_weights=kind, teacher_snapshot_steps=2, **options)
    _, current, _ = run_trainer(**options)
    same = [
        torch.allclose(a.evidence.teacher_logps, b.evidence.teacher_logps, atol=1e-5)
        for a, b in zip(seen.scored, current.scored, strict=True)
    ]
    assert same[0]
    assert not same[-1] if kind != "snapshot" else same == [True, False, False]


def test_nothing_is_left_changed_in_the_model(run_trainer: Run, make_model: Callable[..., Any]) -> None:
    _, _, model = run_trainer(completions=canned("SSFF"), learning_rate=0.0)
    assert model.config._attn_implementation == "sdpa"
    for (name, a), b in zip(parameters(model).items(), parameters(make_model()).values(), strict=True):
        assert torch.equal(a, b), name


# ---- the host ----


def test_another_trl_is_refused_before_anything_is_trained() -> None:
    class Renamed:
        def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any) -> None: ...

    with pytest.raises(IncompatibleHostError, match=r"_calculate_rewards takes \['self', 'inputs', 'prompts'"):
        compat.check_host(Renamed)

    class OneAdvantage(compat.GRPOTrainer):  # type: ignore[misc]
        def _compute_loss(self, model: Any, inputs: Any) -> None: ...

    with pytest.raises(IncompatibleHostError, match="no longer accepts per-token advantages"):
        compat.check_host(OneAdvantage)


def test_a_loss_that_reads_advantages_too_early_cannot_train(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """teacher_timing='loss' fills them in during the forward; until then they are NaN, never a silent default."""
    from scgrpo.errors import NonFiniteError

    trainer, _ = build(completions=canned("SSFF"), teacher_timing="loss", max_steps=1)
    before = parameters(trainer.model)
    monkeypatch.setattr(type(trainer), "_credit_in_loss", lambda self, states, tokens, kernel: kernel(states, tokens))
    with pytest.raises(NonFiniteError, match="The loss is nan"):
        trainer.train()
    for name, value in parameters(trainer.model).items():
        assert torch.equal(value, before[name])
