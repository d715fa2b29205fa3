"""Two whole steps of SC-GRPO on verl in environments: data set, agent loop, verdicts, the conditioned pass.

Rollouts of one growing conversation, and rollouts whose turns are rows of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Run, as_overrides, settings, started
from toy import Inputs, build_model, build_tokenizer
from toy_world import LettersTask

from scgrpo.integrations.verl.data import verl_row, write_parquet
from scgrpo.runs import RunDirectory

LONG = 900


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model, but it ends its turns often: wherever it is, the end token has about the same high logit."""
    folder = tmp_path_factory.mktemp("talkative")
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    with torch.no_grad():
        ids = torch.randint(4, len(tokenizer), (64, 24), generator=torch.Generator().manual_seed(1))
        hidden = model.model(ids).last_hidden_state.flatten(0, 1)
        fitted = torch.linalg.lstsq(hidden, torch.ones(len(hidden), 1)).solution[:, 0]
        model.lm_head.weight[tokenizer.eos_token_id] = 6 * fitted / (hidden @ fitted).mean()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["concat", "per_step"])
def run(request: Any, inputs: Inputs, talkative: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp(request.param)
    task, options = LettersTask(request.param), {"prompting": request.param}
    name = "toy_world:LettersTask"
    rows = [verl_row(name, options, task, "train", n, row) for n, row in enumerate(task.rows("train"))]
    write_parquet(folder / "train.parquet", rows)
    write_parquet(folder / "val.parquet", rows[:4])
    own = {
        "data.train_files": folder / "train.parquet",
        "data.val_files": folder / "val.parquet",
        "data.max_response_length": 32,
        "actor_rollout_ref.model.path": talkative,
        "reward.custom_reward_function.path": "pkg://scgrpo.integrations.verl.reward",
        "trainer.val_before_train": True,
        "actor_rollout_ref.rollout.val_kwargs": "{n: 2, do_sample: true, temperature: 1.0}",
        "+trainer.v1.scgrpo.run_dir": folder / "run",
        "+trainer.v1.scgrpo.rollouts_every": 1,
        "+trainer.v1.scgrpo.teacher_template": "agent",
    }
    if request.param == "per_step":  # as the recipes: as many rows as there can be, so that a batch is one update
        own |= {
            "actor_rollout_ref.actor.ppo_mini_batch_size": 12,
            "actor_rollout_ref.actor.use_dynamic_bsz": True,
            "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 300,
            "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu": 300,
        }
    overrides = as_overrides({**settings(inputs, folder, mode="scgrpo"), **own})
    with started(folder, overrides, ["scgrpo.integrations.verl.plugin"]) as run:
        run.code = run.wait(LONG)
        run.prompting = request.param
        yield run


def test_two_steps_end_well(run: Run) -> None:
    assert run.code == 0, run.output[-6000:]
    assert [entry["training/global_step"] for entry in steps(run)] == [1, 2]


def steps(run: Run) -> list[dict[str, float]]:
    return [entry for entry in run.metrics if "critic/score/mean" in entry]


def test_what_was_sampled_is_what_is_trained(run: Run) -> None:
    """The actor gives the tokens of every turn the probabilities that the server gave them: prompts, observations and
    masks are in place."""
    for entry in steps(run):
        assert entry["training/rollout_probs_diff_max"] < 1e-4
        assert 0 < entry["critic/score/mean"] < 1
        assert entry["num_turns/max"] >= 4, "prompt, action, observation, action"


def test_rollouts_are_weighted_token_by_token(run: Run) -> None:
    assert any(entry["credit/route_partial_frac"] > 0 for entry in steps(run))
    directory = RunDirectory.open(run.folder / "run")
    rows = [row for step in directory.rollout_steps() for row in directory.rollouts(step)]
    assert {row.status for row in rows} == {"graded"}
    partial = [row for row in rows if row.route == "partial"]
    assert partial
    for row in partial:
        own = [weight for weight, mine in zip(row.credit_weights, row.mask, strict=True) if mine]
        assert len(set(own)) > 1
    assert any("[Observation]" in (row.demonstration_text or "") for row in partial), "transcripts are shown"


def test_validation_is_an_evaluation_of_the_task(run: Run) -> None:
    (first, *_) = RunDirectory.open(run.folder / "run").evals()
    assert (first["task"], first["num_problems"], first["error_frac"]) == ("letters", 4, 0.0)
    assert {(problem["problem_id"], problem["n"]) for problem in first["per_problem"]} == {
        (str(n), 2) for n in range(4)
    }
