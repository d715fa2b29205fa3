"""`scgrpo train` on two real processes that each hold the model or share it, as a user starts it."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import SHARDINGS, failure, launch
from safetensors.torch import load_file
from sharding import ZERO3

from scgrpo.cli.arguments import parse_train
from scgrpo.cli.main import main
from scgrpo.runs import RunDirectory

pytestmark = pytest.mark.distributed
WORKER = Path(__file__).parent / "_train_worker.py"
ROOT = Path(__file__).resolve().parents[2]
# 8 groups of 4; evaluations of 5 problems in 3 batches, of which the second process has one and the first two.
SETTINGS: dict[str, Any] = {
    "config": "reach",
    "max_steps": 2,
    "num_generations": 4,
    "learning_rate": 0.01,
    "warmup_steps": 0,
    "max_train_rows": 64,
    "dynamic_sampling_max_rounds": 2,
    "eval_problems": 5,
    "eval_k": 2,
    "eval_every": 1,
    "eval_batch_rows": 4,
    "rollouts_every": 1,
    "save_strategy": "steps",
    "save_steps": 1,
}
# What only a sharded model's checkpoint has.
SHARDS = {"MULTI_CPU": None, "FSDP": "pytorch_model_fsdp_0", "DEEPSPEED": "global_step*"}


def flags(out: Path, **settings: Any) -> list[str]:
    given = {**SETTINGS, "output_dir": out, **settings}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def by_accelerate(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` with the configuration for whole models: the recipe says that it is for a CPU."""
    config = ["--config_file", str(ROOT / "recipes/accelerate/ddp.yaml"), "--mixed_precision", "no"]
    start = ["-m", "accelerate.commands.launch", *config, "--num_processes", "2", "--main_process_port", "0"]
    return launch(1, [*start, "-m", "scgrpo.cli.main", "train", *arguments])


