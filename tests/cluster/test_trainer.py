"""Two whole steps of `trainer_mode=scgrpo`: what it decides is what the method says, and it leaves the rest alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness import LONG, Run, as_overrides, settings, started
from toy import Inputs

from scgrpo.cli.main import main
from scgrpo.credit import Route
from scgrpo.runs import RunDirectory


@pytest.fixture(scope="module")
def run(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("scgrpo")
    values = settings(inputs, folder, mode="scgrpo_probe") | {"+trainer.v1.scgrpo.rollouts_every": 1}
    environment = {"PROBE_FOLDER": str(folder)}
    with started(folder, as_overrides(values), modules=["probe"], environment=environment) as run:
        run.code = run.wait(LONG)
        yield run


@pytest.fixture(scope="module")
def steps(run: Run) -> list[dict[str, Any]]:
    assert run.code == 0, run.output[-6000:]
    return [torch.load(run.folder / f"step-{step}.pt", weights_only=True) for step in (1, 2)]


def test_both_steps_had_something_to_weight(steps: list[dict[str, Any]]) -> None:
    for step in steps:
        assert step["replay_buffer"] == "ReplayBuffer"  # of synchronous training, not the asynchronous one
    assert sum(len(step["plan"]["rollout"]) for step in steps) >= 4


def test_token_kl_is_that_of_a_plain_forward_per_sequence(inputs: Inputs, steps: list[dict[str, Any]]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(inputs.model, attn_implementation="eager", dtype=torch.float32)
    model.eval()
    step = steps[0]  # later ones have other weights
    checked = 0
    for pair, row in enumerate(step["plan"]["rollout"].tolist()):
        session = step["sessions"][row]
        y = session["responses"][0]

        def predicted(prompt: list[int], y: list[int] = y) -> torch.Tensor:
            with torch.no_grad():
                return model(torch.tensor([[*prompt, *y]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)

        student, teacher = predicted(session["prompts"][0]), predicted(step["teacher_prompts"][pair])
        expected = (teacher.exp() * (teacher - student)).sum(-1)
        found = step["evidence"]["token_kl"][pair, : len(y)]
        assert (found - expected).abs().max() < 1e-5
        own = student.gather(1, torch.tensor(y)[:, None])[:, 0]
        assert (step["evidence"]["student_logps"][pair, : len(y)] - own).abs().max() < 1e-5
        checked += len(y)
    assert checked
    assert step["evidence"]["token_kl"].max() > 0.01  # demonstrations matter here


def test_the_pass_sees_what_the_policy_saw(run: Run) -> None:
    gaps = [entry["credit/student_logps_gap"] for entry in run.metrics if entry["credit/demonstration_frac"]]
    assert gaps
    assert max(gaps) < 1e-5


def test_demonstrations_are_others_of_the_group_and_solved(steps: list[dict[str, Any]]) -> None:
    for step in steps:
        plan, sessions = step["plan"], step["sessions"]
        for row, shown, verified in zip(
            plan["rollout"].tolist(), plan["demonstration"].tolist(), plan["verified"].tolist(), strict=True
        ):
            assert row != shown
            assert sessions[row]["uid"] == sessions[shown]["uid"]
            assert verified == (sessions[shown]["reward"] >= 0.5)


def test_advantages_are_weighted_where_the_route_says_so_and_untouched_elsewhere(steps: list[dict[str, Any]]) -> None:
    weighted = untouched = 0
    for step in steps:
        scored = set(step["plan"]["rollout"].tolist())
        for row, session in enumerate(step["sessions"]):
            (place,), (mask,) = session["rows"], session["masks"]
            before, after = step["before"][place], step["after"][place]
            if step["credit"]["route"][row] == Route.FALLBACK:
                assert torch.equal(before, after)
                untouched += 1
            elif row in scored and step["credit"]["route"][row] == Route.PARTIAL:
                weights = step["credit"]["weights"][row, : len(after)]
                assert torch.allclose(after, before * weights, atol=1e-7)
                assert not torch.equal(before, after)
                assert torch.equal(after[~mask], torch.zeros_like(after[~mask]))
                weighted += 1
        of_group: dict[str, list[float]] = {}
        for session in step["sessions"]:
            of_group.setdefault(session["uid"], []).append(session["reward"])
        for session in step["sessions"]:  # verl's own formula, for the groups as the trainer saw them
            rewards = torch.tensor(of_group[session["uid"]])
            expected = (session["reward"] - rewards.mean()) / (rewards.std() + 1e-6)
            assert torch.allclose(step["before"][session["rows"][0]][0], expected, atol=1e-5)
    assert weighted
    assert untouched


def test_a_run_directory_like_any_other(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    path = run.folder / "checkpoints" / "run"
    written = RunDirectory.open(path)
    records = written.metrics()
    assert [record["step"] for record in records] == [1, 2]
    assert {"reward", "loss", "grad_norm", "entropy", "step_time", "credit/route_partial_frac"} <= records[0].keys()
    assert written.config()["train"]["credit"] == "sc_grpo"
    rows = written.rollouts(0)
    assert any(row.token_kl for row in rows)
    assert all(row.teacher_prompt and row.demonstration_text for row in rows if row.token_kl)
    assert main(["report", str(path)]) == 0
    assert (path / "report.html").stat().st_size > 10_000


def test_uniform_credit_is_verls_own_step(inputs: Inputs, tmp_path: Path) -> None:
    """Not an advantage is touched. Metrics are those of verl's own trainer but for rounding: verl orders a batch by
    random ids and by who was done first, and sums in that order."""
    plain, ours = tmp_path / "sync", tmp_path / "uniform"
    with started(plain, as_overrides(settings(inputs, plain, mode="sync"))) as run:
        assert run.wait(LONG) == 0, run.output[-6000:]
        expected = run.metrics
    values = settings(inputs, ours, mode="scgrpo_probe") | {"+trainer.v1.scgrpo.credit": "uniform"}
    with started(ours, as_overrides(values), modules=["probe"], environment={"PROBE_FOLDER": str(ours)}) as run:
        assert run.wait(LONG) == 0, run.output[-6000:]
        found = run.metrics
    for step in (1, 2):
        seen = torch.load(ours / f"step-{step}.pt", weights_only=True)
        assert not seen["written"]
        assert all(torch.equal(a, b) for a, b in zip(seen["before"], seen["after"], strict=True))
    names = ["actor/pg_loss", "actor/grad_norm", "actor/entropy", "critic/score/mean", "response_length/mean"]
    for theirs, own in zip(expected, found, strict=True):
        assert {name: own[name] for name in names} == pytest.approx({name: theirs[name] for name in names}, rel=1e-4)
