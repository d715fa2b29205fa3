"""Distillation in the trainer against a plain loop with full logits, and what it shows the teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trl_harness import canned, make_trainer, parameters, prompt_rows

from scgrpo.errors import ConfigError, DataError
from scgrpo.integrations.trl.distillation import mean_over_tokens

Run = Callable[..., tuple[Any, Any, Any]]
OF_THE_METHOD = "of the method"
# One solved; two; none; all.
LETTERS = "SFFFSSFFFFFFSSSS"
COMMON: dict[str, Any] = {
    "credit": OF_THE_METHOD,
    "completions": canned(LETTERS),
    "per_device_train_batch_size": 16,
    "max_grad_norm": 0.0,
    "learning_rate": 0.5,
    "lr_scheduler_type": "constant",
}


def with_solutions(count: int = 8) -> list[dict[str, Any]]:
    return [{**row, "solution": f"a {row['number']} b"} for row in prompt_rows(count)]


# ---- the plain loop ----


def log_probs(model: Any, prompt: list[int], completion: list[int]) -> Tensor:
    """(T, V) of the completion's tokens."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def kl(a: Tensor, b: Tensor) -> Tensor:
    return (a.exp() * (a - b)).sum(-1)


def divergence(settings: dict[str, Any], log_p: Tensor, log_q: Tensor, tokens: Tensor) -> Tensor:
    """(T,) written out from the formulas."""
    kind, clip = settings["distill_divergence"], settings.get("distill_clip", 0.0)
    if clip:
        assert kind == "forward"
        return (log_q.exp() * (log_q - log_p)).clamp(max=clip).sum(-1)
    if kind == "jsd":
        log_m = ((log_p.exp() + log_q.exp()) / 2).log()
        return (kl(log_q, log_m) + kl(log_p, log_m)) / 2
    if kind == "sampled":  # a policy gradient with A_t = Delta_t; its value is minus Delta_t
        logp, logq = (x.gather(1, tokens[:, None])[:, 0] for x in (log_p, log_q))
        delta = (logq - logp).detach()
        return -delta * (1 + logp - logp.detach())
    return {
        "forward": kl(log_q, log_p),
        "reverse": kl(log_p, log_q),
        "both": (kl(log_q, log_p) + kl(log_p, log_q)) / 2,
    }[kind]


def plain_term(student: Any, teacher: Any, inputs: dict[str, Tensor], settings: dict[str, Any]) -> Tensor:
    """The distillation loss of a batch of TRL's, row by row."""
    rows, tokens_in_all = [], 0
    for row in range(len(inputs["completion_ids"])):
        mask = inputs["completion_mask"][row].bool()
        completion = inputs["completion_ids"][row][mask]
        tokens_in_all += len(completion)
        length = int(inputs["distill_prompt_lengths"][row])
        if not length:
            rows.append(torch.zeros(len(completion)))
            continue
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist()
        shown = inputs["distill_prompt_ids"][row, :length].tolist()
        log_p = log_probs(student, prompt, completion.tolist())
        with torch.no_grad():
            log_q = log_probs(teacher, shown, completion.tolist())
        values = divergence(settings, log_p, log_q, completion)
        if settings.get("distill_is_clip") and "old_per_token_logps" in inputs:
            logps = log_p.gather(1, completion[:, None])[:, 0].detach()
            ratio = (logps - inputs["old_per_token_logps"][row][mask]).exp()
            values = values * ratio.clamp(max=settings["distill_is_clip"])
        rows.append(values)
    if settings["loss_type"] == "grpo":
        return torch.stack([values.mean() for values in rows]).mean()
    return torch.cat(rows).sum() / tokens_in_all


METHODS: dict[str, dict[str, Any]] = {
    "opsd": {"method": "opsd", "distill_divergence": "forward", "distill_clip": 0.05, "loss_type": "dapo"},
    "opsd sampled": {"method": "opsd", "distill_divergence": "sampled", "distill_clip": 0.0, "loss_type": "dapo"},
    "sdpo": {"method": "sdpo", "distill_divergence": "jsd", "loss_type": "dapo", "distill_is_clip": 2.0},
    "sdpo of trl": {"method": "sdpo", "distill_divergence": "sampled", "loss_type": "grpo", "distill_is_clip": 1.1},
    "forward": {"method": "sdpo", "distill_divergence": "forward", "loss_type": "dapo"},
    "reverse": {"method": "sdpo", "distill_divergence": "reverse", "loss_type": "grpo"},
    "both": {"method": "sdpo", "distill_divergence": "both", "loss_type": "grpo"},
}


