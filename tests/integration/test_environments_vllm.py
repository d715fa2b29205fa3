"""Conversations that vLLM draws for TRL's trainer. vLLM needs a GPU: in its place a stand-in with the interface of
TRL's `VLLMGeneration`, on the trainer's own model."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from maze_walker import EasyMaze, PerStepMaze, build_walker
from transformers import GenerationConfig, PrinterCallback

from scgrpo import SCGRPOConfig
from scgrpo.cli.main import main
from scgrpo.evaluation import evaluate
from scgrpo.integrations.trl import SCGRPOTrainer
from scgrpo.integrations.trl.environments import EnvironmentRollouts
from scgrpo.integrations.trl.host_sampling import HostSampler, host_turns
from scgrpo.runs import RunDirectory
from scgrpo.tasks.environment import EPISODE
from scgrpo.tasks.reward import reward_function


class StandIn:
    """Tokens and log-probs are the model's; a turn's second token lacks it, as where vLLM's is NaN."""

    last: StandIn

    def __init__(self, model: Any, accelerator: Any, processing_class: Any, **settings: Any) -> None:
        StandIn.last = self
        self.model, self.tokenizer = accelerator.unwrap_model(model), processing_class
        self.max_completion_length, self.temperature = settings["max_completion_length"], settings["temperature"]
        self.top_p, self.top_k, self.min_p, self.repetition_penalty = 1.0, 0, None, 1.0
        self.longest = 10_000
        self.asked: list[tuple[int, int]] = []
        self.temperatures: set[float] = set()
        self.loaded = 0

    def sync_weights(self) -> None:
        self.loaded += 1

    def generate(self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any) -> Any:
        assert images is None
        assert max(map(len, prompts)) < self.longest
        self.asked.append((len(prompts), self.max_completion_length))
        self.temperatures.add(self.temperature)
        drawn = [self._one(prompt) for prompt in prompts]
        return prompts, [ids for ids, _ in drawn], [logps for _, logps in drawn], None

    def _one(self, prompt: list[int]) -> tuple[list[int], list[list[float | None]]]:
        end = self.tokenizer.eos_token_id
        config = GenerationConfig(
            do_sample=True,
            top_k=0,
            temperature=self.temperature,
            max_new_tokens=self.max_completion_length,
            eos_token_id=end,
            pad_token_id=end,
        )
        with torch.no_grad():
            whole = self.model.generate(torch.tensor([prompt]), generation_config=config)
            scores = self.model(whole).logits[0, len(prompt) - 1 : -1] / self.temperature
        ids = whole[0, len(prompt) :]
        logps = scores.log_softmax(-1).gather(1, ids[:, None])[:, 0].tolist()
        return ids.tolist(), [[None if place == 1 else value] for place, value in enumerate(logps)]


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_walker(tmp_path_factory.mktemp("walker"))


