"""A verl run in a run directory, so that `scgrpo report` and `scgrpo compare` read it like any other.

verl's metrics keep their names; those the reports look for stand beside them under TRL's. A validation becomes an
evaluation per data source, paired by problem. Lengths and times of its completions are not known there.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from scgrpo.credit import Credit, Evidence, Groups, Plan
from scgrpo.errors import RunError
from scgrpo.evaluation.metrics import ProblemResult, avg_at_k, mean_pass_at_k
from scgrpo.integrations.recording import rollout_rows
from scgrpo.integrations.rollouts import Rollouts, ScoredBatch
from scgrpo.integrations.verl.batch import Session, status_of
from scgrpo.integrations.verl.prompts import completion_messages
from scgrpo.integrations.verl.settings import VerlSettings
from scgrpo.runs import RunDirectory
from scgrpo.tasks.base import Status
from scgrpo.teacher.prompts import Demonstration

# TRL's name of what verl calls otherwise.
NAMES = {
    "credit/graded_reward": "reward",  # critic/score/mean counts what has no verdict as 0
    "actor/pg_loss": "loss",
    "actor/entropy": "entropy",
    "actor/grad_norm": "grad_norm",
    "actor/lr": "learning_rate",
    "response_length/mean": "completions/mean_length",
    "response_length/clip_ratio": "completions/clipped_ratio",
    "timing_s/step": "step_time",
    "timing_s/gen": "timing/sampling_s",
    "credit/teacher_pass_s": "timing/scoring_s",
}
_LOSS_TYPES = {"seq-mean-token-mean": "grpo", "token-mean": "dapo", "seq-mean-token-sum-norm": "dr_grpo"}


@dataclass(frozen=True)
class Decided:
    """A batch with its credit.

    Attributes:
        sessions: the rollouts, in the order of `groups`.
        shown: demonstrations by row number. teacher_prompts: by pair of the plan, of its first output.
    """

    sessions: Sequence[Session]
    groups: Groups
    plan: Plan
    evidence: Evidence
    credit: Credit
    shown: Mapping[int, Demonstration]
    teacher_prompts: Mapping[int, Sequence[int]]


class VerlRecorder:
    """Writes one training run. All of it happens in the process of the trainer, on the node that runs it."""

    def __init__(self, run: RunDirectory, config: Any, settings: VerlSettings) -> None:
        self.run, self.config, self.settings = run, config, settings
        self._start = time.monotonic()
        self._prompts: list[str] = []

    @classmethod
    def create(cls, config: Any, settings: VerlSettings) -> VerlRecorder:
        """With a new run directory, or that of the checkpoint that verl will resume from.

        Raises:
            RunError: the folder is in use.
        """
        path = Path(settings.run_dir or Path(config.trainer.default_local_dir) / "run")
        if config.trainer.get("resume_mode", "auto") != "disable":
            on_exists = "resume"  # whether there is a checkpoint, verl finds out later
        else:
            on_exists = "overwrite" if settings.run_dir_overwrite else "error"
        try:
            run = RunDirectory.create(path, on_exists=on_exists)  # type: ignore[arg-type]
        except RunError as error:
            raise RunError(
                error.problem,
                "Set trainer.v1.scgrpo.run_dir to another folder, or run_dir_overwrite=True.",
            ) from error
        return cls(run, config, settings)

    def resumed(self, step: int) -> None:
        """verl goes on after this many steps: later records are of steps that will be done again. Nothing is written
        before, so that a start that is refused leaves what is there as it was.

        Raises:
            RunError: it starts anew, and there are records of another run.
        """
        others = step == 0 and bool(self.run.metrics() or self.run.evals())
        if others and self.settings.run_dir_overwrite:
            self.run = RunDirectory.create(self.run.path, on_exists="overwrite")
        elif others:
            raise RunError(
                f"{self.run.path} holds records of a run, but verl found no checkpoint to resume from.",
                "Set trainer.v1.scgrpo.run_dir to another folder, or run_dir_overwrite=True.",
            )
        self.run.truncate_after(step)
        self.run.write_config(resolved(self.config, self.settings))
        seeds = {"seed": self.settings.seed, "data": int(self.config.data.get("seed") or 0)}
        self.run.write_provenance(command=sys.argv, seeds=seeds)

    def metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Metrics of a step that is done."""
        numbers = {name: float(value) for name, value in metrics.items() if _is_number(value)}
        numbers |= {name: numbers[theirs] for theirs, name in NAMES.items() if theirs in numbers}
        self.run.log_metrics(step, numbers, time_s=time.monotonic() - self._start)

    def wants_rollouts(self, step: int, last: int) -> bool:
        """Whether the batch of this step (from 1) is to be recorded."""
        every = self.settings.rollouts_every
        return bool(every) and ((step - 1) % every == 0 or step == last)

    def rollouts(self, decided: Decided, step: int, tokenizer: Any, decode: Callable[[Sequence[int]], str]) -> None:
        """A few groups of a batch, sampled after so many steps."""
        sessions = decided.sessions
        batch = ScoredBatch(
            step=step,
            first=0,
            rollouts=Rollouts(
                inputs=[session.source for session in sessions],
                prompts=[session.messages for session in sessions],
                completions=[completion_messages(session, decode) for session in sessions],
                completion_ids=[session.completion_ids for session in sessions],
                rewards=torch.tensor([[session.reward] for session in sessions]),
            ),
            reward_names=["reward"],
            prompt_ids=[session.outputs[0].prompt_ids for session in sessions],
            groups=decided.groups,
            plan=decided.plan,
            evidence=decided.evidence,
            credit=decided.credit,
            demonstrations=decided.shown,
            teacher_prompt_ids=decided.teacher_prompts,
        )
        verdicts = [session.verdict for session in sessions]
        rows = rollout_rows(batch, tokenizer, num_groups=self.settings.rollouts_groups, verdicts=verdicts)
        self.run.write_rollouts(step, rows)

    def validated(self, prompts: Sequence[str]) -> None:
        """Prompts of the completions that `validation` is about, in its order."""
        self._prompts = list(prompts)

    def validation(
        self,
        step: int,
        last: int,
        sources: Sequence[str],
        infos: Mapping[str, Sequence[Any]],
        expected: Mapping[tuple[str, str], int],
    ) -> None:
        """Results of a validation: of each completion its data source and what its reward function returned. One of
        the same step is on record already where verl resumes with a validation."""
        known = {record["task"] for record in self.run.evals() if record["step"] == step}
        scores, verdicts = infos["reward"], infos.get("verdict") or [None] * len(infos["reward"])
        decided = infos.get(self.settings.success_metric or "reward") or scores
        names = infos.get("problem_id") or [None] * len(scores)
        sampling = self.config.actor_rollout_ref.rollout.val_kwargs
        for source in dict.fromkeys(source for source in sources if str(source) not in known):
            rows = [row for row, other in enumerate(sources) if other == source]
            problems: dict[str, list[int]] = {}
            for row in rows:
                problems.setdefault(names[row] or _problem_id(self._prompts[row]), []).append(row)
            graded = [status_of(verdicts[row], _number(scores[row])) == Status.GRADED for row in rows]
            of_row = dict(zip(rows, graded, strict=True))
            # Completions that were asked for and lost are in no list.
            lost = max(0, sum(n for (of, _), n in expected.items() if of == str(source)) - len(rows))
            record = _record(
                [_result(name, own, scores, decided, of_row, self.settings) for name, own in problems.items()],
                k=max(map(len, problems.values())),
                errors=sum(not ok for ok in graded) + lost,
                lost=lost,
                timeouts=sum(verdicts[row] == Status.TIMEOUT for row in rows),
            )
            settings = {"temperature": float(sampling.temperature), "top_p": float(sampling.top_p)}
            label = "before" if step == 0 else "after" if step == last else f"step {step}"
            threshold = {"success_threshold": self.settings.success_threshold}
            self.run.log_eval({"step": step, "label": label, "task": str(source), **settings, **threshold, **record})


