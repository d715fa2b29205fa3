"""Training N steps, stopping, resuming and training M more is bit by bit training N + M steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from trl_harness import make_trainer, parameters, prompt_rows

from scgrpo.errors import RunError

TIMES = (
    "runtime",
    "per_second",
    "step_time",
    "teacher_pass_s",
    "noise_floor",
    "sampling_s",
    "scoring_s",
    "recording_s",
    "seconds",
)
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scored in the loss": {"teacher_timing": "loss"},
    # A generation batch of 4 micro-batches used twice: 4 optimizer steps; the checkpoint lies between them.
    "inside a generation batch": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
    },
    "ema": {"teacher_weights": "ema", "teacher_ema_decay": 0.5},
    "snapshot": {"teacher_weights": "snapshot", "teacher_snapshot_steps": 2},
    "buffer": {"credit_demonstrations": "buffer", "rows": prompt_rows(2)},
    "frozen": {"teacher_weights": "frozen"},
    "refilled": {"dynamic_sampling_max_rounds": 2},
    "lora": {"lora": True, "num_iterations": 2},
    # Teacher prompts are part of the rollouts, the weight of the loss depends on the step.
    "distilled": {
        "method": "sdpo",
        "credit": "of the method",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
        "distill_warmup_steps": 4,
    },
}


@pytest.fixture
def start(tokenizer: Any, make_model: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A trainer that saves after every step, with rollouts it samples itself (the random streams count)."""

    def build(name: str, steps: int, lora: bool = False, **settings: Any) -> Any:
        from peft import LoraConfig

        torch.manual_seed(1)
        adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1) if lora else None
        trainer, _ = make_trainer(
            tmp_path / name,
            make_model(),
            tokenizer,
            max_steps=steps,
            optim="adamw_torch",
            learning_rate=0.01,
            save_strategy="steps",
            save_steps=1,
            trainer_options={"peft_config": adapter} if lora else None,
            **settings,
        )
        return trainer

    return build


class Killed(TrainerCallback):
    """The process dies right after a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def logs(trainer: Any) -> dict[int, dict[str, float]]:
    return {
        log["step"]: {name: value for name, value in log.items() if not name.endswith(TIMES)}
        for log in trainer.state.log_history
        if "loss" in log
    }


@pytest.mark.parametrize("case", CASES)
def test_resumed_training_is_the_same_bit_by_bit(start: Callable[..., Any], tmp_path: Path, case: str) -> None:
    settings = CASES[case]
    whole = start("whole", 5, **settings)
    whole.train()
    first = start("parts", 5, **settings)
    first.add_callback(Killed(3))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    torch.manual_seed(99)  # another process would begin with other streams
    second = start("parts", 5, **settings)
    second.train(resume_from_checkpoint=str(tmp_path / "parts/checkpoint-3"))

    for (name, a), b in zip(parameters(whole.model).items(), parameters(second.model).values(), strict=True):
        assert torch.equal(a, b), name
    ours, theirs = whole.optimizer.state_dict()["state"], second.optimizer.state_dict()["state"]
    assert all(torch.equal(ours[k]["exp_avg"], theirs[k]["exp_avg"]) for k in ours)
    for step in (4, 5):
        assert logs(whole)[step] == logs(second)[step]
    a, b = whole._teacher.state_dict(), second._teacher.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert bool(a) == (case in ("ema", "snapshot", "frozen", "distilled"))


@pytest.fixture
def stopped(start: Callable[..., Any], tmp_path: Path) -> Path:
    start("run", 2, teacher_weights="ema").train()
    return tmp_path / "run/checkpoint-2"


def resume(start: Callable[..., Any], folder: Path, **settings: Any) -> Any:
    trainer = start("again", 3, **settings)
    trainer.train(resume_from_checkpoint=str(folder))
    return trainer


def test_a_checkpoint_without_the_teachers_weights_is_an_error(start: Callable[..., Any], stopped: Path) -> None:
    (stopped / "scgrpo_teacher.safetensors").unlink()
    with pytest.raises(RunError, match=r"teacher"):
        resume(start, stopped, teacher_weights="ema")


def test_a_checkpoint_of_another_kind_of_teacher_is_an_error(start: Callable[..., Any], stopped: Path) -> None:
    with pytest.raises(RunError, match=r"'ema'|ema"):
        resume(start, stopped, teacher_weights="frozen")


def test_a_checkpoint_of_a_newer_version_is_an_error(start: Callable[..., Any], stopped: Path) -> None:
    state = stopped / "scgrpo_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "schema_version": 99}))
    with pytest.raises(RunError, match="written by a newer version"):
        resume(start, stopped, teacher_weights="ema")


def test_a_checkpoint_of_plain_trl_can_be_gone_on_from(
    start: Callable[..., Any], stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in stopped.glob("scgrpo_*"):
        file.unlink()
    assert resume(start, stopped).state.global_step == 3
    assert "holds no scgrpo state" in caplog.text
