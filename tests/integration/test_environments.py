"""Training and evaluating in environments through the command line: what is masked, recorded, resumed, blamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from maze_walker import EasyMaze, build_walker

from scgrpo.cli.main import main
from scgrpo.errors import IncompatibleHostError
from scgrpo.integrations.trl import SCGRPOTrainer
from scgrpo.integrations.trl.environments import EnvironmentRollouts
from scgrpo.runs import RunDirectory
from scgrpo.tasks.environment import EPISODE
from scgrpo.tasks.maze import MOVES, MazeTask

FAST = [
    "--eval_problems",
    "4",
    "--eval_k",
    "2",
    "--eval_every",
    "0",
    "--max_train_rows",
    "64",
    "--rollouts_every",
    "1",
]
SMALL = ["--per_device_train_batch_size", "32", "--num_generations", "4", "--compare_with", "none"]


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_walker(tmp_path_factory.mktemp("walker"))


def train(model: Path, out: Path, *extra: str) -> RunDirectory:
    command = ["train", "--config", "testbed-maze", "--model_name_or_path", str(model), "--output_dir", str(out)]
    assert main([*command, *FAST, *SMALL, "--max_steps", "2", *extra]) == 0
    return RunDirectory.open(out)


def test_observations_are_masked_and_demonstrations_are_transcripts(walker: Path, tmp_path: Path) -> None:
    run = train(walker, tmp_path / "run")
    rows = [row for step in run.rollout_steps() for row in run.rollouts(step)]
    assert run.rollout_steps() == [0, 1]
    assert any(mask for row in rows for mask in row.mask)
    for row in rows:
        hidden = [token for token, own in zip(row.tokens, row.mask, strict=True) if not own]
        # user, cell, assistant; after every action but a last one.
        assert hidden[0::3] == ["<user>"] * len(hidden[0::3])
        assert hidden[2::3] == ["<assistant>"] * len(hidden[2::3])
        assert all(cell.rstrip("*").isdecimal() for cell in hidden[1::3])
        assert row.mask[0]
        if row.token_kl is not None:
            assert not any(kl for kl, own in zip(row.token_kl, row.mask, strict=True) if not own)
            assert not any(weight for weight, own in zip(row.credit_weights, row.mask, strict=True) if not own)
    longest = max(rows, key=lambda row: len(row.tokens))
    assert longest.completion.startswith(f"assistant: {longest.tokens[0]}\nuser: ")
    scored = [row for row in rows if row.token_kl is not None]
    assert any("\nuser: " in row.demonstration_text for row in scored), "some rollouts are re-scored"
    for row in scored:
        single = "\nuser: " not in row.demonstration_text  # lost with its first move
        assert single or row.demonstration_text.startswith("assistant: ")
        assert " ".join(row.demonstration_text.split()) in row.teacher_prompt
        assert "<unk>" not in row.teacher_prompt
    assert [record["label"] for record in run.evals()] == ["before", "after"]
    assert all(0 <= record["avg_at_k"]["value"] <= 1 for record in run.evals())


def test_a_resumed_run_plays_on(walker: Path, tmp_path: Path) -> None:
    save = ["--save_strategy", "steps", "--save_steps", "1"]
    whole = train(walker, tmp_path / "whole", *save)
    train(walker, tmp_path / "parts", *save, "--max_steps", "1")
    parts = train(walker, tmp_path / "parts", *save, "--resume_from_checkpoint", "last")
    for step in (0, 1):
        for a, b in zip(whole.rollouts(step), parts.rollouts(step), strict=True):
            assert (a.token_ids, a.mask, a.rewards, a.credit_weights) == (
                b.token_ids,
                b.mask,
                b.rewards,
                b.credit_weights,
            )
    weights = [(run.model_dir / "model.safetensors").read_bytes() for run in (whole, parts)]
    assert weights[0] == weights[1]


def trainer(model: Path, out: Path, *, credit: str, seen: list[Any], **settings: Any) -> SCGRPOTrainer:
    from datasets import Dataset
    from transformers import PrinterCallback

    from scgrpo import SCGRPOConfig
    from scgrpo.tasks.reward import reward_function

    task = EasyMaze()
    arguments = SCGRPOConfig(
        str(out),
        credit=credit,
        teacher_template="tiny",
        **{
            "num_generations": 4,
            "per_device_train_batch_size": 32,
            "max_completion_length": task.max_completion_length,
            "max_steps": 1,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            **settings,
        },
    )
    made = SCGRPOTrainer(
        str(model),
        reward_function(task),
        arguments,
        train_dataset=Dataset.from_list(task.rows("train", 64)),
        rollout_func=EnvironmentRollouts(task),
    )
    made.remove_callback(PrinterCallback)
    made.listeners.append(seen.append)
    return made


@pytest.mark.parametrize("rounds", [0, 2])
def test_first_errors_are_the_tokens_of_wrong_moves(walker: Path, tmp_path: Path, rounds: int) -> None:
    """Also of rollouts that dynamic sampling put in place of others."""
    seen: list[Any] = []
    trainer(walker, tmp_path, credit="oracle", seen=seen, dynamic_sampling_max_rounds=rounds).train()
    groups, rollouts = seen[0].groups, seen[0].rollouts
    assert 0 < groups.solved.sum() < len(groups.solved)
    task, blamed = MazeTask(), 0
    for row, (inputs, messages) in enumerate(zip(rollouts.inputs, rollouts.completions, strict=True)):
        assert inputs[EPISODE].messages == messages
        (number,) = task.first_errors([messages], [inputs])
        at = int(groups.first_error[row])
        if number is None:
            assert groups.solved[row]
            assert at == -1
        else:
            assert bool(groups.mask[row, at])
            assert at == 0 or not groups.mask[row, at - 1], "the first token of an action"
            assert int((~groups.mask[row, :at]).sum()) == 3 * number
            blamed += 1
    assert blamed


def test_the_loss_sees_moves_and_ends_alone(walker: Path, tmp_path: Path) -> None:
    seen: list[Any] = []
    made = trainer(walker, tmp_path, credit="uniform", seen=seen)
    inputs: list[dict[str, torch.Tensor]] = []
    compute = made._compute_loss
    made._compute_loss = lambda model, batch: (inputs.append(batch), compute(model, batch))[1]  # type: ignore[method-assign]
    made.train()
    (batch,) = inputs
    counted = (batch["completion_mask"] * batch["tool_mask"]).bool()
    words = made._tokenizer.convert_ids_to_tokens(batch["completion_ids"][counted].tolist())
    masked = made._tokenizer.convert_ids_to_tokens(batch["completion_ids"][batch["tool_mask"] == 0].tolist())
    assert sum(word in MOVES for word in words) > len(words) / 3, "moves and their ends, and what it makes up"
    assert masked.count("<user>") == masked.count("<assistant>") == len(masked) / 3
    assert not set(masked) & {*MOVES, "<eos>"}
    assert batch["num_items_in_batch"] == counted.sum()
    episodes = [row[EPISODE] for row in seen[0].rollouts.inputs]
    assert int(counted.sum()) == sum(sum(episode.mask) for episode in episodes)


def test_what_cannot_be_played(walker: Path, tmp_path: Path) -> None:
    made = trainer(walker, tmp_path, credit="uniform", seen=[])
    prompts = [[{"role": "user", "content": "maze"}]]
    with pytest.raises(IncompatibleHostError, match="Use SCGRPOTrainer"):
        EnvironmentRollouts(MazeTask())(prompts, made)


def test_the_dry_run_shows_transcripts(capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "--config", "testbed-maze", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "verified assistant: left" in " ".join(shown.split())
    assert "BAD" not in shown
    assert json.dumps("maze")[1:-1] in shown


def test_evaluation_from_the_command_line(walker: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["eval", "--model", str(walker), "--task", "maze", "--problems", "6", "--k", "2", "--temperature", "1"]
    assert main([*command, "--max_new_tokens", "48", "--batch_size", "12"]) == 0
    assert "6 problems" in capsys.readouterr().out
