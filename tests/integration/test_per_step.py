"""Turns with prompts of their own: what is sampled, scored and trained on, against one forward per turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from scgrpo import SCGRPOConfig, SCGRPOTrainer
from scgrpo.errors import ConfigError
from scgrpo.evaluation import evaluate
from scgrpo.integrations.trl import per_step
from scgrpo.integrations.trl.environments import EnvironmentRollouts
from scgrpo.integrations.trl.evidence import EvidenceOfAll
from scgrpo.tasks.base import Message, Verdict
from scgrpo.tasks.environment import EPISODE, Context, Episode
from scgrpo.tasks.maze import MAX_MOVES, MazeTask
from scgrpo.tasks.procedural import Problem, user_prompt
from scgrpo.tasks.reward import reward_function
from scgrpo.tiny.build import build
from scgrpo.tiny.recipe import Shape, Subject
from scgrpo.tiny.testbeds import get_testbed


class Forgetful(MazeTask):
    """Each turn's prompt is the maze from the present cell: nothing else is remembered."""

    prompting = "per_step"

    def problems(self) -> list[Problem]:
        return [(start, start + 1, start + 6, 0, 4, 20, 23, 24) for start in (6, 7, 11, 12)]

    def held_out(self, problem: Problem) -> bool:
        return problem[0] > 7

    def step_prompt(
        self, row: Mapping[str, Any], history: Sequence[tuple[str, str]], observation: str
    ) -> list[Message]:
        assert history[0][0] == ""
        lava = " ".join(map(str, row["lava"]))
        return user_prompt(f"maze {observation} key {row['key']} goal {row['goal']} lava {lava}")


