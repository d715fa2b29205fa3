"""`SCGRPOConfig`: TRL's GRPOConfig plus the credit method's own settings.

Defaults are the paper's, also where they differ from TRL's:
1. `loss_type="grpo"` (sequence mean of token means; TRL: "dapo");
2. `vllm_importance_sampling_mode="token_truncate"` (TRL's "sequence_mask" drops whole long sequences unseen).

`method` replaces defaults by those of a named baseline, see `presets.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

from trl import GRPOConfig

from scgrpo.divergence.distillation import Distillation, DistillationKind
from scgrpo.errors import ConfigError
from scgrpo.integrations.settings import CreditSettings, setting
from scgrpo.integrations.trl import gspo
from scgrpo.integrations.trl.distillation import settings_problems
from scgrpo.integrations.trl.presets import preset
from scgrpo.teacher.hidden import SHARING
from scgrpo.teacher.weights import check_teacher_weights

# Loss types whose gradient of a token scales with that token's advantage.
PER_TOKEN_LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "vespo")


@dataclass
class SCGRPOConfig(CreditSettings, GRPOConfig):
    """Settings of SCGRPOTrainer; every GRPOConfig key works as in TRL.

    Raises:
        ConfigError: all impossible settings at once, each with its remedy.
    """

    loss_type: str = setting("grpo", "TRL's loss types; those without per-token advantages are refused.")
    vllm_importance_sampling_mode: str = setting("token_truncate", "As in TRL, with a safer default.")
    importance_sampling_level: str = setting(
        "token",
        "As in TRL: token or sequence; or sequence_token: the sequence's ratio, which lets tokens keep weights.",
    )

    method: str | None = setting(
        None,
        "What is optimised, by name: grpo, sc_grpo, dr_grpo, dapo, cispo, ... A preset of other settings; those you "
        "give yourself win. Default: the settings as they are.",
    )
    success_reward: str | None = setting(None, "Reward function that decides 'solved'. Default: the first one.")
    teacher_snapshot_steps: int = setting(10, "Optimizer steps between snapshots.")
    teacher_ema_decay: float = setting(0.99, "Decay per optimizer step of teacher_weights=ema.")
    teacher_timing: str = setting(
        "auto",
        "When rollouts are scored: generation = after sampling, with TRL's own pass for the old log-probs or else a "
        "student pass of ours; loss = inside the loss, whose forward serves (needs steps_per_generation=1, no "
        "dropout, no sharding; rollouts with several pairs are scored after sampling all the same); auto = loss "
        "where that can be.",
    )
    teacher_max_tokens: int | None = setting(
        None, "Tokens per forward of the conditioned pass. Default: as many rows as a training micro-batch has."
    )
    teacher_prefix_sharing: str = setting(
        "auto",
        "How rollouts share prompts in the conditioned pass: packed, cached, off, or auto.",
    )

    policy_coef: float = setting(1.0, "Weight of the policy gradient; 0 = distillation alone.")
    distill_coef: float = setting(
        0.0,
        "Weight of a distillation loss: divergence of the student from a teacher, see docs/baselines.md; 0 = off.",
    )
    distill_start_coef: float = setting(0.0, "Weight it starts from, with distill_warmup_steps.")
    distill_warmup_steps: int = setting(0, "Optimizer steps over which the weight goes from the one to the other.")
    distill_divergence: str = setting(
        "forward",
        "forward: KL(teacher || student); reverse; both: half their sum; jsd; or sampled: the reverse one's gradient "
        "estimated from the sampled token.",
    )
    distill_jsd_beta: float = setting(0.5, "The teacher's share of the mixture of jsd.")
    distill_clip: float = setting(0.0, "Most a single word adds to a token's divergence, in nats; 0 = no limit.")
    distill_is_clip: float = setting(
        0.0,
        "Weight tokens by the ratio pi / pi_old, cut off here; 0 = off. (It is 1 with one update per generation "
        "batch.)",
    )
    distill_context: str = setting(
        "sibling",
        "What the teacher sees: prompt (nothing more), reference (the text of reference_column), sibling (a solved "
        "rollout of the group) or partial (the same where SC-GRPO would).",
    )
    reference_column: str = setting("solution", "Column of the training rows with reference solutions.")
    teacher_model_name_or_path: str | None = setting(
        None, "Another model as the teacher of the distillation, with the same vocabulary. Default: the policy."
    )

    dynamic_sampling_max_rounds: int = setting(
        0,
        "DAPO: sample further prompts up to this many times in place of groups that are all solved or all failed; "
        "0 = off.",
    )
    overlong_frac: float = setting(
        0.0,
        "DAPO's soft overlong punishment: rewards fall by up to 0.5 (or the last of reward_weights) over this last "
        "share of max_completion_length; 0 = off.",
    )
    kl_in_reward: bool = setting(
        False,
        "With beta > 0: take the KL to the reference off the reward of each token, not off the loss; for credit "
        "methods that read rewards (reinforce++).",
    )
    drop_zero_advantages: bool = setting(
        False, "Leave rows whose advantages are all 0 out of the loss's forward: same gradient, less work."
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> SCGRPOConfig:
        config = super().__new__(cls)
        # A given value that equals the default can be told from a default only here.
        places = (f.name for f in dataclasses.fields(cls) if f.init)
        config._given = {name for name, _ in zip(places, args, strict=False)} | kwargs.keys()
        return config

    def __post_init__(self) -> None:
        given: set[str] = self.__dict__.pop("_given")
        for name, value in preset(self.method).items() if self.method is not None else ():
            if name not in given:
                setattr(self, name, value)
        super().__post_init__()
        problems = list(self._problems())
        if problems:
            raise ConfigError(f"{len(problems)} setting(s) cannot work:", " | ".join(problems))

    @property
    def distills(self) -> bool:
        """Whether there is a distillation loss at any step."""
        return max(self.distill_coef, self.distill_start_coef * (self.distill_warmup_steps > 0)) > 0

    def distillation(self) -> Distillation:
        """The configured distillation loss."""
        kind = cast(DistillationKind, self.distill_divergence)
        return Distillation(kind, self.distill_jsd_beta, self.distill_clip or None)

    def _problems(self) -> list[str]:
        problems = [*settings_problems(self), *self.credit_problems()]
        for check in (
            self.distillation,
            lambda: check_teacher_weights(self.teacher_weights, self.teacher_snapshot_steps, self.teacher_ema_decay),
        ):
            try:
                check()
            except ConfigError as error:
                problems.append(str(error))
        if self.teacher_max_tokens is not None and self.teacher_max_tokens < 1:
            problems.append(f"teacher_max_tokens is {self.teacher_max_tokens}: choose at least 1, or leave it out.")
        if self.teacher_prefix_sharing not in ("auto", *SHARING):
            problems.append(
                f"teacher_prefix_sharing={self.teacher_prefix_sharing!r}: choose one of auto, {', '.join(SHARING)}."
            )
        if self.teacher_timing not in ("auto", "generation", "loss"):
            problems.append(f"teacher_timing={self.teacher_timing!r}: choose auto, generation or loss.")
        if self.teacher_timing == "loss" and self.steps_per_generation != 1:
            problems.append(
                f"teacher_timing='loss' with steps_per_generation={self.steps_per_generation}: the threshold and the "
                "groups need the whole generation batch in one micro-batch. Set steps_per_generation=1, or "
                "teacher_timing='generation'."
            )
        if self.credit != "uniform":
            problems += self._per_token_problems()
        return [*problems, *self._ratio_problems(), *self._reward_problems(), *self._sampling_problems()]

    def _ratio_problems(self) -> list[str]:
        problems = []
        if self.importance_sampling_level not in ("token", "sequence", gspo.LEVEL):
            problems.append(
                f"importance_sampling_level={self.importance_sampling_level!r}: choose token, sequence or "
                f"{gspo.LEVEL}."
            )
        if self.importance_sampling_level == gspo.LEVEL and self.loss_type not in gspo.LOSS_TYPES:
            problems.append(
                f"loss_type={self.loss_type!r} makes sequence ratios of its own: with "
                f"importance_sampling_level={gspo.LEVEL!r} choose one of {', '.join(gspo.LOSS_TYPES)}."
            )
        return problems

    def _reward_problems(self) -> list[str]:
        problems = []
        if self.method == "reinforce++" and self.credit != self.method:
            problems.append(
                f"method='reinforce++' is a credit method itself, credit={self.credit!r} would take its place: leave "
                "credit out, or choose method='dapo' or 'grpo' for the weights."
            )
        return problems

    def _sampling_problems(self) -> list[str]:
        problems = []
        if not 0 <= self.overlong_frac <= 1:
            problems.append(f"overlong_frac is {self.overlong_frac}: choose a share in [0, 1] (0 = off).")
        if self.dynamic_sampling_max_rounds < 0:
            problems.append(f"dynamic_sampling_max_rounds is {self.dynamic_sampling_max_rounds}: choose at least 0.")
        if self.dynamic_sampling_max_rounds and (
            self.scale_rewards == "batch" or self.multi_objective_aggregation != "sum_then_normalize"
        ):
            problems.append(
                "dynamic_sampling_max_rounds replaces groups, whose advantages must not depend on other groups: use "
                "scale_rewards 'group' or 'none', and multi_objective_aggregation='sum_then_normalize'."
            )
        return problems

    def _per_token_problems(self) -> list[str]:
        problems = []
        if self.loss_type not in PER_TOKEN_LOSS_TYPES:
            problems.append(
                f"loss_type={self.loss_type!r} cannot carry credit per token: choose one of "
                f"{', '.join(PER_TOKEN_LOSS_TYPES)}, or credit='uniform'."
            )
        if self.importance_sampling_level == "sequence":
            problems.append(
                f"importance_sampling_level={self.importance_sampling_level!r}: with a sequence-level ratio the "
                f"gradient sees only the mean of the weights. Use 'token', {gspo.LEVEL!r}, or credit='uniform'."
            )
        return problems
