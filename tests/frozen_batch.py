"""A generation batch that does not change, and the credit it gets: one for all hosts.

`python tests/frozen_batch.py` makes the folder again: a small random model, what it sampled, and the credit that the
TRL integration gives it. Both hosts' tests compare with that.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from scgrpo.credit import Groups

FOLDER = Path(__file__).parent / "fixtures" / "frozen_batch"
NUM_GENERATIONS = 4
WIDTH = 16
# Credit methods that need each kind of pair: with a demonstration, without, against another demonstration.
METHODS = ("sc_grpo", "entropy", "rlcsd_weight")


def load() -> dict[str, Any]:
    """Rollouts (messages, prompt_ids, completion_ids, reward) and the expected credit by method."""
    return json.loads((FOLDER / "batch.json").read_text())


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """(B,) group advantages, the same for both hosts."""
    groups = rewards.view(-1, NUM_GENERATIONS)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def frozen_groups(rollouts: list[dict[str, Any]], eos: int) -> Groups:
    rewards = torch.tensor([rollout["reward"] for rollout in rollouts])
    ids = torch.zeros(len(rollouts), WIDTH, dtype=torch.long)
    mask = torch.zeros(len(rollouts), WIDTH, dtype=torch.bool)
    for row, rollout in enumerate(rollouts):
        length = len(rollout["completion_ids"])
        ids[row, :length], mask[row, :length] = torch.tensor(rollout["completion_ids"]), True
    return Groups(
        group=torch.arange(len(rollouts)) // NUM_GENERATIONS,
        solved=rewards >= 0.5,
        graded=torch.ones(len(rollouts), dtype=torch.bool),
        truncated=torch.tensor([rollout["completion_ids"][-1] != eos for rollout in rollouts]),
        lengths=mask.sum(1),
        mask=mask,
        advantages=advantages(rewards),
        micro_batch=torch.zeros(len(rollouts), dtype=torch.long),
        rewards=None,
        completion_ids=ids,
    )


def plan_rng() -> random.Random:
    return random.Random("frozen")


def credit_on_trl(method: str, folder: Path) -> dict[str, list]:
    """Weights and advantages as the TRL integration computes them."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from scgrpo.integrations.trl import SCGRPOConfig, SCGRPOTrainer
    from scgrpo.integrations.trl.conditioning import LocalRollouts

    rollouts = load()["rollouts"]
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    trainer = SCGRPOTrainer(
        str(FOLDER),
        lambda completions, **_: [0.0] * len(completions),
        SCGRPOConfig(
            output_dir=str(folder),
            credit=method,
            per_device_train_batch_size=len(rollouts),
            num_generations=NUM_GENERATIONS,
            max_completion_length=WIDTH,
            use_cpu=True,
            bf16=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_list([{"prompt": rollouts[0]["messages"]}]),
        processing_class=tokenizer,
    )
    groups = frozen_groups(rollouts, tokenizer.eos_token_id)
    plan = trainer.credit_method.plan(groups, plan_rng())
    local = LocalRollouts(
        first=0,
        prompts=[rollout["messages"] for rollout in rollouts],
        prompt_ids=[rollout["prompt_ids"] for rollout in rollouts],
        completion_ids=groups.completion_ids,
        lengths=groups.lengths,
        mask=groups.mask,
        hidden=None,
    )
    texts = [tokenizer.decode(rollout["completion_ids"], skip_special_tokens=True) for rollout in rollouts]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    evidence = trainer._evidence.condition(plan, local, completions, lambda number: None).evidence
    credit = trainer.credit_method.assign(groups, plan, evidence)
    return {"weights": credit.weights.tolist(), "advantages": credit.advantages.tolist()}


def make() -> None:
    """Everything in the folder."""
    sys.path.insert(0, str(Path(__file__).parent / "cluster"))
    from toy import build_model, build_tokenizer, prompts

    tokenizer = build_tokenizer()
    model = build_model(tokenizer).eval()
    tokenizer.save_pretrained(FOLDER)
    model.save_pretrained(FOLDER)
    torch.manual_seed(3)
    rollouts = []
    for question in prompts(4):
        messages = [{"role": "system", "content": "s"}, {"role": "user", "content": question}]
        ids = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        found = model.generate(
            torch.tensor([ids]), do_sample=True, num_return_sequences=NUM_GENERATIONS, max_new_tokens=WIDTH
        )
        for row in found[:, len(ids) :].tolist():
            own = row[: row.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in row else row
            text = tokenizer.decode(own, skip_special_tokens=True)
            reward = float(text != "" and ord(text[0]) % 2 == 0)
            rollouts.append({"messages": messages, "prompt_ids": ids, "completion_ids": own, "reward": reward})
    path = FOLDER / "batch.json"
    path.write_text(json.dumps({"rollouts": rollouts, "credit": {}}))
    with tempfile.TemporaryDirectory() as folder:
        credit = {method: credit_on_trl(method, Path(folder)) for method in METHODS}
    path.write_text(json.dumps({"rollouts": rollouts, "credit": credit}) + "\n")


if __name__ == "__main__":
    make()
