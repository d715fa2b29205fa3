"""Run by test_frozen_batch.py under torchrun: verl's half of the frozen batch. Saves the credit of each method."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from engine_cases import Group, make_worker
from omegaconf import OmegaConf
from torch import distributed
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from frozen_batch import FOLDER, METHODS, NUM_GENERATIONS, WIDTH, advantages, load, plan_rng

from scgrpo.credit import Evidence
from scgrpo.integrations.verl.batch import read_groups, read_sessions
from scgrpo.integrations.verl.scoring import FIELDS, score_pairs
from scgrpo.integrations.verl.settings import VerlSettings
from scgrpo.integrations.verl.setup import eos_token_ids, teacher_prompts


def rows(rollouts: list[dict[str, Any]]) -> dict[str, Any]:
    """The frozen batch as verl's trainer finds it."""
    lengths = [len(rollout["completion_ids"]) for rollout in rollouts]

    def jagged(values: list[torch.Tensor]) -> torch.Tensor:
        return torch.nested.as_nested_tensor(values, layout=torch.jagged)

    scores = [torch.zeros(length) for length in lengths]
    for score, rollout in zip(scores, rollouts, strict=True):
        score[-1] = rollout["reward"]
    return {
        "raw_prompt": [rollout["messages"] for rollout in rollouts],
        "prompts": jagged([torch.tensor(rollout["prompt_ids"]) for rollout in rollouts]),
        "responses": jagged([torch.tensor(rollout["completion_ids"]) for rollout in rollouts]),
        "response_mask": jagged([torch.ones(length, dtype=torch.long) for length in lengths]),
        "rm_scores": jagged(scores),
    }


def credit(method: str, folder: Path) -> dict[str, list]:
    rollouts = load()["rollouts"]
    keys = [f"g{row // NUM_GENERATIONS}_{row % NUM_GENERATIONS}_0" for row in range(len(rollouts))]
    settings = VerlSettings(credit=method)
    config = OmegaConf.create(
        {
            "data": {},
            "actor_rollout_ref": {
                "model": {"path": str(FOLDER)},
                "rollout": {"response_length": WIDTH, "multi_turn": {}},
            },
        }
    )
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    sessions = read_sessions(keys, [{} for _ in keys], rows(rollouts))
    of_rollouts = advantages(torch.tensor([rollout["reward"] for rollout in rollouts]))
    own = [value.expand(len(r["completion_ids"])) for value, r in zip(of_rollouts, rollouts, strict=True)]
    ends = eos_token_ids(config, tokenizer)
    groups = read_groups(sessions, own, settings, step=0, eos_token_ids=ends, response_length=WIDTH)
    chosen = settings.credit_method()
    plan = chosen.plan(groups, plan_rng())
    prompts = teacher_prompts(config, settings, tokenizer)
    pairs, places = prompts.pairs(plan, sessions, prompts.demonstrations(plan, sessions, []))
    assert [pair for pair, _ in places] == list(range(len(plan)))
    found = score_pairs(
        Group(make_worker(FOLDER)),
        pairs,
        groups.mask.shape[1],
        temperature=1.0,
        divergence=settings.token_divergence(),
        max_token_len_per_gpu=200,
    )
    evidence = Evidence(**{name: getattr(found, name) for name in FIELDS})
    given = chosen.assign(groups, plan, evidence)
    return {"weights": given.weights.tolist(), "advantages": given.advantages.tolist()}


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    out = Path(sys.argv[1])
    out.write_text(json.dumps({method: credit(method, out.parent) for method in METHODS}))
    distributed.destroy_process_group()