def options(settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    rows = {"rows": with_solutions()} if settings["method"] == "opsd" else {}
    return {**COMMON, **rows, "teacher_weights": "frozen", **settings, **more}


def stepped(model: Any, loss: Tensor) -> None:
    """One step of plain SGD."""
    model.zero_grad()
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.data -= COMMON["learning_rate"] * parameter.grad


def assert_close_parameters(found: Any, expected: Any) -> None:
    for (name, a), b in zip(parameters(found).items(), parameters(expected).values(), strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("name", METHODS)
def test_a_pure_method_is_its_formula(run_trainer: Run, make_model: Any, name: str) -> None:
    """Losses and steps: the teacher is the start, while the student moves. Group advantages have no part in it, and
    groups without a mixed outcome train as well."""
    settings = METHODS[name]
    student, teacher = make_model(), make_model()
    trainer, seen, model = run_trainer(make_model(), **options(settings))
    assert len(seen.losses) == 3
    for inputs, loss in zip(seen.inputs, seen.losses, strict=True):
        expected = plain_term(student, teacher, inputs, settings)
        torch.testing.assert_close(loss, expected.detach(), atol=2e-5, rtol=1e-3)
        assert not inputs["advantages"].any()
        stepped(student, expected)
    assert_close_parameters(model, student)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), teacher.parameters(), strict=True))
    logs = trainer.state.log_history[0]
    assert logs["distill/coef"] == 1.0
    assert logs["distill/teacher_frac"] == (1.0 if settings["method"] == "opsd" else 11 / 16)


@pytest.mark.parametrize("name", ["sdpo", "sdpo of trl"])
def test_ratios_are_cut_off_where_a_batch_is_used_twice(run_trainer: Run, make_model: Any, name: str) -> None:
    settings = {**METHODS[name], "distill_is_clip": 1.05}
    student, teacher = make_model(), make_model()
    _, seen, _ = run_trainer(make_model(), **options(settings, num_iterations=2, max_steps=2))
    first, second = seen.inputs
    assert torch.equal(first["completion_ids"].sort(dim=0).values, second["completion_ids"].sort(dim=0).values)
    stepped(student, plain_term(student, teacher, first, settings))
    with torch.no_grad():
        expected = plain_term(student, teacher, second, settings)
        without = plain_term(student, teacher, second, {**settings, "distill_is_clip": 0.0})
    torch.testing.assert_close(seen.losses[1], expected, atol=2e-5, rtol=1e-3)
    assert (expected - without).abs() > 1e-4  # the ratios are not 1 any more


@pytest.mark.parametrize(
    ("divergence_name", "warmup"), [("forward", {}), ("reverse", {}), ("both", {"distill_warmup_steps": 2})]
)
def test_the_additive_loss_is_grpo_and_beta_kl(
    run_trainer: Run, make_model: Any, divergence_name: str, warmup: dict[str, Any]
) -> None:
    """The teacher is the live student; its gradient stops there."""
    settings = {"distill_divergence": divergence_name, "loss_type": "grpo"}
    schedule = {**warmup, "distill_start_coef": 0.03} if warmup else {}
    trainer, seen, model = run_trainer(
        make_model(), **COMMON, method="grpo_kl", distill_divergence=divergence_name, **schedule
    )
    coefficients = [0.03, 0.065, 0.1] if warmup else [0.1, 0.1, 0.1]
    logged = [log["distill/coef"] for log in trainer.state.log_history if "distill/coef" in log]
    assert logged == pytest.approx(coefficients)
    student = make_model()
    for inputs, loss, beta in zip(seen.inputs, seen.losses, coefficients, strict=True):
        # Only the second group has two solved and a failed one.
        distilled = inputs["distill_prompt_lengths"] > 0
        assert int(distilled.sum()) == 4
        term = plain_term(student, student, inputs, settings)
        policy = -torch.stack(
            [
                (inputs["advantages"][row] * policy_ratio(student, inputs, row)).mean()
                for row in range(len(inputs["completion_ids"]))
            ]
        ).mean()
        torch.testing.assert_close(loss, (policy + beta * term).detach(), atol=2e-5, rtol=1e-3)
        stepped(student, policy + beta * term)
    assert_close_parameters(model, student)


