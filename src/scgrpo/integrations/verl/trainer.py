"""SC-GRPO on verl: `trainer.v1.trainer_mode=scgrpo` is verl's synchronous trainer with credit per token.

verl samples, grades and optimises, on as many nodes as there are. Between its advantages and its update the credit
method plans which rollouts to re-score, the sharded actor scores them, and the per-token advantages take the place of
verl's, whose losses are per token anyway.

Differences from verl's trainer_mode=sync:
1. `advantages` differ from token to token where the method weights anything;
2. a rollout whose reward function says it has no verdict (or returns NaN) is left out of its group's baseline and
   gets advantage 0, and so does the only graded rollout of a group;
3. metrics and a few rollouts go to a run directory (docs/runs.md), and validations with their intervals.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import open_dict
from torch import Tensor
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from scgrpo.credit import Evidence, Groups, Plan
from scgrpo.credit.diagnostics import route_metrics
from scgrpo.credit.methods import check_finite
from scgrpo.integrations.past import PastSolutions
from scgrpo.integrations.verl import setup, transfer
from scgrpo.integrations.verl.batch import (
    Session,
    as_the_loss_sees,
    check_graded,
    check_outputs,
    distribute,
    logps_gap,
    lonely,
    read_groups,
    read_sessions,
)
from scgrpo.integrations.verl.prompts import completion_messages
from scgrpo.integrations.verl.recording import Decided, VerlRecorder
from scgrpo.integrations.verl.scoring import joined, score_pairs
from scgrpo.integrations.verl.settings import estimator, read_settings
from scgrpo.integrations.verl.waiting import watch
from scgrpo.tasks.base import Status
from scgrpo.teacher.prompts import Demonstration, demonstration_counts


@register_trainer("scgrpo")
class SCGRPOTrainer(PPOTrainerSync):
    """verl's synchronous trainer with a credit method.

    Raises:
        ConfigError: everything in the configuration that cannot work, at once.
        VerifierError, RolloutError: a step without any verdict, or without rollouts.
    """

    def __init__(self, config: Any) -> None:
        self.settings = read_settings(config)
        self.credit_method = self.settings.credit_method()
        self.recorder = VerlRecorder.create(config, self.settings)
        with open_dict(config):
            config.trainer.v1.trainer_mode = "sync"  # verl compares the mode with "sync" wherever it matters
        super().__init__(config)
        self._past = PastSolutions() if getattr(self.credit_method, "needs_past", False) else None

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        setup.check_model(self.config, self.settings, self.processor)
        self._prompts = setup.teacher_prompts(self.config, self.settings, self.tokenizer)
        self._eos_token_ids = setup.eos_token_ids(self.config, self.tokenizer)

    def fit(self, agent_loop_manager: Any) -> None:
        workers = getattr(agent_loop_manager, "agent_loop_workers", [])
        watch(self.replay_buffer, workers, self.settings.stall_timeout_s)
        super().fit(agent_loop_manager)

    # ---- credit -------------------------------------------------------------------------------------------------

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        sessions = read_sessions(batch.keys, batch.tags, transfer.read(batch))
        expected = self.config.data.train_batch_size * self.config.actor_rollout_ref.rollout.n
        # verl goes on without rollouts that failed, and says so nowhere.
        metrics["credit/missing_frac"] = max(0.0, 1 - len(sessions) / max(1, expected))
        check_graded(sessions)
        check_outputs(sessions, estimator(self.config))
        alone = lonely(sessions)
        graded = [session for session in sessions if session.verdict.status == Status.GRADED]
        metrics["credit/graded_reward"] = sum(session.reward for session in graded) / len(graded)
        apart = [s for s in sessions if s.uid in alone or s.verdict.status != Status.GRADED]
        with transfer.set_apart(batch, apart):
            done = super()._compute_advantage(batch, metrics)
        advantages, returns, masks = transfer.read_advantages(batch)
        for output in (output for session in apart for output in session.outputs):
            advantages[output.row] = torch.zeros_like(advantages[output.row])
            returns[output.row] = torch.zeros_like(returns[output.row])
        changed = bool(apart)
        compared = as_the_loss_sees([session for session in sessions if session.uid not in alone], masks)
        if compared:
            changed |= self._assign_credit(compared, advantages, metrics)
        return transfer.write_advantages(batch, advantages, returns) if changed else done

    def _assign_credit(self, sessions: Sequence[Session], advantages: list[Tensor], metrics: dict[str, Any]) -> bool:
        """Per-token advantages of these rollouts, in place; whether any changed."""
        groups = read_groups(
            sessions,
            advantages,
            self.settings,
            step=(self.global_steps - 1) * setup.updates_per_batch(self.config),
            eos_token_ids=self._eos_token_ids,
            response_length=self.config.actor_rollout_ref.rollout.response_length,
        )
        groups, past = self._recall(groups, sessions)
        rng = random.Random("/".join(map(str, ("scgrpo", self.settings.seed, self.global_steps))))
        plan = self.credit_method.plan(groups, rng)
        start = time.perf_counter()
        evidence, shown, prompts = self._evidence(plan, sessions, past, groups.mask.shape[1])
        credit = self.credit_method.assign(groups, plan, evidence)
        check_finite("The credit assigned", credit.advantages)
        own = {**route_metrics(groups, credit.route), **credit.metrics}
        if len(plan):
            of_all = [shown[row] for row in plan.demonstration.tolist() if row in shown]
            counts = demonstration_counts(of_all)
            own |= {f"{name}_frac": count / max(1, len(of_all)) for name, count in counts.items()}
            own["teacher_pass_s"] = time.perf_counter() - start
            gap = logps_gap(sessions, plan, evidence.student_logps)
            own |= {} if gap is None else {"student_logps_gap": gap}
        metrics.update({f"credit/{name}": value for name, value in own.items()})
        self._record(Decided(sessions, groups, plan, evidence, credit, shown, prompts))
        return distribute(credit, groups, sessions, advantages)

    def _recall(self, groups: Groups, sessions: Sequence[Session]) -> tuple[Groups, list[Any]]:
        """Groups with the earlier solutions of their prompts, where the method wants them."""
        if self._past is None:
            return groups, []
        first = {session.uid: session.messages for session in reversed(sessions)}
        uids = dict.fromkeys(session.uid for session in sessions)
        owners, past = self._past.recall([first[uid] for uid in uids])
        completions = [completion_messages(session, self._prompts.decode) for session in sessions]
        good = (groups.usable & groups.solved).tolist()
        self._past.remember([session.messages for session in sessions], completions, good)
        return replace(groups, past=torch.tensor(owners, dtype=torch.long)), past

    def _evidence(
        self, plan: Plan, sessions: Sequence[Session], past: Sequence[Any], width: int
    ) -> tuple[Evidence, dict[int, Demonstration], dict[int, Sequence[int]]]:
        """Evidence of a plan, the demonstrations shown, and the teacher's first prompt of each pair."""
        shown = self._prompts.demonstrations(plan, sessions, past)
        pairs, places = self._prompts.pairs(plan, sessions, shown)
        rollout = self.config.actor_rollout_ref.rollout
        dynamic = rollout.log_prob_use_dynamic_bsz
        found = score_pairs(
            self.actor_rollout_wg,
            pairs,
            max((len(pair.completion_ids) for pair in pairs), default=0),
            temperature=rollout.temperature,
            divergence=self.settings.token_divergence(),
            max_token_len_per_gpu=rollout.log_prob_max_token_len_per_gpu if dynamic else None,
            micro_batch_size_per_gpu=None if dynamic else rollout.log_prob_micro_batch_size_per_gpu,
        )
        prompts = {number: pair.teacher_ids for pair, (number, first) in zip(pairs, places, strict=True) if not first}
        return joined(found, pairs, places, len(plan), width), shown, prompts

    # ---- records ------------------------------------------------------------------------------------------------

    def _record(self, decided: Decided) -> None:
        if self.recorder.wants_rollouts(self.global_steps, self.total_training_steps):
            self.recorder.rollouts(decided, self.global_steps - 1, self.tokenizer, self._prompts.decode)

    def _compute_metrics(self, batch: Any, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super()._compute_metrics(batch, metrics, *args, **kwargs)
        self.recorder.metrics(self.global_steps, metrics)

    def _maybe_log_val_generations(self, inputs: list[str], outputs: list[str], scores: list[float]) -> None:
        super()._maybe_log_val_generations(inputs, outputs, scores)
        self.recorder.validated(inputs)

    def _val_metrics_update(self, data_sources: Any, sample_uids: Any, infos: Any, *args: Any, **kwargs: Any) -> Any:
        expected = kwargs.get("expected_acc_counts") or {}
        self.recorder.validation(self.global_steps, self.total_training_steps, data_sources, infos, expected)
        return super()._val_metrics_update(data_sources, sample_uids, infos, *args, **kwargs)

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        self.recorder.resumed(self.global_steps)
        if self._past is not None:
            resumed = self.config.trainer.get("resume_from_path")
            chosen = self.config.trainer.get("resume_mode") == "resume_path" and resumed
            self._past.load(Path(resumed) if chosen else self._checkpoint_folder())

    def _save_checkpoint(self) -> None:
        super()._save_checkpoint()
        if self._past is not None:
            self._past.save(self._checkpoint_folder())

    def _checkpoint_folder(self) -> Path:
        return Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
