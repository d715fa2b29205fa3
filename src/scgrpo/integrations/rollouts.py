"""A generation batch outside of any host: its rollouts, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from scgrpo.credit import Credit, Evidence, Groups, Plan
from scgrpo.teacher.prompts import Demonstration, Prompt


@dataclass(frozen=True)
class Rollouts:
    """What was sampled and graded. Lists are this process's; rewards are of all processes.

    Attributes:
        inputs: dataset rows; prompts, completions: strings or messages; completion_ids: unpadded token ids.
        rewards: (N, functions), NaN where a function gave no verdict.
        environments: names of the rows' environments, for agents.
        first_error: see `Groups.first_error`; of this process, and None on all processes or on none.
        refilled: further rollouts were graded after some of these.
    """

    inputs: Sequence[Mapping[str, Any]]
    prompts: Sequence[Prompt]
    completions: Sequence[Any]
    completion_ids: Sequence[Sequence[int]]
    rewards: Float[Tensor, "n funcs"]
    environments: Sequence[Any] | None = None
    first_error: Sequence[int] | None = None
    refilled: bool = False


@dataclass(frozen=True)
class ScoredBatch:
    """One generation batch with its credit, as listeners of a trainer get it.

    `groups`, `plan`, `evidence` and `credit` are of all processes; this one holds rows `first` ... of them.

    Attributes:
        step: optimizer steps done when the batch was generated.
        prompt_ids, teacher_prompt_ids: token ids; the latter by pair number of the plan, this process's pairs.
        demonstrations: by row number of the demonstration, those this process used.
    """

    step: int
    first: int
    rollouts: Rollouts
    reward_names: Sequence[str]
    prompt_ids: Sequence[Sequence[int]]
    groups: Groups
    plan: Plan
    evidence: Evidence
    credit: Credit
    demonstrations: Mapping[int, Demonstration]
    teacher_prompt_ids: Mapping[int, Sequence[int]]