TASK = Forgetful()


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Path:

    folder = tmp_path_factory.mktemp("walker")
    small = Shape(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    recipe = replace(get_testbed("maze").recipe, subjects=(Subject(TASK, skill=0.3),), steps=70, shape=small)
    build(recipe, folder, seed=0, num_samples=1, progress=lambda _: None)
    return folder


def trainer(model: Path, out: Path, **settings: Any) -> SCGRPOTrainer:
    from datasets import Dataset
    from transformers import PrinterCallback

    defaults = {
        "credit": "sc_grpo",
        "teacher_template": "tiny",
        "temperature": 1.0,
        "num_generations": 4,
        "per_device_train_batch_size": 16,
        "max_completion_length": 2 * MAX_MOVES,
        "max_steps": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    made = SCGRPOTrainer(
        str(model),
        reward_function(TASK),
        SCGRPOConfig(str(out), **{**defaults, **settings}),
        train_dataset=Dataset.from_list(TASK.rows("train", 64)),
        rollout_func=EnvironmentRollouts(TASK),
    )
    made.remove_callback(PrinterCallback)
    return made


def logps_of(model: Any, prompt: list[int], action: list[int]) -> Tensor:
    """Log-probs (A, V) of what follows a prompt, in one forward for this turn alone."""
    logits = model(torch.tensor([[*prompt, *action]])).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1)


def actions_of(episode: Episode) -> list[list[int]]:
    ends = [*episode.turns[1:], len(episode.completion_ids)]
    return [episode.completion_ids[a:b] for a, b in zip(episode.turns, ends, strict=True)]


@pytest.mark.parametrize("more", [0, 2])
def test_scores_are_those_of_each_turn_alone(
    walker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    """Sampled actions, divergence, and the gradient of one step, against a loop over turns in double precision; also
    where other processes need more forwards."""
    if more:
        monkeypatch.setattr(EvidenceOfAll, "agreed_forwards", lambda _, mine: mine + more)
    made = trainer(walker, tmp_path, loss_type="dapo", max_grad_norm=1e9)
    seen: list[Any] = []
    made.listeners.append(seen.append)
    gradients: dict[str, Tensor] = {}
    made.add_callback(GradientKept(made, gradients))
    before = AutoModelForCausalLM.from_pretrained(walker, dtype=torch.float64)
    made.train()
    (batch,) = seen
    episodes = [row[EPISODE] for row in batch.rollouts.inputs]
    assert all(e.completion_ids == list(ids) for e, ids in zip(episodes, batch.rollouts.completion_ids, strict=True))
    assert max(len(e.turns) for e in episodes) > 2, "conversations, or this shows little"
    tokenizer = made.processing_class
    for row, episode in zip(batch.rollouts.inputs, episodes, strict=True):
        assert len(episode.contexts) == len(episode.turns)
        assert episode.contexts[0].messages == row["prompt"]
        for context in episode.contexts:
            text = tokenizer.apply_chat_template(context.messages, tokenize=False, add_generation_prompt=True)
            assert context.ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    total, loss = sum(len(e.completion_ids) for e in episodes), torch.tensor(0.0, dtype=torch.float64)
    assert len(batch.plan) > 3
    for pair, row in enumerate(batch.plan.rollout.tolist()):
        demonstration = batch.demonstrations[int(batch.plan.demonstration[pair])].text
        kl = []
        for context, action in zip(episodes[row].contexts, actions_of(episodes[row]), strict=True):
            shown = made._evidence.condition.teacher_prompt(
                context.messages, demonstration, verified=bool(batch.plan.verified[pair])
            )
            text = tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
            teacher = logps_of(before, tokenizer(text, add_special_tokens=False)["input_ids"], action)
            student = logps_of(before, context.ids, action)
            kl += (teacher.exp() * (teacher - student)).sum(-1).tolist()
        found = batch.evidence.token_kl[pair, : len(kl)]
        torch.testing.assert_close(found, torch.tensor(kl), atol=1e-5, rtol=1e-4)
    for row, episode in enumerate(episodes):
        at = 0
        for context, action in zip(episode.contexts, actions_of(episode), strict=True):
            own = logps_of(before, context.ids, action).gather(1, torch.tensor(action)[:, None])[:, 0]
            advantages = batch.credit.advantages[row, at : at + len(action)]
            loss = loss - (own * advantages).sum() / total
            at += len(action)
    loss.backward()
    for name, parameter in before.named_parameters():
        torch.testing.assert_close(gradients[name].double(), parameter.grad, atol=1e-6, rtol=1e-3)


def test_a_process_without_pairs_takes_part(walker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processes share weights, it must ask for as many forwards as the others, for each kind of pairs."""
    made = trainer(walker, tmp_path)
    given: list[Any] = []
    call = per_step.TurnConditioner.__call__
    monkeypatch.setattr(
        per_step.TurnConditioner, "__call__", lambda self, *args: (given.append(args), call(self, *args))[1]
    )
    made.train()
    ((plan, local, completions, _),) = given
    condition = made._evidence.condition
    contrast = torch.where(torch.arange(len(plan)) % 2 == 0, plan.demonstration, -1)
    for asked in (plan, replace(plan, contrast=contrast)):
        counts = []
        for first in (local.first, 10_000):
            numbers: list[int] = []

            def agreed(mine: int, numbers: list[int] = numbers) -> int:
                numbers.append(mine)
                return max(mine, 1)

            found = condition(asked, replace(local, first=first), completions, agreed)
            counts.append(len(numbers))
            assert bool(numbers[0]) == (first == local.first)
        assert found.pairs == []
        assert found.evidence.token_kl.shape[0] == 0
        assert counts[0] == counts[1] == (1 if asked is plan else 2)


def GradientKept(made: SCGRPOTrainer, kept: dict[str, Tensor]) -> Any:  # noqa: N802
    from transformers import TrainerCallback

    class Keeping(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            kept.update({name: p.grad.clone() for name, p in made.model.named_parameters()})

    return Keeping()


@pytest.mark.parametrize("settings", [{"steps_per_generation": 2, "num_iterations": 2}, {"beta": 0.1}], ids=str)
def test_buffered_batches_keep_their_turns(walker: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Old and reference log-probs of shuffled micro-batches are those of the same turns: the first ratio is 1."""
    made = trainer(walker, tmp_path, max_steps=4, per_device_train_batch_size=8, learning_rate=0.0, **settings)
    made.train()
    logs = [entry for entry in made.state.log_history if "loss" in entry]
    assert len(logs) >= 1
    clipped = [v for entry in logs for k, v in entry.items() if k.startswith("clip_ratio") and v]
    assert not clipped
    if "beta" in settings:
        assert all(abs(entry["kl"]) < 1e-5 for entry in logs)


def test_evaluation_uses_the_same_prompts(walker: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(walker), AutoTokenizer.from_pretrained(walker)
    result = evaluate(model, tokenizer, TASK, rows=TASK.rows("eval", 2), k=4, max_new_tokens=2 * MAX_MOVES)
    assert result.num_problems == 2
    assert result.error_frac == 0


def test_settings_that_need_one_sequence_are_refused(walker: Path, tmp_path: Path) -> None:
    made = trainer(walker, tmp_path, dynamic_sampling_max_rounds=1, teacher_timing="loss")
    with pytest.raises(ConfigError, match=r"dynamic_sampling_max_rounds.*teacher_timing"):
        made.train()


def test_turns_are_cut_and_put_back() -> None:
    context = Context([], [9, 9])
    episodes = [
        Episode([], [1, 2, 3, 4], [True] * 4, [0, 3], True, Verdict(1.0), [context, Context([], [7])]),
        Episode([], [5], [True], [0, 1], False, Verdict(0.0), [context, context]),  # its last action is gone
    ]
    found = per_step.columns(episodes, torch.device("cpu"))
    assert found["prompt_contexts"].tolist() == [[[9, 9], [-1, 7]], [[9, 9], [9, 9]]]
    turns, there = per_step.Turns.cut(found["prompt_turns"], torch.tensor([4, 1]))
    assert there.tolist() == [[True, True], [True, False]]
    values = torch.tensor([[1.0, 2, 3, 4], [5, 0, 0, 0]])
    taken = turns.take(values)
    assert taken.tolist() == [[1, 2, 3], [4, 0, 0], [5, 0, 0]]
    assert turns.put(taken, turns.row, (2, 4)).equal(values)