def train_on_two(kind: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    if kind == "MULTI_CPU":
        return launch(2, ["-m", "scgrpo.cli.main", "train", *arguments])
    return launch(2, [str(WORKER), *arguments], SHARDINGS[kind])


def of_kind(kind: str, folder: Path) -> dict[str, Any]:
    """The settings that the kind of sharding asks for."""
    if kind != "DEEPSPEED":
        return {}
    zero = {**ZERO3["zero_optimization"], "stage3_gather_16bit_weights_on_model_save": True}
    (folder / "zero3.json").write_text(json.dumps({**ZERO3, "zero_optimization": zero}))
    return {"use_cpu": False, "deepspeed": folder / "zero3.json"}


class Trained:
    """A run on two processes, and what it printed."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder, self.more = kind, folder, of_kind(kind, folder)
        beside = "uniform" if kind == "MULTI_CPU" else "none"
        self.arguments = flags(folder / "run", per_device_train_batch_size=16, compare_with=beside, **self.more)
        result = by_accelerate(self.arguments) if kind == "MULTI_CPU" else train_on_two(kind, self.arguments)
        assert result.returncode == 0, failure(result)
        self.shown = result.stdout

    def run(self, name: str = "run") -> RunDirectory:
        return RunDirectory.open(self.folder / name)


@pytest.fixture(scope="module", params=SHARDINGS)
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    if request.param == "DEEPSPEED" and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed (.ci/run has an environment with it)")
    return Trained(request.param, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The same on one process, up to what is sampled."""
    out = tmp_path_factory.mktemp("one") / "run"
    given = flags(out, per_device_train_batch_size=32, compare_with="none", max_steps=1, save_strategy="no")
    assert main(["train", *given]) == 0
    return RunDirectory.open(out)


def test_two_processes_train_and_one_writes(two: Trained) -> None:
    run = two.run()
    train = run.config()["train"]
    assert (train["per_device_train_batch_size"], train["generation_batch_size"]) == (16, 32)
    checkpoint = run.checkpoints_dir / "checkpoint-2"
    if SHARDS[two.kind]:
        assert list(checkpoint.glob(SHARDS[two.kind] or ""))
    assert len(list(checkpoint.glob("rng_state_*"))) == 2
    assert len(run.provenance()["starts"]) == 1
    assert [record["step"] for record in run.metrics()] == [1, 2]
    assert [record["label"] for record in run.evals()] == ["before", "during", "after"]
    assert run.rollout_steps() == [0, 1]
    assert run.report_path.stat().st_size > 10_000
    assert two.shown.count("held-out problems") == two.shown.count("run directory:") == 1
    assert two.shown.count("step 2/2") == (2 if two.kind == "MULTI_CPU" else 1)


def test_groups_are_refilled_on_both(two: Trained) -> None:
    for record in two.run().metrics():
        assert record["sampling/rounds"] >= 1, "with this seed some groups are degenerate"
        assert record["sampling/num_extra_tokens"] > 0
    scored = [row for step in (0, 1) for row in two.run().rollouts(step) if row.token_kl is not None]
    assert scored


def test_an_evaluation_by_two_is_that_of_one(one: RunDirectory, two: Trained) -> None:
    first, alone = two.run().evals()[0], one.evals()[0]
    timed = {"seconds", "tokens_per_s"}
    assert {name: first[name] for name in first.keys() - timed} == {n: alone[n] for n in alone.keys() - timed}
    assert len(first["per_problem"]) == 5


def test_the_model_written_is_the_one_evaluated_last(two: Trained) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from scgrpo.cli.setup import make_task
    from scgrpo.evaluation import evaluate

    run = two.run()
    model = AutoModelForCausalLM.from_pretrained(run.model_dir)
    before, *_, after = run.evals()
    parsed = parse_train(flags(run.path))
    task = make_task(parsed)
    assert task is not None
    result = evaluate(
        model,
        AutoTokenizer.from_pretrained(run.model_dir),
        task,
        rows=task.rows("eval", 5),
        k=2,
        temperature=parsed.run.eval_temperature,
        top_p=parsed.run.eval_top_p,
        max_new_tokens=parsed.trainer.max_completion_length,
        batch_size=4,
        seed=parsed.trainer.seed,
    )
    assert result.mean_completion_tokens == after["mean_completion_tokens"]
    assert result.to_record(0, "")["per_problem"] == after["per_problem"]
    assert after["mean_completion_tokens"] != before["mean_completion_tokens"], "the steps have changed the model"


def test_a_resumed_run_ends_with_the_same_weights(two: Trained) -> None:
    if two.kind == "DEEPSPEED":
        pytest.skip("it may not be resumed with an optimizer that DeepSpeed does not know")
    whole = load_file(two.run().model_dir / "model.safetensors")
    for run in two.folder.glob("run*"):
        shutil.rmtree(run / "model")
        shutil.rmtree(run / "checkpoints" / "checkpoint-2")
    result = train_on_two(two.kind, [*two.arguments, "--resume_from_checkpoint", "last"])
    assert result.returncode == 0, failure(result)
    resumed = load_file(two.run().model_dir / "model.safetensors")
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name
    assert [record["step"] for record in two.run().metrics()] == [1, 2]
    assert [record["label"] for record in two.run().evals()] == ["before", "during", "after"]


def test_what_the_first_process_finds_wrong_ends_all_with_words(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    result = train_on_two("MULTI_CPU", flags(tmp_path / "run", per_device_train_batch_size=16))
    assert result.returncode != 0
    assert result.stderr.count(f"error: {tmp_path / 'run'} exists and is not empty.") == 1
    assert result.stderr.count("error (process 1): ") == 1
    assert "Connection closed by peer" not in result.stderr
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_dry_run_is_told_once(tmp_path: Path) -> None:
    result = train_on_two("MULTI_CPU", [*flags(tmp_path / "run", per_device_train_batch_size=16), "--dry-run"])
    assert result.returncode == 0, failure(result)
    assert result.stdout.count("verdicts of reach on canned answers") == 1
    assert "8 prompts x 4 rollouts" in result.stdout
    assert list(tmp_path.iterdir()) == []