def resolved(config: Any, settings: VerlSettings) -> dict[str, Any]:
    """The configuration as reports read it: under TRL's names, and verl's own whole."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    train = {
        **vars(settings),
        "learning_rate": float(actor.optim.lr),
        "num_generations": int(rollout.n),
        "max_completion_length": int(rollout.response_length),
        "temperature": float(rollout.temperature),
        "loss_type": _LOSS_TYPES.get(actor.loss_agg_mode, actor.loss_agg_mode),
        "epsilon": float(actor.clip_ratio_low if actor.clip_ratio_low is not None else actor.clip_ratio),
        "epsilon_high": float(actor.clip_ratio_high if actor.clip_ratio_high is not None else actor.clip_ratio),
        "beta": float(actor.kl_loss_coef) if actor.use_kl_loss else 0.0,
        "scale_rewards": "group" if config.algorithm.get("norm_adv_by_std_in_grpo", True) else "none",
        "dynamic_sampling_max_rounds": int(bool((config.algorithm.get("filter_groups") or {}).get("enable", False))),
        "max_steps": config.trainer.total_training_steps,
    }
    return {
        "host": "verl",
        "label": "grpo" if settings.credit == "uniform" else settings.credit,
        "train": train,
        "task": {"name": str(config.data.train_files)},
        "model": {"name_or_path": str(config.actor_rollout_ref.model.path)},
        "verl": OmegaConf.to_container(config, resolve=True),
    }


def _result(
    name: str,
    rows: Sequence[int],
    scores: Sequence[Any],
    decided: Sequence[Any],
    graded: Mapping[int, bool],
    settings: VerlSettings,
) -> ProblemResult:
    known = [row for row in rows if graded[row]]
    return ProblemResult(
        problem_id=name,
        n=len(known),
        num_solved=sum(float(decided[row]) >= settings.success_threshold for row in known),
        mean_score=sum(float(scores[row]) for row in known) / len(known) if known else math.nan,
        num_errors=len(rows) - len(known),
    )


def _record(problems: Sequence[ProblemResult], k: int, errors: int, lost: int, timeouts: int) -> dict[str, Any]:
    samples = sum(problem.n + problem.num_errors for problem in problems) + lost
    return {
        "k": k,
        "num_problems": len(problems),
        "num_samples": k,
        "avg_at_k": avg_at_k(problems).to_record(),
        "pass_at_k": mean_pass_at_k(problems, k).to_record(),
        "success_rate": mean_pass_at_k(problems, 1).to_record(),
        "pass_at": {str(n): mean_pass_at_k(problems, n).to_record() for n in {1, k}},
        "error_frac": errors / max(1, samples),
        "num_errors": errors - timeouts,
        "num_timeouts": timeouts,
        "per_problem": [
            vars(problem) | {"mean_score": None if math.isnan(problem.mean_score) else problem.mean_score}
            for problem in problems
        ],
    }


def _number(score: Any) -> float:
    return math.nan if score is None else float(score)


def _problem_id(prompt: str) -> str:
    """verl draws new ids for every validation; the prompt stays the same."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]


def _is_number(value: Any) -> bool:
    return not isinstance(value, (bool, str)) and hasattr(value, "__float__") and getattr(value, "size", 1) == 1
