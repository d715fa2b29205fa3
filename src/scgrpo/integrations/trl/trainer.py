"""SC-GRPO on TRL: `SCGRPOTrainer` is `GRPOTrainer` with credit per token.

TRL samples, grades and optimises. Between grading and optimising, the credit method plans which rollouts to
re-score, the conditioned pass scores them, and the per-token advantages go into TRL's own loss, which accepts them.

Differences from GRPOTrainer:
1. `advantages` of the batch are (B, T) when the method weights anything;
2. a rollout whose success reward has no verdict is left out instead of counting as 0 in the weighted sum;
3. an exception in a reward function costs the rollouts that cause it, not the run;
4. a non-finite loss stops training instead of reaching the optimizer;
5. a checkpoint in the middle of a generation batch keeps the rollouts still to be trained on.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import DistributedType, gather_object
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOTrainer

from scgrpo.credit import Credit, CreditMethod, Evidence, Groups, Plan
from scgrpo.credit.diagnostics import route_metrics
from scgrpo.credit.methods import check_finite
from scgrpo.errors import ConfigError, IncompatibleHostError
from scgrpo.integrations.trl import compat
from scgrpo.integrations.trl.batch import Rollouts, ScoredBatch, gather_groups, share_evidence
from scgrpo.integrations.trl.checkpoint import load_state, save_state
from scgrpo.integrations.trl.conditioning import Conditioned, Conditioner, LocalRollouts, TeacherPromptFn
from scgrpo.integrations.trl.config import SCGRPOConfig
from scgrpo.integrations.trl.rewards import exclude_ungraded, guarded
from scgrpo.teacher.hidden import CompletionStates, Sharing, sharing_candidates
from scgrpo.teacher.models import backbone, has_dropout, output_head
from scgrpo.teacher.prompts import DemonstrationFormatter, Prompt, control_tokens, get_template, teacher_prompt
from scgrpo.teacher.scoring import ConditionedPass
from scgrpo.teacher.weights import TeacherKind, TeacherWeights


class SCGRPOTrainer(GRPOTrainer):
    """Drop-in replacement for TRL's GRPOTrainer.

    Args:
        model, reward_funcs, args, **kwargs: as for GRPOTrainer, with `args` an SCGRPOConfig.
        credit_method: a CreditMethod; default: the one `args.credit` names.
        teacher_prompt_fn: `(prompt, demonstration, verified=...) -> prompt`; default: `args.teacher_template`.

    Attributes:
        listeners: callables that get every `ScoredBatch` (recorders, plots).

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
        if isinstance(reward_funcs, (list, tuple)):
            reward_funcs = [guarded(func) for func in reward_funcs]
        elif reward_funcs is not None:
            reward_funcs = guarded(reward_funcs)
        super().__init__(model, reward_funcs, args, *positional, **kwargs)

        self.credit_method = credit_method or args.credit_method()
        self.listeners: list[Callable[[ScoredBatch], None]] = []
        self._success = self._success_column()
        self._check_setup()
        policy = self.accelerator.unwrap_model(self.model)
        self._teacher = TeacherWeights(
            policy,
            cast(TeacherKind, args.teacher_weights),
            snapshot_steps=args.teacher_snapshot_steps,
            decay=args.teacher_ema_decay,
        )
        self.add_callback(_TeacherUpdate(self._teacher))
        self._condition = self._conditioner(policy, teacher_prompt_fn)
        self._rollouts: Rollouts | None = None
        self._old_logps_hidden: list[Tensor] | None = None
        self._capturing = False
        self._probed = False

    # ---- the three seams of TRL ---------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        group_size = self.num_generations if self.model.training else self.num_generations_eval
        rewards = exclude_ungraded(rewards, self._success, group_size, self.reward_func_names)
        self._rollouts = Rollouts(inputs, prompts, completions, completion_ids_list, rewards)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        # Dropout is on in TRL's pass; its hidden states are the policy's own only where there is none.
        self._capturing = self.model.training and not has_dropout(self.model)
        self._old_logps_hidden = None
        batch = super()._generate_and_score_completions(inputs)
        self._capturing = False
        rollouts, self._rollouts = self._rollouts, None
        return self._assign_credit(batch, rollouts) if self.model.training and rollouts is not None else batch

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        micro_batch = inputs.get("credit_micro_batch")
        if micro_batch is not None and bool((micro_batch != micro_batch[0]).any()):
            raise IncompatibleHostError(
                "TRL cut the generation batch into other micro-batches than expected.",
                "Set credit_scope='generation_batch', or install trl>=1.16,<1.17.",
            )
        loss = super()._compute_loss(model, inputs)
        check_finite("The loss", loss.detach()[None])
        return loss

    # ---- credit -------------------------------------------------------------------------------------------------

    def _assign_credit(self, batch: dict[str, Any], rollouts: Rollouts) -> dict[str, Any]:
        """plan / score / assign, on the whole generation batch."""
        groups = self._groups(batch, rollouts)
        # Named by seed and step: every process draws the same plan, and a resumed run the one it would have drawn.
        rng = random.Random(f"scgrpo/{self.args.seed}/{self.state.global_step}/{self._step}")
        plan = self.credit_method.plan(groups, rng)
        conditioned, evidence = self._score(plan, batch, rollouts, groups)
        credit = self.credit_method.assign(groups, plan, evidence)
        check_finite("The credit assigned", credit.advantages)
        rows, width = len(rollouts.prompts), batch["completion_ids"].shape[1]
        first = self.accelerator.process_index * rows
        if len(plan):
            batch["advantages"] = credit.advantages[first : first + rows, :width]
            if getattr(self.credit_method, "scope", None) == "micro_batch":
                batch["credit_micro_batch"] = groups.micro_batch[first : first + rows]
        self._log_credit({**route_metrics(groups, credit.route), **credit.metrics})
        self._notify(rollouts, batch, groups, plan, evidence, credit, conditioned)
        return batch

    def _groups(self, batch: dict[str, Any], rollouts: Rollouts) -> Groups:
        return gather_groups(
            self.accelerator,
            batch,
            rollouts,
            num_generations=self.num_generations,
            success=self._success,
            success_threshold=self.args.success_threshold,
            complete_ids={*self.eos_token_ids, self._tokenizer.pad_token_id},
            micro_batch=compat.upcoming_micro_batches(len(rollouts.prompts), self.args.steps_per_generation),
        )

    def _score(
        self, plan: Plan, batch: dict[str, Any], rollouts: Rollouts, groups: Groups
    ) -> tuple[Conditioned | None, Evidence]:
        """Evidence of every pair, on every process."""
        if not len(plan):
            return None, Evidence(*batch["advantages"].new_zeros(4, 0, groups.mask.shape[1]))
        start = time.perf_counter()
        local = self._local_rollouts(batch, rollouts)
        if not self._probed:
            self._probe(local)
        completions = rollouts.completions
        if self.accelerator.num_processes > 1:  # a demonstration may have been sampled by another process
            completions = gather_object(list(completions))
        conditioned = self._condition(plan, local, completions, self._agreed_forwards)
        evidence = share_evidence(
            self.accelerator, conditioned.evidence, conditioned.pairs, len(plan), groups.mask.shape[1]
        )
        shown = conditioned.demonstrations.values()
        self._log_credit(
            {
                "teacher_pass_s": time.perf_counter() - start,
                "demonstration_truncated_frac": _share([d.truncated for d in shown]),
                "thinking_dropped_frac": _share([d.thinking_dropped for d in shown]),
                "demonstration_empty_frac": _share([not d.text for d in shown]),
            }
        )
        return conditioned, evidence

    def _local_rollouts(self, batch: dict[str, Any], rollouts: Rollouts) -> LocalRollouts:
        completion_ids, mask = batch["completion_ids"], batch["completion_mask"] * batch.get("tool_mask", 1)
        hidden, width = None, completion_ids.shape[1]
        if self._old_logps_hidden is not None and "old_per_token_logps" in batch:
            hidden = torch.cat(self._old_logps_hidden)[:, -width - 1 : -1]
        self._old_logps_hidden = None
        return LocalRollouts(
            first=self.accelerator.process_index * len(rollouts.prompts),
            prompts=rollouts.prompts,
            prompt_ids=_unpadded(batch["prompt_ids"], batch["prompt_mask"]),
            completion_ids=completion_ids,
            lengths=torch.tensor([len(ids) for ids in rollouts.completion_ids], device=completion_ids.device),
            mask=mask.bool(),
            hidden=hidden,
        )

    def _probe(self, local: LocalRollouts) -> None:
        """Once, at the start: do prompts render as sampled, and how large is D between identical contexts?"""
        self._probed = True
        self._condition.check_prompts(local)
        noise = self._condition.noise_floor(local)
        if noise is None:
            return
        self._log_credit({"noise_floor": noise})
        floor = getattr(self.credit_method, "floor", None)
        if floor is not None and floor < 5 * noise:
            warnings.warn(
                f"token_kl between identical contexts is {noise:.1e} nats here, and the threshold may fall to "
                f"credit_floor={floor:.1e}: rounding noise would get weight. Set credit_floor to at least "
                f"{5 * noise:.1e}.",
                stacklevel=2,
            )

    def _agreed_forwards(self, mine: int) -> int | None:
        """Processes that share sharded weights must run the same number of forwards, or they wait for ever."""
        if self.accelerator.distributed_type != DistributedType.FSDP:
            return None
        return int(self.accelerator.gather(torch.tensor([mine], device=self.accelerator.device)).max())

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._capturing:
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        # The first pass over a new generation batch is the one for the old log-probs: keep its hidden states, so
        # that the student's forward is not paid twice. A later one is the reference model's.
        self._capturing = False
        with compat.captured_hidden_states(backbone(self.accelerator.unwrap_model(self.model))) as states:
            result = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        self._old_logps_hidden = states or None
        return result

    # ---- set-up -------------------------------------------------------------------------------------------------

    def _conditioner(self, policy: Any, teacher_prompt_fn: TeacherPromptFn | None) -> Conditioner:
        args, tokenizer = self.args, self._tokenizer
        sharded = self.accelerator.distributed_type == DistributedType.FSDP
        score = ConditionedPass(
            model=policy,
            head=partial(output_head, policy, args.temperature),
            states=self._states(policy, sharded),
            max_rows=args.per_device_train_batch_size,
            max_tokens=args.teacher_max_tokens,
            teacher_weights=self._teacher.applied,
            autocast=self.accelerator.autocast,
        )
        if sharded:
            score = replace(score, redirect=compat.through_wrapper(self.model, policy))
        return Conditioner(
            score=score,
            format=DemonstrationFormatter(
                encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
                decode=tokenizer.decode,
                max_tokens=args.demonstration_max_tokens or args.max_completion_length,
                special_tokens=control_tokens(tokenizer),
            ),
            teacher_prompt=teacher_prompt_fn or partial(teacher_prompt, template=get_template(args.teacher_template)),
            tokenize=self._tokenize_rows,
        )

    def _states(self, policy: Any, sharded: bool) -> CompletionStates:
        candidates = sharing_candidates(policy)
        if self.args.teacher_prefix_sharing != "auto":
            candidates = (cast(Sharing, self.args.teacher_prefix_sharing),)
        if not sharded:
            return CompletionStates(policy, candidates)
        # Through a cache, processes would run different numbers of forwards.
        return CompletionStates(policy, tuple(c for c in candidates if c != "cached") or ("off",), self._all_agree)

    def _all_agree(self, verdict: bool) -> bool:
        return bool(self.accelerator.gather(torch.tensor([verdict], device=self.accelerator.device)).all())

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

    def _success_column(self) -> int:
        names, wanted = self.reward_func_names, self.args.success_reward
        if wanted is None:
            return 0
        if wanted not in names:
            raise ConfigError(
                f"success_reward={wanted!r} is not among the reward functions.", f"Choose one of {', '.join(names)}."
            )
        return names.index(wanted)

    def _check_setup(self) -> None:
        if self.args.credit == "uniform":
            return
        problems = []
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        shown = self.args.demonstration_max_tokens or self.args.max_completion_length
        if limit and shown + self.args.max_completion_length > limit:
            problems.append(
                f"A demonstration ({shown} tokens) and a completion ({self.args.max_completion_length}) exceed the "
                f"model's {limit} positions: lower demonstration_max_tokens."
            )
        if self._is_vlm:
            problems.append("Models with images are not supported: their prompts cannot be re-rendered as text.")
        peft = getattr(self.accelerator.unwrap_model(self.model), "active_peft_config", None)
        if peft is not None and peft.is_prompt_learning:
            problems.append("PEFT prompt tuning adds virtual tokens the conditioned pass would miss: use LoRA.")
        kind = self.accelerator.distributed_type
        if kind == DistributedType.DEEPSPEED and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            problems.append("DeepSpeed ZeRO-3 has not been verified: use FSDP with fsdp_version 2, or ZeRO-2.")
        if kind == DistributedType.FSDP:
            if self.accelerator.state.fsdp_plugin.fsdp_version != 2:
                problems.append("FSDP version 1 has not been verified: set fsdp_version to 2.")
            if self.args.teacher_weights != "current":
                problems.append("teacher_weights other than 'current' cannot be swapped under FSDP.")
        if problems:
            raise ConfigError("This set-up cannot work with per-token credit:", " | ".join(problems))

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        unfinished = self._step % (self.args.steps_per_generation * self.num_iterations) != 0
        buffered = self._buffered_inputs if unfinished else None
        save_state(folder, self._teacher, self._step, buffered, self.accelerator.process_index)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._step, self._buffered_inputs = load_state(
                Path(checkpoint), self._teacher, self.accelerator.process_index
            )

    # ---- reporting ----------------------------------------------------------------------------------------------

    def _log_credit(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train"][f"credit/{name}"].append(value)

    def _notify(
        self,
        rollouts: Rollouts,
        batch: dict[str, Any],
        groups: Groups,
        plan: Plan,
        evidence: Evidence,
        credit: Credit,
        conditioned: Conditioned | None,
    ) -> None:
        if not self.listeners:
            return
        scored = ScoredBatch(
            step=self.state.global_step,
            first=self.accelerator.process_index * len(rollouts.prompts),
            rollouts=rollouts,
            reward_names=self.reward_func_names,
            prompt_ids=_unpadded(batch["prompt_ids"], batch["prompt_mask"]),
            groups=groups,
            plan=plan,
            evidence=evidence,
            credit=credit,
            demonstrations=conditioned.demonstrations if conditioned else {},
            teacher_prompt_ids=conditioned.teacher_prompt_ids if conditioned else {},
        )
        for listener in self.listeners:
            listener(scored)


class _TeacherUpdate(TrainerCallback):
    """Moves the teacher's weights along after each optimizer step."""

    def __init__(self, teacher: TeacherWeights) -> None:
        self.teacher = teacher

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.teacher.after_step(state.global_step)


def _unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0
