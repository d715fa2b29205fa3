"""DAPO's options, padded inputs, dynamic batch sizes, rewards without a verdict, validation, and going on from a
checkpoint: all in one run and its continuation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import LONG, as_overrides, settings, started
from toy import make_inputs

from scgrpo.cli.main import main
from scgrpo.runs import RunDirectory

REWARD = '''"""As the toy's, and no verdict where the second word is c."""


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **ignored):
    words = solution_str.split()
    if len(words) > 1 and words[1] == "c":
        return {"score": 0.0, "acc": 0.0, "verdict": "error", "detail": "the judge fell over"}
    right = float(bool(words) and ord(words[0][0]) % 2 == 0)
    return {"score": 2 * right - 1, "acc": right, "verdict": "graded", "detail": ""}
'''

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
OPTIONS: dict[str, Any] = {
    # DAPO
    "algorithm.filter_groups.enable": True,
    "algorithm.filter_groups.metric": "acc",
    "reward.reward_manager.name": "dapo",
    "+reward.reward_kwargs.overlong_buffer_cfg": "{enable: True, len: 8, penalty_factor: 0.5, log: False}",
    "+reward.reward_kwargs.max_resp_len": 16,
    f"{ACTOR}.clip_ratio_high": 0.28,
    f"{ACTOR}.loss_agg_mode": "token-mean",
    # engine
    "actor_rollout_ref.model.use_remove_padding": False,
    f"{ACTOR}.use_dynamic_bsz": True,
    f"{ACTOR}.ppo_max_token_len_per_gpu": 160,  # verl's own rows of padding have 128 tokens
    f"{ROLLOUT}.log_prob_use_dynamic_bsz": True,
    f"{ROLLOUT}.log_prob_max_token_len_per_gpu": 160,
    # validation, checkpoints
    "trainer.val_before_train": True,
    "trainer.test_freq": 1,
    f"{ROLLOUT}.val_kwargs.n": 2,
    f"{ROLLOUT}.val_kwargs.do_sample": True,
    "trainer.resume_mode": "auto",
    "+trainer.v1.scgrpo.success_metric": "acc",
    "+trainer.v1.scgrpo.rollouts_every": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, and its continuation to two."""
    folder = tmp_path_factory.mktemp("options")
    inputs = make_inputs(folder / "toy", reward=REWARD)
    for steps in (1, 2):
        values = settings(inputs, folder, mode="scgrpo_probe", steps=steps) | OPTIONS | {"trainer.save_freq": 1}
        environment = {"PROBE_FOLDER": str(folder)}
        with started(folder, as_overrides(values), modules=["probe"], environment=environment) as run:
            assert run.wait(LONG) == 0, run.output[-6000:]
            (folder / f"output-{steps}.txt").write_text(run.output)
    return folder


@pytest.fixture(scope="module")
def steps(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"step-{step}.pt", weights_only=True) for step in (1, 2)]


def test_groups_that_teach_nothing_are_filtered_by_verl(steps: list[dict[str, Any]]) -> None:
    for step in steps:
        solved = step["groups"]["solved"]
        for group in step["groups"]["group"].unique():
            graded = step["groups"]["graded"][step["groups"]["group"] == group]
            if bool(graded.all()):  # verl counts a rollout without a verdict as failed
                assert 0 < int(solved[step["groups"]["group"] == group].sum()) < len(graded)


def test_no_verdict_is_no_reward_of_0(steps: list[dict[str, Any]]) -> None:
    ungraded = 0
    for step in steps:
        for session in step["sessions"]:
            members = [s for s in step["sessions"] if s["uid"] == session["uid"] and s["status"] == "graded"]
            after = step["after"][session["rows"][0]]
            if session["status"] != "graded":
                ungraded += 1
                assert not after.any()
                continue
            rewards = torch.tensor([s["reward"] for s in members])
            expected = (session["reward"] - rewards.mean()) / (rewards.std() + 1e-6)
            assert torch.allclose(step["before"][session["rows"][0]][0], expected, atol=1e-5)
    assert ungraded


def test_the_mean_reward_is_of_verdicts(folder: Path, steps: list[dict[str, Any]]) -> None:
    for record, step in zip(RunDirectory.open(folder / "checkpoints" / "run").metrics(), steps, strict=True):
        assert record["reward"] == pytest.approx(sum(step["graded"]) / len(step["graded"]), abs=1e-5)


def test_pairs_are_scored_in_padded_batches_of_any_size(steps: list[dict[str, Any]]) -> None:
    scored = [step["evidence"]["token_kl"] for step in steps if len(step["plan"]["rollout"])]
    assert scored
    assert all(bool(kl.isfinite().all()) and bool(kl.any()) for kl in scored)


def test_the_records_go_on_where_the_checkpoint_was(folder: Path) -> None:
    run = RunDirectory.open(folder / "checkpoints" / "run")
    assert [record["step"] for record in run.metrics()] == [1, 2]
    assert len(run.provenance()["starts"]) == 2
    assert "setting global step to 1" in (folder / "output-2.txt").read_text()
    assert run.rollout_steps() == [0, 1]


def test_validations_are_evaluations_paired_by_problem(folder: Path, tmp_path: Path) -> None:
    path = folder / "checkpoints" / "run"
    records = RunDirectory.open(path).evals()
    assert [(record["step"], record["label"]) for record in records] == [(0, "before"), (1, "after"), (2, "after")]
    first = next(record for record in records if record["step"] == 0)
    assert first["task"] == "toy"
    assert first["k"] == 2
    assert first["num_problems"] == len(first["per_problem"]) == 4
    names = [{problem["problem_id"] for problem in record["per_problem"]} for record in records]
    assert all(own == names[0] for own in names)
    assert first["num_errors"] == sum(problem["num_errors"] for problem in first["per_problem"])
    assert main(["report", str(path)]) == 0
    other = shutil.copytree(path, tmp_path / "uniform")  # as if trained with uniform credit
    config = json.loads((other / "config.resolved.json").read_text())
    config["label"], config["train"]["credit"] = "grpo", "uniform"
    (other / "config.resolved.json").write_text(json.dumps(config))
    options = ["--out", str(tmp_path / "compare"), "--replicates", "200"]
    assert main(["compare", str(path), str(other), *options]) == 0
    assert "sc_grpo" in (tmp_path / "compare" / "contrasts.csv").read_text()