def policy_ratio(model: Any, inputs: dict[str, Tensor], row: int) -> Tensor:
    """(T,) pi / sg[pi]."""
    prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist()
    completion = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()]
    logps = log_probs(model, prompt, completion.tolist()).gather(1, completion[:, None])[:, 0]
    return (logps - logps.detach()).exp()


def test_policy_coef_scales_the_policy_gradient_of_a_credit_method(run_trainer: Run) -> None:
    """SC-GRPO's weights and an additive loss at once; rollouts are then scored after sampling."""
    shared = {**COMMON, "credit": "sc_grpo", "max_steps": 1, "teacher_timing": "generation"}
    _, alone, _ = run_trainer(**shared)
    auto = {**shared, "teacher_timing": "auto"}
    trainer, both, _ = run_trainer(**auto, policy_coef=0.5, distill_coef=1e-12, distill_context="partial")
    assert not trainer._in_loss
    torch.testing.assert_close(both.inputs[0]["advantages"], 0.5 * alone.inputs[0]["advantages"])
    torch.testing.assert_close(both.losses[0], 0.5 * alone.losses[0], atol=1e-6, rtol=1e-5)


# ---- the host's mean ----


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo", "dr_grpo"])
def test_the_mean_over_tokens_is_trls(run_trainer: Run, loss_type: str, accumulation: int) -> None:
    """On the first update every ratio is 1, and a token adds minus its advantage to TRL's loss."""
    trainer, seen, _ = run_trainer(
        credit=None,
        loss_type=loss_type,
        completions=canned("SFFFSSFF"),
        gradient_accumulation_steps=accumulation,
        max_steps=1,
    )
    trainer.current_gradient_accumulation_steps = accumulation
    for inputs, loss in zip(seen.inputs, seen.losses, strict=True):
        per_token = -inputs["advantages"][:, None] * inputs["completion_mask"]
        torch.testing.assert_close(mean_over_tokens(trainer, inputs, per_token), loss, atol=1e-6, rtol=1e-5)


# ---- what the teacher is shown ----


def shown_words(trainer: Any, inputs: dict[str, Tensor]) -> dict[int, str]:
    """Teacher prompts by row of the loss."""
    lengths = inputs["distill_prompt_lengths"].tolist()
    return {
        row: trainer.processing_class.decode(inputs["distill_prompt_ids"][row, :length])
        for row, length in enumerate(lengths)
        if length
    }


@pytest.mark.parametrize(("context", "teachers"), [("sibling", 3 + 4 + 4), ("partial", 4)])
def test_a_sibling_is_solved_and_not_oneself(run_trainer: Run, context: str, teachers: int) -> None:
    trainer, seen, _ = run_trainer(
        **COMMON, method="sdpo", distill_context=context, teacher_template="tiny", max_steps=2
    )
    for inputs, scored in zip(seen.inputs, seen.scored, strict=True):
        texts = scored.rollouts.completions
        completions = [t[0]["content"] for t in texts]
        prompts = shown_words(trainer, inputs)
        assert len(prompts) == teachers
        for row, prompt in prompts.items():
            ids = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()]
            own = trainer.processing_class.decode(ids, skip_special_tokens=True)
            start = completions.index(own) // 4 * 4
            demonstration = prompt.split("verified ")[1].split(" <user>")[0]
            others = [c for c in completions[start : start + 4] if c != own and c.startswith("a")]
            if completions.count(own) == 1:
                assert demonstration in others


def test_the_reference_is_the_rows_own(run_trainer: Run) -> None:
    trainer, seen, _ = run_trainer(**COMMON, rows=with_solutions(), method="opsd", teacher_template="tiny")
    for inputs in seen.inputs:
        prompts = shown_words(trainer, inputs)
        assert len(prompts) == 16
        for prompt in prompts.values():
            demonstration = prompt.split("verified ")[1].split(" <user>")[0]
            number = demonstration.split(" ")[1]
            assert demonstration == f"a {number} b"
            assert f"solve {number} " in prompt


def test_a_row_without_a_reference_is_named(run_trainer: Run) -> None:
    rows = [{**row, "solution": "" if row["number"] == 3 else "a b"} for row in prompt_rows(8)]
    with pytest.raises(DataError, match=r"solve 3.*'solution'"):
        run_trainer(**COMMON, rows=rows, method="opsd", max_steps=8)


