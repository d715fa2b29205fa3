"""SC-GRPO on TRL: `SCGRPOTrainer` is `GRPOTrainer` with credit per token.

TRL samples, grades and optimises. Between grading and optimising, the credit method plans which rollouts to
re-score, the conditioned pass scores them, and the per-token advantages go into TRL's own loss, which accepts them.

Differences from GRPOTrainer:
1. `advantages` of the batch are (B, T) when the method weights anything;
2. a rollout whose success reward has no verdict is left out instead of counting as 0 in the weighted sum;
3. an exception in a reward function costs the rollouts that cause it, not the run;
4. a non-finite loss stops training instead of reaching the optimizer;
5. a checkpoint in the middle of a generation batch keeps the rollouts still to be trained on;
6. where rollouts are scored inside the loss, the log-probs and entropies of scored tokens come from the product with
   the output head that gives their divergence: the same numbers, in fp32 also where TRL's are rounded to bf16;
7. with `dynamic_sampling_max_rounds`, groups that teach nothing are replaced by further ones;
8. with `distill_coef`, a distillation loss is added, see `distillation.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from trl import GRPOTrainer

from scgrpo.credit import Credit, CreditMethod
from scgrpo.credit.diagnostics import route_metrics
from scgrpo.credit.methods import check_finite
from scgrpo.errors import ConfigError, IncompatibleHostError
from scgrpo.integrations.past import PastSolutions
from scgrpo.integrations.rollouts import Rollouts, ScoredBatch
from scgrpo.integrations.trl import compat, gspo, overlong, per_step, setup
from scgrpo.integrations.trl.batch import Uncredited, gather_groups
from scgrpo.integrations.trl.callbacks import StepTimes, TeacherUpdate
from scgrpo.integrations.trl.checkpoint import load_state, save_state
from scgrpo.integrations.trl.compute import ComputeMeter
from scgrpo.integrations.trl.conditioning import Conditioned, TeacherPromptFn, local_rollouts
from scgrpo.integrations.trl.config import SCGRPOConfig
from scgrpo.integrations.trl.dropping import drop_rows
from scgrpo.integrations.trl.environments import transcripts
from scgrpo.integrations.trl.evidence import EvidenceOfAll, everywhere
from scgrpo.integrations.trl.in_loss import (
    check_left_out,
    completion_logps,
    padded_states,
    pending_advantages,
    sampled_order,
)
from scgrpo.integrations.trl.rewards import exclude_ungraded, first_errors
from scgrpo.integrations.trl.token_rewards import loss_without_kl, reference_penalty
from scgrpo.teacher.models import backbone, has_dropout
from scgrpo.teacher.prompts import Prompt
from scgrpo.teacher.weights import TeacherKind, TeacherWeights


class SCGRPOTrainer(GRPOTrainer):
    """Drop-in replacement for TRL's GRPOTrainer.

    Args:
        model, reward_funcs, args, **kwargs: as for GRPOTrainer, with `args` an SCGRPOConfig.
        credit_method: a CreditMethod; default: the one `args.credit` names.
        teacher_prompt_fn: `(prompt, demonstration, verified=...) -> prompt`; default: `args.teacher_template`.

    Attributes:
        listeners: callables that get every `ScoredBatch` (recorders, plots).
        meter: what training has cost so far.

    Raises:
        ConfigError: settings that cannot work with this model or set-up.
        IncompatibleHostError: a TRL version without the seams needed.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: SCGRPOConfig | None = None,
        *positional: Any,
        credit_method: CreditMethod | None = None,
        teacher_prompt_fn: TeacherPromptFn | None = None,
        **kwargs: Any,
    ) -> None:
        compat.check_host()
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = SCGRPOConfig(f"{name.split('/')[-1]}-SC-GRPO")
        if not isinstance(args, SCGRPOConfig):
            raise ConfigError(
                f"args is a {type(args).__name__}.", "Use SCGRPOConfig: it takes every GRPOConfig setting."
            )
        super().__init__(model, setup.rewarding(reward_funcs, args), args, *positional, **kwargs)
        if self.reward_func_names == [overlong.NAME]:
            raise ConfigError("Nothing is rewarded but short answers.", "Pass reward_funcs, or set overlong_frac=0.")
        if args.importance_sampling_level == gspo.LEVEL:
            self.importance_sampling_level = "token"  # of TRL's loss; what it is given makes it the sequence's

        self.credit_method = credit_method or args.credit_method()
        self.listeners: list[Callable[[ScoredBatch], None]] = []
        self._success = setup.success_column(self)
        self._blames = getattr(self.credit_method, "needs_first_error", False)  # else it is not searched for
        setup.check_setup(self)
        policy = self.accelerator.unwrap_model(self.model)
        self._teacher = TeacherWeights(
            policy,
            cast(TeacherKind, args.teacher_weights),
            snapshot_steps=args.teacher_snapshot_steps,
            decay=args.teacher_ema_decay,
        )
        self.add_callback(TeacherUpdate(self._teacher))
        self.meter = ComputeMeter(self.accelerator, policy, self._metrics["train"])
        self.add_callback(self.meter)
        self._times = StepTimes(self.accelerator.device, partial(self._log_under, "timing"))
        self.add_callback(self._times)
        self._evidence = EvidenceOfAll(
            self.accelerator,
            setup.conditioner(self, policy, teacher_prompt_fn),
            partial(self._log_under, "credit"),
            floor=getattr(self.credit_method, "floor", None),
        )
        self._distiller = setup.distiller(self, self._evidence.condition)
        self._sampling = setup.dynamic_sampling(self) if args.dynamic_sampling_max_rounds else None
        # Of the rows being sampled or trained on, where turns have prompts of their own.
        self.turn_columns: dict[str, Tensor] = {}
        # What passes from one of TRL's steps to the next: its rollouts with their rewards; hidden states of its own
        # pass; the batch whose credit the loss will assign, and that loss's inputs (all, kept).
        self._rollouts: Rollouts | None = None
        self._captured: Tensor | None = None
        self._capturing = False
        self._in_loss = setup.scores_in_loss(self)
        self._past = PastSolutions() if getattr(self.credit_method, "needs_past", False) else None
        self._uncredited: Uncredited | None = None
        self._loss_inputs: tuple[dict[str, Any], dict[str, Any]] | None = None

    # ---- the seams of TRL ---------------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        completions = transcripts(inputs, completions)
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        rewards = overlong.only_where_graded(rewards, self.reward_func_names)
        group_size = self.num_generations if self.model.training else self.num_generations_eval
        rewards = exclude_ungraded(rewards, self._success, group_size, self.reward_func_names)
        self._rollouts = Rollouts(
            *(inputs, prompts, completions, completion_ids_list, rewards),
            environments=getattr(self, "_batch_environments", None),
            first_error=first_errors(self.reward_funcs[self._success], len(prompts)) if self._blames else None,
        )
        return rewards

    def _sample(self, inputs: Any) -> tuple[dict[str, Any], Rollouts]:
        """TRL's generation batch, and what it would drop."""
        self.sampled_rows = inputs  # a rollout_func gets the prompts alone
        self.turn_columns = {}
        batch = super()._generate_and_score_completions(inputs) | self.turn_columns
        rollouts, self._rollouts = self._rollouts, None
        assert rollouts is not None
        self.meter.sampled(batch, rollouts)
        return batch, rollouts

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        # Dropout is on in TRL's pass; its hidden states are the policy's own only where there is none.
        self._capturing = self.model.training and not has_dropout(self.model)
        self._captured = None
        with self._times("sampling"):
            batch, rollouts = self._sample(inputs)
        self._capturing = False
        if self.model.training:
            if self._sampling is not None:
                with self._times("sampling"):
                    batch, rollouts = self._sampling.refill(batch, rollouts)
                self._captured = None if rollouts.refilled else self._captured  # of rows that are no longer there
                self._batch_environments = rollouts.environments
            uncredited = self._plan(batch, rollouts)
            hidden = None
            if self._captured is not None and "old_per_token_logps" in batch:
                hidden = self._captured[:, -batch["completion_ids"].shape[1] - 1 : -1]
            # Several pairs of a rollout, and teachers in both contexts, are more than the loss's forward can serve.
            fits = len(uncredited.plan) > 0 and uncredited.plan.single and not self.turn_columns
            if self._in_loss and hidden is None and fits:
                self._uncredited, rows = uncredited, len(rollouts.prompts)
                batch["credit_row"] = torch.arange(rows, device=batch["advantages"].device)
                first = self.accelerator.process_index * rows
                pending = pending_advantages(uncredited.groups, uncredited.plan, first, batch["advantages"])
                batch["advantages"] = pending
            else:
                self._assign_credit(uncredited, batch, hidden)
            if self._distiller is not None:
                local = local_rollouts(batch, rollouts, self.accelerator.process_index * len(rollouts.prompts))
                self._distiller.prepare(batch, local, rollouts, uncredited.groups, self._rng("distillation"))
        self._captured = None
        return batch

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        micro_batch = inputs.get("credit_micro_batch")
        if micro_batch is not None and bool((micro_batch != micro_batch[0]).any()):
            raise IncompatibleHostError(
                "TRL cut the generation batch into other micro-batches than expected.",
                "Set credit_scope='generation_batch', or install trl>=1.16,<1.17.",
            )
        kept, factor = inputs, 1.0
        if self.args.drop_zero_advantages and self.model.training:
            kept, factor = drop_rows(inputs, self.loss_type)
        self._loss_inputs = (inputs, kept) if self.model.training else None
        self.turn_columns = per_step.of(kept)
        self.meter.trained(kept)
        with gspo.old_logps_kept(kept), loss_without_kl(self):
            loss = super()._compute_loss(model, kept)
        self._loss_inputs = None
        loss = loss if factor == 1 else loss * factor
        if self._distiller is not None and self.model.training:
            loss = loss + self._distiller.term(kept)
        check_finite("The loss", loss.detach()[None])
        return loss

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: Any, *args: Any, **kwargs: Any
    ) -> Any:
        with self.meter.forwards("student" if self.model.training else None):
            result = self._logps(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        if self._loss_inputs is not None and self.args.importance_sampling_level == gspo.LEVEL:
            gspo.anchor(self._loss_inputs[1], result[0])
        return result

    def _logps(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """TRL's log-probs and entropies, with what comes off on the way: credit in the loss, hidden states before."""
        compute = partial(
            super()._get_per_token_logps_and_entropies,
            *(model, input_ids, attention_mask, logits_to_keep, *args),
            **kwargs,
        )
        if self.turn_columns:
            self._capturing = False
            own = super()._get_per_token_logps_and_entropies
            turned = partial(per_step.logps, agreed_forwards=self._evidence.agreed_forwards)
            given = (input_ids, attention_mask, logits_to_keep, *args)
            return turned(partial(own, model), self.turn_columns, *given, **kwargs)
        if self._distiller is not None and self._loss_inputs is not None:
            distilled = partial(self._distiller.logps, self._loss_inputs[1])
            with compat.completions_scored_by(distilled, attention_mask, logits_to_keep):
                return compute()
        if self._uncredited is not None and self._loss_inputs is not None:
            with compat.completions_scored_by(self._credit_in_loss, attention_mask, logits_to_keep):
                return compute()
        if not self._capturing:
            return compute()
        # The first pass over a new generation batch is the one for the old log-probs: keep its hidden states, so
        # that the student's forward is not paid twice. A later one is the reference model's.
        self._capturing = False
        with compat.captured_hidden_states(backbone(self.accelerator.unwrap_model(self.model))) as states:
            result = compute()
        self._captured = torch.cat(states) if states else None
        return result

    # ---- credit -------------------------------------------------------------------------------------------------

    def _plan(self, batch: dict[str, Any], rollouts: Rollouts) -> Uncredited:
        """Which rollouts of the generation batch are scored, and under which demonstration."""
        groups = gather_groups(
            self.accelerator,
            batch,
            rollouts,
            num_generations=self.num_generations,
            success=self._success,
            success_threshold=self.args.success_threshold,
            complete_ids={*self.eos_token_ids, self._tokenizer.pad_token_id},
            micro_batch=compat.upcoming_micro_batches(len(rollouts.prompts), self.args.steps_per_generation),
            reward_weights=self.reward_weights,
            penalty=reference_penalty(self, batch),
            step=self.state.global_step,
        )
        rng = self._rng()
        if self._past is None:
            return Uncredited(rollouts, groups, self.credit_method.plan(groups, rng))
        prompts, completions = (everywhere(self.accelerator, x) for x in (rollouts.prompts, rollouts.completions))
        owners, past = self._past.recall(prompts[:: self.num_generations])
        groups = replace(groups, past=torch.tensor(owners, dtype=torch.long, device=groups.group.device))
        self._past.remember(prompts, completions, (groups.usable & groups.solved).tolist())
        return Uncredited(rollouts, groups, self.credit_method.plan(groups, rng), past)

    def _rng(self, *use: str) -> random.Random:
        """Named by seed, step and generation batch: every process draws the same plan, a resumed run the one it would
        have drawn, and the cut into micro-batches does not matter."""
        generation = self._step // (self.args.steps_per_generation * self.num_iterations)
        return random.Random(
            "/".join(["scgrpo", *map(str, (self.args.seed, self.state.global_step, generation)), *use])
        )

    def _assign_credit(
        self, uncredited: Uncredited, batch: dict[str, Any], hidden: Tensor | None
    ) -> tuple[Conditioned | None, Credit]:
        """Score the plan, and put per-token advantages in the batch.

        Args:
            batch: rows in the order they were sampled in.
            hidden: (B, T, H) the policy's states, from a pass of TRL, that predict the tokens; None: compute them.
        """
        rollouts, groups, plan = uncredited.rollouts, uncredited.groups, uncredited.plan
        rows, width = batch["completion_ids"].shape
        first = self.accelerator.process_index * rows
        local = local_rollouts(batch, rollouts, first, hidden)
        with self._times("scoring"):
            conditioned, evidence = self._evidence(
                plan, local, rollouts.completions, groups.mask.shape[1], uncredited.past
            )
            credit = self.credit_method.assign(groups, plan, evidence)
            scale = self.args.policy_coef
            if scale != 1:
                credit = replace(credit, base=credit.base * scale, advantages=credit.advantages * scale)
            check_finite("The credit assigned", credit.advantages)
        if len(plan) or not torch.equal(credit.advantages, groups.advantages[:, None].expand_as(groups.mask)):
            batch["advantages"] = credit.advantages[first : first + rows, :width]
            if getattr(self.credit_method, "scope", None) == "micro_batch":
                batch["credit_micro_batch"] = groups.micro_batch[first : first + rows]
        self._log_under("credit", {**route_metrics(groups, credit.route), **credit.metrics})
        if self.listeners:
            scored = ScoredBatch(
                step=self.state.global_step,
                first=first,
                rollouts=rollouts,
                reward_names=self.reward_func_names,
                prompt_ids=local.prompt_ids,
                groups=groups,
                plan=plan,
                evidence=evidence,
                credit=credit,
                demonstrations=conditioned.demonstrations if conditioned else {},
                teacher_prompt_ids=conditioned.teacher_prompt_ids if conditioned else {},
            )
            with self._times("recording"):
                for listener in self.listeners:
                    listener(scored)
        return conditioned, credit

    def _credit_in_loss(self, states: Tensor, tokens: Tensor, kernel: compat.Kernel) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies (n,) of the loss's completion tokens; on the way, the batch gets its credit."""
        assert self._loss_inputs is not None
        assert self._uncredited is not None
        (whole, kept), uncredited, self._uncredited = self._loss_inputs, self._uncredited, None
        rows = len(uncredited.rollouts.prompts)
        first = self.accelerator.process_index * rows
        present = kept["completion_mask"].bool()
        batch, place = sampled_order(whole, kept)
        conditioned, credit = self._assign_credit(uncredited, batch, padded_states(states, present)[place])
        assert conditioned is not None
        check_left_out(credit, first, rows, kept)
        kept["advantages"] = batch["advantages"][kept["credit_row"]]
        pairs = uncredited.plan.rollout[conditioned.pairs] - first
        scored = (batch["completion_mask"] * batch.get("tool_mask", 1)).bool()[pairs]
        return completion_logps(conditioned.evidence, scored, place[pairs], present, states, tokens, kernel)

    # ---- set-up -------------------------------------------------------------------------------------------------

    def _tokenize_rows(self, prompts: list[Prompt], rows: list[int]) -> list[list[int]]:
        """Token ids of prompts that stand for the given local rows, rendered as for generation."""
        if self.environment_factories is None:
            return self._tokenize_prompts(prompts)[0]
        # TRL zips the prompts with the rows' environments, whose tools the chat template shows.
        environments = getattr(self, "_batch_environments")  # noqa: B009 (TRL sets it while sampling)
        self._batch_environments = [environments[row] for row in rows]
        try:
            return self._tokenize_prompts(prompts)[0]
        finally:
            self._batch_environments = environments

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        unfinished = self._step % (self.args.steps_per_generation * self.num_iterations) != 0
        buffered = self._buffered_inputs if unfinished else None
        drawn, spent = self._sampling.prompts.drawn if self._sampling else 0, self.meter.totals
        save_state(folder, self._teacher, self._step, buffered, self.accelerator.process_index, drawn, spent)
        if self._past is not None and self.accelerator.process_index == 0:
            self._past.save(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = load_state(Path(checkpoint), self._teacher, self.accelerator.process_index)
            self._step, self._buffered_inputs, drawn, spent = state
            self.meter.totals.update(spent)
            if self._sampling is not None:
                self._sampling.prompts.drawn = drawn
            if self._past is not None:
                self._past.load(Path(checkpoint))

    def _log_under(self, prefix: str, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train"][f"{prefix}/{name}"].append(value)
