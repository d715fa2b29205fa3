"""Conversations on two real processes that share the model's weights: sampled in step, evaluated as by one."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from launching import failure
from maze_walker import build_walker
from test_train_distributed import of_kind, train_on_two

from scgrpo.cli.main import main
from scgrpo.runs import RunDirectory

pytestmark = pytest.mark.distributed
SETTINGS: dict[str, Any] = {
    "config": "testbed-maze",
    "compare_with": "none",
    "max_steps": 2,
    "num_generations": 4,
    "per_device_train_batch_size": 16,
    "max_train_rows": 64,
    "eval_problems": 1,
    "eval_k": 5,
    "eval_every": 0,
    "eval_batch_rows": 2,  # three batches: the second process draws one of them in vain
    "rollouts_every": 1,
    "save_strategy": "no",
}


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_walker(tmp_path_factory.mktemp("walker"))


def flags(walker: Path, out: Path, **settings: Any) -> list[str]:
    given = {**SETTINGS, "task": "maze_walker:EasyMaze", "model_name_or_path": walker, "output_dir": out, **settings}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def alone(walker: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    out = tmp_path_factory.mktemp("one") / "run"
    assert main(["train", *flags(walker, out, per_device_train_batch_size=32, max_steps=1)]) == 0
    return RunDirectory.open(out)


@pytest.mark.parametrize("task", ["EasyMaze", "PerStepMaze"])
@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_conversations_on_split_weights(
    kind: str, task: str, walker: Path, alone: RunDirectory, tmp_path: Path
) -> None:
    if kind == "DEEPSPEED" and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed (.ci/run has an environment with it)")
    result = train_on_two(
        kind, flags(walker, tmp_path / "run", task=f"maze_walker:{task}", **of_kind(kind, tmp_path))
    )
    assert result.returncode == 0, failure(result)
    run = RunDirectory.open(tmp_path / "run")
    rows = [row for step in run.rollout_steps() for row in run.rollouts(step)]
    assert len({row.completion.count("assistant: ") for row in rows}) > 2, "of several lengths, or this shows little"
    assert any(row.token_kl is not None for row in rows), "some are re-scored"
    for row in rows:
        if task == "PerStepMaze":
            assert all(row.mask), "the completions are the actions alone"
            continue
        hidden = [token for token, own in zip(row.tokens, row.mask, strict=True) if not own]
        assert hidden[0::3] == ["<user>"] * len(hidden[0::3])
        assert hidden[2::3] == ["<assistant>"] * len(hidden[2::3])
        assert row.mask[0]
    assert [record["label"] for record in run.evals()] == ["before", "after"]
    if task == "PerStepMaze":
        return
    timed = {"seconds", "tokens_per_s"}
    first, one = run.evals()[0], alone.evals()[0]
    assert {name: first[name] for name in first.keys() - timed} == {name: one[name] for name in one.keys() - timed}