def test_without_a_teacher_nothing_happens(run_trainer: Run, make_model: Any) -> None:
    """Groups in which nothing is solved have none, and add 0."""
    start = make_model()
    trainer, seen, model = run_trainer(make_model(), **{**COMMON, "completions": canned("FFFF")}, method="sdpo")
    assert [loss.item() for loss in seen.losses] == [0, 0, 0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))
    assert trainer.state.log_history[0]["distill/teacher_frac"] == 0


def test_many_micro_batches_are_one(run_trainer: Run) -> None:
    """Teacher prompts stay with their rollouts when TRL shuffles and cuts the generation batch."""
    whole = run_trainer(**COMMON, method="sdpo", max_steps=2)[2]
    cut = {**COMMON, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    assert_close_parameters(run_trainer(**cut, method="sdpo", max_steps=2)[2], whole)


def test_an_adapter_learns_from_its_base(run_trainer: Run, make_model: Any) -> None:
    """With LoRA, the frozen teacher is the adapter at its start."""
    from peft import LoraConfig

    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    settings = METHODS["sdpo"]
    trainer, seen, _ = run_trainer(make_model(), **options(settings), trainer_options={"peft_config": adapter})
    plain = make_model()
    expected = plain_term(plain, plain, seen.inputs[0], settings)  # an adapter starts as nothing
    torch.testing.assert_close(seen.losses[0], expected.detach(), atol=2e-5, rtol=1e-3)
    assert len({loss.item() for loss in seen.losses}) == 3
    assert torch.equal(trainer.model.base_model.model.lm_head.weight, make_model().lm_head.weight)


# ---- another model as the teacher ----


@pytest.fixture
def teacher_folder(make_model: Any, tokenizer: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "teacher"
    make_model(seed=5, hidden_size=48).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["reverse", "forward", "jsd", "sampled"])
def test_another_model_teaches(run_trainer: Run, make_model: Any, teacher_folder: Path, kind: str) -> None:
    """Of another width; it sees the prompt alone and needs no verdict."""
    settings = {"distill_divergence": kind, "loss_type": "dapo"}
    student, teacher = make_model(), make_model(seed=5, hidden_size=48)
    trainer, seen, model = run_trainer(
        make_model(), **COMMON, method="opd", distill_divergence=kind, teacher_model_name_or_path=str(teacher_folder)
    )
    for inputs, loss in zip(seen.inputs, seen.losses, strict=True):
        assert (inputs["distill_prompt_lengths"] == inputs["prompt_mask"].sum(1)).all()
        expected = plain_term(student, teacher, inputs, settings)
        torch.testing.assert_close(loss, expected.detach(), atol=2e-5, rtol=1e-3)
        stepped(student, expected)
    assert_close_parameters(model, student)
    assert trainer.state.log_history[0]["distill/teacher_frac"] == 1


def test_a_student_that_is_its_teacher_stays(
    run_trainer: Run, make_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path / "same")
    tokenizer.save_pretrained(tmp_path / "same")
    _, seen, model = run_trainer(
        make_model(), **COMMON, method="opd", teacher_model_name_or_path=str(tmp_path / "same")
    )
    assert max(abs(loss.item()) for loss in seen.losses) < 1e-5
    for a, b in zip(model.parameters(), make_model().parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


# ---- refusals ----


@pytest.fixture
def build(tokenizer: Any, make_model: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    return lambda **more: make_trainer(tmp_path / "out", make_model(), tokenizer, **{**COMMON, **more})[0]


def test_a_teacher_with_another_vocabulary_is_refused(
    build: Callable[..., Any], make_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    make_model(vocab_size=len(tokenizer) + 3).save_pretrained(tmp_path / "wider")
    tokenizer.save_pretrained(tmp_path / "wider")
    with pytest.raises(ConfigError, match="another vocabulary"):
        build(method="opd", teacher_model_name_or_path=str(tmp_path / "wider"))
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["new"])
    make_model().save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="another vocabulary"):
        build(method="opd", teacher_model_name_or_path=str(tmp_path / "other"))


def test_a_teacher_that_is_not_there_is_an_error_that_says_so(build: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        build(method="opd", teacher_model_name_or_path=str(tmp_path / "nowhere"))


def test_a_missing_column_is_refused_at_the_start(build: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="no column 'solution'"):
        build(method="opsd")
