"""What a testbed's base model is like: how often it is right, what demonstrations change, and where D is large."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from scgrpo.tasks.base import Completion, Row
from scgrpo.tasks.environment import EnvironmentTask
from scgrpo.tasks.procedural import ProceduralTask
from scgrpo.teacher.hidden import CompletionStates
from scgrpo.teacher.models import output_head
from scgrpo.teacher.prompts import transcript
from scgrpo.teacher.scoring import ConditionedPass, Pairs
from scgrpo.tiny.documents import conditioned
from scgrpo.tiny.measure import PassRates, converse, measure, sample_ids
from scgrpo.tiny.vocabulary import prompt_text

GROUP_SIZE = 8
_SMALL_D = 1e-3
_SOLUTIONS_DRAWN = 64


@dataclass(frozen=True)
class Statistics:
    """Measured at temperature 1 on held-out problems, in groups of `GROUP_SIZE` rollouts.

    Attributes:
        num_problems: problems sampled.
        pass_at_1, pass_at_8: share of correct rollouts; of groups with a correct one.
        mixed_frac: share of groups with both correct and wrong rollouts.
        pass_rates: alone and with demonstrations, see `PassRates`.
        mean_tokens: completion length, end tokens included, observations not.
        distinct_solutions: mean number of different ones among 64 drawn by the task.
        free_frac: share of the words of rollouts that never decide.
        d_p50, d_p75, d_p95: percentiles of D (nats per token) over all rollouts of mixed groups, each with another
            correct rollout of its group as demonstration. D = KL(teacher || student).
        d_small_frac: share of those tokens with D < 1e-3 nats.
        auc_d, auc_entropy: probability that the first error of a failed rollout has a higher D (a higher entropy of
            the student) than another token of that rollout; ties count half.
        num_errors: failed rollouts in these two.
    """

    num_problems: int
    pass_at_1: float
    pass_at_8: float
    mixed_frac: float
    pass_rates: PassRates
    mean_tokens: float
    distinct_solutions: float
    free_frac: float
    d_p50: float
    d_p75: float
    d_p95: float
    d_small_frac: float
    auc_d: float
    auc_entropy: float
    num_errors: int


@dataclass(frozen=True)
class _Rollout:
    """A completion of a row: its ids (with the end token, if it ended), which of them the model wrote, its text or
    transcript, and the position of the token where it went wrong."""

    row: Row
    ids: list[int]
    own: list[bool]
    completion: Completion
    first_error: int | None


def statistics(model: Any, tokenizer: Any, task: ProceduralTask, *, seed: int = 0) -> Statistics:
    """All of it; half a minute of one core for a model of the shipped shape."""
    rows = task.rows("eval")
    rng = random.Random(seed)
    groups = _rollouts(model, tokenizer, task, rows, seed)
    rollouts = [rollout for group in groups for rollout in group]
    solved = [sum(rollout.first_error is None for rollout in group) for group in groups]
    drawn = [{transcript(task.solution(row, rng)) for _ in range(_SOLUTIONS_DRAWN)} for row in rows]
    words = [word for rollout in rollouts for word in task.words_of(rollout.completion)]
    return Statistics(
        num_problems=len(rows),
        pass_at_1=sum(solved) / len(rollouts),
        pass_at_8=sum(map(bool, solved)) / len(groups),
        mixed_frac=sum(0 < number < GROUP_SIZE for number in solved) / len(groups),
        pass_rates=measure(model, tokenizer, task, num_samples=2, seed=seed),
        mean_tokens=sum(sum(rollout.own) for rollout in rollouts) / len(rollouts),
        distinct_solutions=sum(map(len, drawn)) / len(drawn),
        free_frac=sum(word in task.free_words for word in words) / len(words),
        **_of_evidence(model, tokenizer, groups, rng),
    )


def _rollouts(
    model: Any, tokenizer: Any, task: ProceduralTask, rows: Sequence[Row], seed: int
) -> list[list[_Rollout]]:
    repeated = [row for row in rows for _ in range(GROUP_SIZE)]
    prompts = [row["prompt"] for row in repeated]
    if isinstance(task, EnvironmentTask):
        episodes = converse(model, tokenizer, task, repeated, prompts, task.max_completion_length, seed=seed)
        found = task.first_errors([episode.messages for episode in episodes], repeated)
        rollouts = [
            _Rollout(row, e.completion_ids, e.mask, e.messages, at if at is None else [*e.turns, len(e.mask)][at])
            for row, e, at in zip(repeated, episodes, found, strict=True)
        ]
    else:
        ids = sample_ids(model, tokenizer, prompts, task.max_completion_length, seed=seed)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        own = [[True] * len(row) for row in ids]
        rollouts = list(map(_Rollout, repeated, ids, own, texts, task.first_errors(texts, repeated)))
    return [rollouts[first : first + GROUP_SIZE] for first in range(0, len(rollouts), GROUP_SIZE)]


def _of_evidence(
    model: Any, tokenizer: Any, groups: Sequence[Sequence[_Rollout]], rng: random.Random
) -> dict[str, Any]:
    """The fields of `Statistics` that come from the conditioned pass."""
    shown = []
    for group in groups:
        for rollout in group:
            others = [other for other in group if other.first_error is None and other is not rollout]
            if others and any(other.first_error is not None for other in group):
                shown.append((rollout, rng.choice(others).completion))
    token_kl, entropy, mask = _evidence(model, tokenizer, shown)
    all_d = token_kl[mask]
    ranks = [
        (_rank(token_kl[index, mask[index]], place), _rank(entropy[index, mask[index]], place))
        for index, (rollout, _) in enumerate(shown)
        if (at := rollout.first_error) is not None and at < len(rollout.ids) and sum(rollout.own) > 1
        for place in [sum(rollout.own[:at])]
    ]
    p50, p75, p95 = all_d.quantile(torch.tensor([0.5, 0.75, 0.95], dtype=all_d.dtype)).tolist()
    return {
        "d_p50": p50,
        "d_p75": p75,
        "d_p95": p95,
        "d_small_frac": (all_d < _SMALL_D).double().mean().item(),
        "auc_d": sum(d for d, _ in ranks) / len(ranks),
        "auc_entropy": sum(h for _, h in ranks) / len(ranks),
        "num_errors": len(ranks),
    }


def _evidence(
    model: Any, tokenizer: Any, shown: Sequence[tuple[_Rollout, Completion]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """D and the student's entropy of rollouts under demonstrations, and which tokens the model wrote: (P, T) each."""

    def encode(messages: list[dict[str, str]]) -> list[int]:
        return tokenizer(prompt_text(messages))["input_ids"]

    lengths = torch.tensor([len(rollout.ids) for rollout, _ in shown])
    completions = torch.zeros(len(shown), int(lengths.max()), dtype=torch.long)
    mask = torch.zeros_like(completions, dtype=torch.bool)
    for index, (rollout, _) in enumerate(shown):
        completions[index, : len(rollout.ids)] = torch.tensor(rollout.ids)
        mask[index, : len(rollout.ids)] = torch.tensor(rollout.own)
    pairs = Pairs(
        student_prompts=[encode(rollout.row["prompt"]) for rollout, _ in shown],
        teacher_prompts=[encode(conditioned(rollout.row, "verified", other)) for rollout, other in shown],
        completions=completions.to(model.device),
        lengths=lengths.to(model.device),
        mask=mask.to(model.device),
    )
    score = ConditionedPass(
        model=model, head=partial(output_head, model, 1.0), states=CompletionStates(model, ("off",)), max_rows=256
    )
    evidence = score(pairs)
    return evidence.token_kl.cpu(), evidence.student_entropy.cpu(), mask


def _rank(scores: torch.Tensor, place: int) -> float:
    """Share of the other scores below the one at `place`; ties count half."""
    below = (scores < scores[place]).sum().item()
    ties = (scores == scores[place]).sum().item() - 1
    return (below + 0.5 * ties) / (len(scores) - 1)
