"""What an evaluation came to: graded completions, and the numbers made of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scgrpo.evaluation.metrics import Estimate, ProblemResult, avg_at_k, mean_pass_at_k
from scgrpo.evaluation.samplers import Sampling
from scgrpo.tasks.base import Completion, Status, Verdict

# How many completions without a grade a record names, and how much of the reason it quotes.
MAX_FAILURES = 50
_MAX_DETAIL = 500


@dataclass(frozen=True)
class Sample:
    """One completion with its verdict.

    Attributes:
        row: index of its problem among the rows.
        sample: its number among the problem's completions.
        problem_id: of the row.
        completion: text, or the messages of a conversation.
        verdict: how it was graded.
        num_tokens: end token included; of a conversation, what the model wrote.
        truncated: it has no end token.
        sampling_s, grading_s: its share of its batch's time.
    """

    row: int
    sample: int
    problem_id: str
    completion: Completion
    verdict: Verdict
    num_tokens: int
    truncated: bool
    sampling_s: float
    grading_s: float

    @property
    def key(self) -> tuple[int, int]:
        return self.row, self.sample

    @property
    def score(self) -> float:
        """NaN without a grade."""
        return self.verdict.score if self.verdict.status is Status.GRADED else math.nan


@dataclass(frozen=True)
class Failure:
    """A completion without a grade: of which problem, which of its completions, error or timeout, and why."""

    problem_id: str
    sample: int
    status: str
    detail: str


@dataclass(frozen=True)
class EvalResult:
    """Outcome of one evaluation.

    Attributes:
        task: name of the task.
        k: of Avg@k and Pass@k; the largest, if several were asked for.
        num_problems: problems sampled.
        num_samples: completions per problem.
        temperature, top_p, top_k, max_new_tokens: how.
        success_threshold: score from which a completion counts as solved.
        avg_at_k: mean score. pass_at_k: chance that one of k completions is solved. Estimates with 95 % intervals
            over problems.
        success_rate: share of solved completions, which is Pass@1; the same as `avg_at_k` where scores are 0 and 1.
        pass_at: Pass@k for every k that was asked for.
        error_frac: share of completions without a grade, which are in no estimate: `num_errors` and `num_timeouts`.
        failures: the first of them.
        truncated_frac: share of completions that reached max_new_tokens without ending.
        mean_completion_tokens, max_completion_tokens: lengths, end tokens included; of a conversation, what the model
            wrote.
        seconds: of sampling and grading, of all processes together. tokens_per_s: completion tokens per second of
            sampling.
        per_problem: one entry per problem, in the order of the rows.
    """

    task: str
    k: int
    num_problems: int
    num_samples: int
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    success_threshold: float
    avg_at_k: Estimate
    pass_at_k: Estimate
    success_rate: Estimate
    pass_at: dict[int, Estimate]
    error_frac: float
    num_errors: int
    num_timeouts: int
    failures: list[Failure]
    truncated_frac: float
    mean_completion_tokens: float
    max_completion_tokens: int
    seconds: float
    tokens_per_s: float
    per_problem: list[ProblemResult]

    def to_record(self, step: int, label: str) -> dict[str, Any]:
        """The line of `evals.jsonl`: JSON values only, None where a number is undefined."""
        record = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("avg_at_k", "pass_at_k", "success_rate"):
            record[name] = record[name].to_record()
        record["pass_at"] = {str(k): estimate.to_record() for k, estimate in self.pass_at.items()}
        record["failures"] = [dataclasses.asdict(failure) for failure in self.failures]
        record["per_problem"] = [
            dataclasses.asdict(p) | {"mean_score": None if math.isnan(p.mean_score) else p.mean_score}
            for p in self.per_problem
        ]
        return {"step": step, "label": label, **record}


def result_of(
    task: str, ks: Sequence[int], sampling: Sampling, threshold: float, samples: Sequence[Sample]
) -> EvalResult:
    """The numbers of all completions, in the order of rows and samples."""
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.row, []).append(sample)
    problems = [
        ProblemResult.from_scores(group[0].problem_id, [sample.score for sample in group], threshold)
        for group in groups.values()
    ]
    failed = [sample for sample in samples if math.isnan(sample.score)]
    num_timeouts = sum(sample.verdict.status is Status.TIMEOUT for sample in failed)
    num_tokens = sum(sample.num_tokens for sample in samples)
    sampling_s = sum(sample.sampling_s for sample in samples)
    return EvalResult(
        task=task,
        k=max(ks),
        num_problems=len(problems),
        num_samples=sampling.num_samples,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_new_tokens=sampling.max_new_tokens,
        success_threshold=threshold,
        avg_at_k=avg_at_k(problems),
        pass_at_k=mean_pass_at_k(problems, max(ks)),
        success_rate=mean_pass_at_k(problems, 1),
        pass_at={k: mean_pass_at_k(problems, k) for k in ks},
        error_frac=len(failed) / len(samples),
        num_errors=len(failed) - num_timeouts,
        num_timeouts=num_timeouts,
        failures=[
            Failure(s.problem_id, s.sample, str(s.verdict.status), s.verdict.detail[:_MAX_DETAIL])
            for s in failed[:MAX_FAILURES]
        ],
        truncated_frac=sum(sample.truncated for sample in samples) / len(samples),
        mean_completion_tokens=num_tokens / len(samples),
        max_completion_tokens=max(sample.num_tokens for sample in samples),
        seconds=sampling_s + sum(sample.grading_s for sample in samples),
        tokens_per_s=num_tokens / sampling_s,
        per_problem=problems,
    )