@pytest.fixture
def make(walker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from datasets import Dataset

    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", StandIn)

    def made(task: EasyMaze, **settings: Any) -> SCGRPOTrainer:
        given = {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "credit": "uniform",
            "teacher_template": "tiny",
            "num_generations": 4,
            "per_device_train_batch_size": 16,
            "max_completion_length": task.max_completion_length,
            "max_steps": 2,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        trainer = SCGRPOTrainer(
            str(walker),
            reward_function(task),
            SCGRPOConfig(str(tmp_path), **{**given, **settings}),
            train_dataset=Dataset.from_list(task.rows("train", 64)),
            rollout_func=EnvironmentRollouts(task),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    return made


@pytest.mark.parametrize("task", [EasyMaze(), PerStepMaze()])
def test_turns_come_from_vllm_with_their_log_probs(make: Any, task: EasyMaze) -> None:
    trainer = make(task)
    inputs: list[dict[str, torch.Tensor]] = []
    episodes: list[Any] = []
    compute = trainer._compute_loss
    trainer._compute_loss = lambda model, batch: (inputs.append(batch), compute(model, batch))[1]
    trainer.listeners.append(lambda scored: episodes.extend(row[EPISODE] for row in scored.rollouts.inputs))
    trainer.train()
    vllm = trainer.vllm_generation
    assert vllm.loaded == 2, "weights are sent once a step"
    assert vllm.asked[0][0] == 16
    assert len({count for count, _ in vllm.asked}) > 1, "conversations end after different numbers of turns"
    assert vllm.max_completion_length == task.max_completion_length
    assert max(length for _, length in vllm.asked) <= (task.max_action_tokens or task.max_completion_length)
    assert any(len(episode.turns) > 1 for episode in episodes)
    for episode in episodes:
        assert len(episode.logps) == len(episode.completion_ids)
        assert all((logp == 0) or own for logp, own in zip(episode.logps, episode.mask, strict=True))
    for batch in inputs:
        # What vLLM says and what the trainer computes, turn by turn, is the same number: no correction.
        own = (batch["completion_mask"] * batch.get("tool_mask", 1)).bool()
        told = ~batch["sampling_per_token_logps"].isnan() & own
        assert 0 < int(told.sum()) < int(own.sum())
        gap = (batch["sampling_per_token_logps"] - batch["old_per_token_logps"])[told]
        assert float(gap.abs().max()) < 1e-4


@pytest.mark.parametrize("task", ["maze_walker:EasyMaze", "reach"])
def test_evaluations_are_drawn_by_vllm_too(
    task: str, walker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", StandIn)
    config = (
        ["--config", "reach"] if task == "reach" else ["--config", "testbed-maze", "--model_name_or_path", walker]
    )
    sizes = ["--per_device_train_batch_size", "16", "--num_generations", "4", "--max_train_rows", "64"]
    counts = [
        "--max_steps",
        "2",
        "--eval_problems",
        "3",
        "--eval_k",
        "4",
        "--eval_every",
        "1",
        "--eval_batch_rows",
        "8",
    ]
    given = [*config, "--task", task, *sizes, *counts, "--compare_with", "none", "--use_vllm", "true"]
    given += ["--vllm_mode", "colocate", "--eval_temperature", "0.7", "--output_dir", tmp_path / "run"]
    monkeypatch.setattr("scgrpo.evaluation.samplers._generate", None)  # what samples with the model itself
    assert main(["train", *map(str, given)]) == 0
    run = RunDirectory.open(tmp_path / "run")
    assert [record["label"] for record in run.evals()] == ["before", "during", "after"]
    assert StandIn.last.temperatures == {0.7, StandIn.last.temperature}
    assert StandIn.last.loaded == 3, "after no, one and two steps"
    assert 8 in [count for count, _ in StandIn.last.asked]


def test_a_step_s_prompt_that_vllm_has_no_room_for_cuts_the_rollout_off(make: Any) -> None:
    """In training and in evaluations: vLLM would refuse the prompt, and the run would end."""
    task = LongMemory()
    trainer = make(task, max_steps=1, vllm_max_model_length=60)
    episodes: list[Any] = []
    trainer.listeners.append(lambda scored: episodes.extend(row[EPISODE] for row in scored.rollouts.inputs))
    StandIn.last.longest = 60
    trainer.train()
    assert {len(episode.turns) for episode in episodes} == {1}
    assert any(not episode.done for episode in episodes)
    result = evaluate(HostSampler(trainer), trainer.processing_class, task, rows=task.rows("eval"), k=4)
    assert result.truncated_frac > 0


class LongMemory(PerStepMaze):
    def step_prompt(self, row: Any, history: Any, observation: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": f"{observation} " * 100}]


END = 999


class Together:
    """`everywhere`, for threads that stand for processes."""

    def __init__(self, count: int) -> None:
        self.barrier, self.given = threading.Barrier(count, timeout=60), [[]] * count

    def __call__(self, accelerator: Any, values: list[Any]) -> list[Any]:
        self.given[accelerator.process_index] = values
        self.barrier.wait()
        everyone = [value for own in self.given for value in own]
        self.barrier.wait()
        return everyone


@pytest.mark.parametrize("left", [(4, 1, 0), (0, 0, 1), (2, 2, 2)])
def test_the_turns_of_all_processes_are_dealt_out_evenly(
    left: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scgrpo.integrations.trl.host_sampling.everywhere", Together(3))
    asked = [0, 0, 0]

    def process(index: int) -> list[Any]:
        """Draws "context + 1" three times, and an end token where that is even."""
        vllm = SimpleNamespace(max_completion_length=100)

        def draw(contexts: list[list[int]], *_: Any) -> Any:
            asked[index] = len(contexts)
            assert vllm.max_completion_length == 3
            return [[c[-1] + 1, END if c[-1] % 2 else 8, 7] for c in contexts], [[-1.0, None, -2.0]] * len(contexts)

        trainer = SimpleNamespace(
            accelerator=SimpleNamespace(process_index=index, num_processes=3),
            use_vllm=True,
            vllm_generation=vllm,
            eos_token_ids=[END],
            _generate_single_turn=draw,
        )
        contexts = [[5, 100 * index + number] for number in range(left[index])]
        turns = host_turns(trainer, contexts, 3)
        assert vllm.max_completion_length == 100
        return [(turn.ids, len(turn.logps or ())) for turn in turns]

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(process, range(3)))
    assert asked == [math.ceil(sum(left) / 3)] * 3
    assert found == [
        [([n + 1, END], 2) if n % 2 else ([n + 1, 8, 7], 3) for n in range(100 * index, 100 * index + count)]
        for index, count in enumerate(left)
    ]
