"""Every credit method through the trainer, and the combinations of settings that cannot work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from trl_harness import canned, make_trainer, parameters, prompt_rows, starts_with_a

from scgrpo import SCGRPO, SCGRPOConfig
from scgrpo.credit import NONE, RLSD, STARE, Plan, credit_method_names
from scgrpo.errors import ConfigError
from scgrpo.integrations.trl.recorder import RunRecorder
from scgrpo.report.heatmap import build_sections
from scgrpo.runs import RunDirectory
from scgrpo.teacher.models import backbone

Run = Callable[..., tuple[Any, Any, Any]]
# A group of each route, two failed and two solved in the first; the last letters are cut-off rollouts.
MIXED = "SSFFSFFFSSSSFFFFSSsf"
LAGGING = {"rlsd", "rlcsd", "cast"}  # need a teacher of their own
METHODS = sorted(
    {
        *("permuted", "random", "entropy", "other_prompt", "failed", "oracle"),
        *("rlsd", "antisd", "cast", "entropy_mask", "stare", "rlcsd", "rlcsd_weight"),
        *("value_baseline", "value_own"),
    }
)


def blames(position: int) -> Any:
    """The verifier, who also says where a failed rollout goes wrong."""

    def reward(completions: list[Any], **_: Any) -> list[float]:
        scores = starts_with_a(completions)
        reward.first_error = [None if score else position for score in scores]  # type: ignore[attr-defined]
        return scores

    reward.first_error = []  # type: ignore[attr-defined]
    return reward


@pytest.fixture
def build(tokenizer: Any, make_model: Callable[..., Any], tmp_path: Any) -> Callable[..., tuple[Any, Any]]:
    return lambda **more: make_trainer(tmp_path, make_model(), tokenizer, **more)


def options(credit: str, **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "credit": credit.replace("value_own", "value_baseline"),
        "completions": canned(MIXED),
        "per_device_train_batch_size": 20,
    }
    if credit in LAGGING:
        given |= {"teacher_weights": "snapshot", "teacher_snapshot_steps": 2}
    if credit == "value_own":
        given["credit_value_features"] = "own"
    if credit == "oracle":
        given["reward_funcs"] = blames(0)
    return {**given, **more}


def test_no_method_is_forgotten() -> None:
    assert set(METHODS) - {"value_own"} == set(credit_method_names()) - {"sc_grpo", "uniform", "reinforce++"}


@pytest.mark.parametrize("credit", METHODS)
def test_each_trains_the_same_with_either_timing(run_trainer: Run, credit: str) -> None:
    trainer, seen, a = run_trainer(**options(credit, max_steps=2))
    assert trainer._in_loss
    _, other, b = run_trainer(**options(credit, max_steps=2, teacher_timing="generation"))
    assert len(seen.scored) == 2
    for scored, again in zip(seen.scored, other.scored, strict=True):
        assert len(scored.plan)
        assert scored.credit.advantages.isfinite().all()
        torch.testing.assert_close(scored.credit.weights, again.credit.weights, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(seen.losses, other.losses, atol=1e-4, rtol=1e-3)
    for (name, x), y in zip(parameters(a).items(), parameters(b).values(), strict=True):
        assert x.isfinite().all()
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-3, msg=name)
    logs = trainer.state.log_history[0]
    assert "credit/weight_mean" in logs
    assert "credit/route_partial_frac" in logs


@pytest.mark.parametrize(("credit", "in_loss", "after"), [("entropy_mask", 0, 1), ("stare", 0, 1), ("oracle", 0, 1)])
def test_without_a_demonstration_there_is_no_pass_of_a_teacher(
    build: Any, credit: str, in_loss: int, after: int
) -> None:
    for timing, expected in (("loss", in_loss), ("generation", after)):
        one_pass = {"teacher_prefix_sharing": "packed", "teacher_max_tokens": 10**6}
        trainer, _ = build(**options(credit, max_steps=1, teacher_timing=timing, **one_pass))
        calls: list[bool] = []
        backbone(trainer.model).register_forward_hook(lambda *_, calls=calls: calls.append(torch.is_grad_enabled()))
        trainer.train()
        assert calls.count(False) == expected
        assert "credit/noise_floor" not in trainer.state.log_history[0]  # nothing to probe


@pytest.mark.parametrize("settings", [{}, {"num_iterations": 2}], ids=["own pass", "old log-probs"])
@pytest.mark.parametrize("teacher", ["current", "snapshot"])
def test_pairs_of_every_kind_agree_with_each_other(run_trainer: Run, teacher: str, settings: dict[str, Any]) -> None:
    """Rollout 2 under 0, under 1, under both and under nothing, rollout 6 of another prompt under 0."""

    class Kinds(SCGRPO):
        def plan(self, groups: Any, rng: Any) -> Plan:
            rollout = torch.tensor([2, 2, 2, 2, 6])
            shown, contrast = torch.tensor([0, 1, 0, NONE, 0]), torch.tensor([NONE, NONE, 1, NONE, NONE])
            return Plan(rollout, shown, torch.zeros(5, dtype=torch.bool), contrast)

    more = {"teacher_weights": teacher, "teacher_snapshot_steps": 10, "trainer_options": {"credit_method": Kinds()}}
    trainer, seen, _ = run_trainer(completions=canned("SSFF"), max_steps=3, **more, **settings)
    scored = seen.scored[0]
    found = scored.evidence
    assert trainer._in_loss
    assert found.teacher_logps[0].any()
    close = {"atol": 2e-5, "rtol": 0}
    torch.testing.assert_close(found.teacher_logps[2], found.teacher_logps[0], **close)
    torch.testing.assert_close(found.student_logps[2], found.teacher_logps[1], **close)
    torch.testing.assert_close(found.student_logps[0], found.student_logps[1], **close)
    torch.testing.assert_close(found.teacher_logps[3], found.student_logps[0], **close)  # a new snapshot
    assert found.token_kl[3].abs().max() < 1e-6
    assert found.token_kl[2].max() > 1e-3
    assert (found.teacher_logps[0] - found.teacher_logps[1]).abs().max() > 1e-3
    assert list(scored.teacher_prompt_ids[3]) == list(scored.prompt_ids[2])
    assert scored.demonstrations.keys() == {0, 1}
    if "num_iterations" not in settings:
        return
    later = seen.scored[-1].evidence  # after an optimizer step the snapshot lags behind
    assert (later.token_kl[3].max() > 1e-6) == (teacher == "snapshot")


def test_the_host_tells_step_tokens_and_first_errors(run_trainer: Run) -> None:
    _, seen, _ = run_trainer(**options("oracle", max_steps=2, completions=canned("SSFFSFFF"), reward_funcs=blames(1)))
    for step, scored in enumerate(seen.scored):
        groups = scored.groups
        assert groups.step == step
        assert torch.equal(groups.first_error >= 0, ~groups.solved)
        for row, ids in enumerate(scored.rollouts.completion_ids):
            assert groups.completion_ids[row, : len(ids)].tolist() == ids


def test_first_errors_of_other_rollouts_are_not_used(run_trainer: Run) -> None:
    def reward(completions: list[Any], **_: Any) -> list[float]:
        return starts_with_a(completions)

    reward.first_error = [0]  # type: ignore[attr-defined]
    _, seen, _ = run_trainer(**options("oracle", max_steps=1, reward_funcs=reward))
    assert (seen.scored[0].groups.first_error == -1).all()
    assert len(seen.scored[0].plan) == 0


def test_demonstrations_by_similarity(run_trainer: Run) -> None:
    _, seen, _ = run_trainer(completions=canned("SSSF"), max_steps=1, credit_demonstrations="nearest")
    assert len(seen.scored[0].plan) == 8


@pytest.mark.parametrize("timing", ["loss", "generation"])
def test_earlier_solutions_are_shown_when_a_prompt_comes_back(run_trainer: Run, timing: str) -> None:
    more = {"credit_demonstrations": "buffer", "rows": prompt_rows(2), "teacher_timing": timing}
    _, seen, _ = run_trainer(completions=canned("SSFFSSSF"), max_steps=3, **more)
    first, second = seen.scored[:2]
    assert (first.plan.demonstration < 8).all()
    assert (second.plan.demonstration >= 8).all()
    solutions = {
        str(prompt): [
            c for c, p in zip(first.rollouts.completions, first.rollouts.prompts, strict=True) if p == prompt
        ]
        for prompt in first.rollouts.prompts
    }
    for pair, row in enumerate(second.plan.rollout.tolist()):
        known = [c[0]["content"] for c in solutions[str(second.rollouts.prompts[row])]]
        text = second.demonstrations[int(second.plan.demonstration[pair])].text
        assert text in known
        assert text.split()[0] == "a"


# ---- what is recorded ----


@pytest.mark.parametrize(
    ("credit", "heading"),
    [
        ("other_prompt", "Demonstration: a rollout of another prompt or batch"),
        ("stare", "No demonstration: its weights need none."),
        ("failed", "of the same group, failed"),
    ],
)
def test_records_and_reports_say_what_was_shown(
    build: Any, tokenizer: Any, tmp_path: Any, credit: str, heading: str
) -> None:
    trainer, _ = build(**options(credit, max_steps=1))
    run = RunDirectory.create(tmp_path / "run")
    trainer.listeners.append(RunRecorder(run, tokenizer, every=1, num_groups=1).record)
    trainer.train()
    headings = [card.demonstration_heading for card in build_sections({0: run.rollouts(0)})[0].cards]
    assert headings
    assert all(heading in text for text in headings)


# ---- settings ----


def test_unset_options_are_the_methods_own(tmp_path: Any) -> None:
    base = {"use_cpu": True, "bf16": False, "report_to": "none"}
    args = SCGRPOConfig(str(tmp_path), credit="rlsd", teacher_weights="snapshot", **base)
    assert args.credit_method() == RLSD()
    args = SCGRPOConfig(str(tmp_path), credit="stare", credit_strength=0.3, credit_entropy_gate=1.0, **base)
    assert args.credit_method() == STARE(strength=0.3, entropy_gate=1.0)


@pytest.mark.parametrize("credit", sorted(LAGGING))
def test_a_teacher_that_is_the_policy_is_refused_by_those_who_need_another(
    build: Any, tmp_path: Any, credit: str
) -> None:
    with pytest.raises(ConfigError, match=f"'{credit}' needs a teacher that lags.*to one of snapshot, ema, frozen"):
        SCGRPOConfig(str(tmp_path), credit=credit, use_cpu=True, bf16=False, report_to="none")
    method = SCGRPOConfig(
        str(tmp_path), credit=credit, teacher_weights="ema", use_cpu=True, bf16=False, report_to="none"
    ).credit_method()
    with pytest.raises(ConfigError, match="needs a teacher that lags"):
        build(trainer_options={"credit_method": method})


def test_the_oracle_is_refused_without_someone_who_knows(build: Any) -> None:
    with pytest.raises(ConfigError, match="Oracle needs to know where failed rollouts go wrong"):
        build(credit="oracle")
