"""`SCGRPOConfig`: TRL's GRPOConfig plus the credit method's own settings.

Defaults are the paper's, also where they differ from TRL's:
1. `loss_type="grpo"` (sequence mean of token means; TRL: "dapo");
2. `vllm_importance_sampling_mode="token_truncate"` (TRL's "sequence_mask" drops whole long sequences unseen).

`method` replaces defaults by those of a named baseline, see `presets.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, cast

from trl import GRPOConfig

from scgrpo.credit import create_credit_method
from scgrpo.credit.methods import CreditMethod, check_teacher
from scgrpo.divergence.choice import Divergence, DivergenceKind
from scgrpo.divergence.distillation import Distillation, DistillationKind
from scgrpo.divergence.exact import Direction
from scgrpo.errors import ConfigError
from scgrpo.integrations.trl import gspo
from scgrpo.integrations.trl.distillation import settings_problems
from scgrpo.integrations.trl.presets import preset
from scgrpo.teacher.hidden import SHARING
from scgrpo.teacher.prompts import get_template
from scgrpo.teacher.weights import check_teacher_weights

# Loss types whose gradient of a token scales with that token's advantage.
PER_TOKEN_LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "vespo")
_CREDIT_PREFIX = "credit_"


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class SCGRPOConfig(GRPOConfig):
    """Settings of SCGRPOTrainer; every GRPOConfig key works as in TRL.

    Raises:
        ConfigError: all impossible settings at once, each with its remedy.
    """

    loss_type: str = _setting("grpo", "TRL's loss types; those without per-token advantages are refused.")
    vllm_importance_sampling_mode: str = _setting("token_truncate", "As in TRL, with a safer default.")
    importance_sampling_level: str = _setting(
        "token",
        "As in TRL: token or sequence; or sequence_token: the sequence's ratio, which lets tokens keep weights.",
    )

    method: str | None = _setting(
        None,
        "What is optimised, by name: grpo, sc_grpo, dr_grpo, dapo, cispo, ... A preset of other settings; those you "
        "give yourself win. Default: the settings as they are.",
    )
    credit: str = _setting("sc_grpo", "Credit method, see docs/credit_methods.md; uniform = plain GRPO.")
    credit_quantile: float = _setting(0.75, "Threshold c is this quantile of the active token_kl.")
    credit_floor: float = _setting(1e-4, "Smallest threshold c, in nats.")
    credit_scope: str = _setting("generation_batch", "Scope of c: generation_batch, or micro_batch (the paper's).")
    credit_alpha: float = _setting(0.1, "Size of the diversity pseudo-advantage of unsolved groups; 0 = off.")
    credit_normalize: str = _setting(
        "none", "none (the paper), mean_one: divide weights by their mean, or centered: 1 + mix * (f - mean f)."
    )
    credit_weight_sign: str = _setting(
        "both", "Rollouts weighted per token: both (the paper), solved, or failed; the others get the mean weight."
    )
    credit_demonstrations: str = _setting(
        "uniform",
        "uniform: each rollout draws one of its group (the paper); shared: one for the group, cheaper; shortest, "
        "longest, nearest or least_similar of the group's; buffer: earlier solutions of the prompt, if any.",
    )
    credit_routes: str = _setting(
        "partial",
        "Groups weighted by solved demonstrations: partial, 2 <= n_c < G (the paper); mixed, 1 <= n_c < G; "
        "all_solved, n_c = G; all, the last two.",
    )
    credit_mix: float = _setting(1.0, "Share of the weight against uniform credit, 1 = the paper.")
    credit_fixed_threshold: float | None = _setting(None, "Threshold c in nats, instead of a quantile.")
    credit_anneal_steps: int | None = _setting(
        None, "Optimizer steps over which mix or strength falls to 0; 0 = it stays. Default: the method's own."
    )
    credit_strength: float | None = _setting(
        None, "Size of a method's own term, of those that have one. Default: the method's own."
    )
    credit_top_fraction: float | None = _setting(
        None, "Share of tokens that entropy_mask keeps and stare lifts. Default: the method's own (0.2, 0.1)."
    )
    credit_entropy_gate: float | None = _setting(
        None, "Mean entropy in nats below which stare acts and antisd does not. Default: the method's own (0.3, 0.1)."
    )
    credit_num_wrong: int | None = _setting(None, "Failed rollouts rlcsd contrasts with. Default: 4.")
    credit_num_demonstrations: int | None = _setting(None, "Solved siblings value_baseline reads. Default: 3.")
    credit_value_features: str | None = _setting(
        None, "What value_baseline knows of a prefix: own, demonstrations, or both. Default: both."
    )
    credit_gae_lambda: float | None = _setting(
        None, "value_baseline: 1 = unbiased, smaller = credit where the value moved. Default: 1."
    )
    credit_seed: int | None = _setting(None, "Seed of the controls that shuffle weights. Default: 0.")

    success_reward: str | None = _setting(None, "Reward function that decides 'solved'. Default: the first one.")
    success_threshold: float = _setting(0.5, "A rollout is solved when that reward reaches this value.")
    teacher_template: str = _setting("generic", "Wording of the teacher's prompt: math, code, agent, generic, tiny.")
    demonstration_max_tokens: int | None = _setting(
        None, "Token budget of a demonstration, cut from the right. Default: max_completion_length."
    )
    teacher_weights: str = _setting("current", "Teacher's weights: current (the paper), snapshot, ema or frozen.")
    teacher_snapshot_steps: int = _setting(10, "Optimizer steps between snapshots.")
    teacher_ema_decay: float = _setting(0.99, "Decay per optimizer step of teacher_weights=ema.")
    teacher_timing: str = _setting(
        "auto",
        "When rollouts are scored: generation = after sampling, with TRL's own pass for the old log-probs or else a "
        "student pass of ours; loss = inside the loss, whose forward serves (needs steps_per_generation=1, no "
        "dropout, no sharding; rollouts with several pairs are scored after sampling all the same); auto = loss "
        "where that can be.",
    )
    teacher_max_tokens: int | None = _setting(
        None, "Tokens per forward of the conditioned pass. Default: as many rows as a training micro-batch has."
    )
    teacher_prefix_sharing: str = _setting(
        "auto",
        "How rollouts share prompts in the conditioned pass: packed, cached, off, or auto.",
    )

    divergence: str = _setting(
        "exact",
        "What token_kl is: exact over the vocabulary (the paper), or an approximation for comparison: topk (the "
        "student's likeliest words and a tail), k1, k3 (from the sampled token).",
    )
    divergence_direction: str = _setting(
        "forward", "forward: KL(teacher || student) (the paper); reverse: KL(student || teacher)."
    )
    divergence_topk: int = _setting(64, "Words of divergence=topk.")

    policy_coef: float = _setting(1.0, "Weight of the policy gradient; 0 = distillation alone.")
    distill_coef: float = _setting(
        0.0,
        "Weight of a distillation loss: divergence of the student from a teacher, see docs/baselines.md; 0 = off.",
    )
    distill_start_coef: float = _setting(0.0, "Weight it starts from, with distill_warmup_steps.")
    distill_warmup_steps: int = _setting(0, "Optimizer steps over which the weight goes from the one to the other.")
    distill_divergence: str = _setting(
        "forward",
        "forward: KL(teacher || student); reverse; both: half their sum; jsd; or sampled: the reverse one's gradient "
        "estimated from the sampled token.",
    )
    distill_jsd_beta: float = _setting(0.5, "The teacher's share of the mixture of jsd.")
    distill_clip: float = _setting(0.0, "Most a single word adds to a token's divergence, in nats; 0 = no limit.")
    distill_is_clip: float = _setting(
        0.0,
        "Weight tokens by the ratio pi / pi_old, cut off here; 0 = off. (It is 1 with one update per generation "
        "batch.)",
    )
    distill_context: str = _setting(
        "sibling",
        "What the teacher sees: prompt (nothing more), reference (the text of reference_column), sibling (a solved "
        "rollout of the group) or partial (the same where SC-GRPO would).",
    )
    reference_column: str = _setting("solution", "Column of the training rows with reference solutions.")
    teacher_model_name_or_path: str | None = _setting(
        None, "Another model as the teacher of the distillation, with the same vocabulary. Default: the policy."
    )

    dynamic_sampling_max_rounds: int = _setting(
        0,
        "DAPO: sample further prompts up to this many times in place of groups that are all solved or all failed; "
        "0 = off.",
    )
    overlong_frac: float = _setting(
        0.0,
        "DAPO's soft overlong punishment: rewards fall by up to 0.5 (or the last of reward_weights) over this last "
        "share of max_completion_length; 0 = off.",
    )
    kl_in_reward: bool = _setting(
        False,
        "With beta > 0: take the KL to the reference off the reward of each token, not off the loss; for credit "
        "methods that read rewards (reinforce++).",
    )
    drop_zero_advantages: bool = _setting(
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

    def credit_method(self) -> CreditMethod:
        """The configured method, built from the `credit_*` settings it knows."""
        names = [f.name for f in dataclasses.fields(self) if f.name.startswith(_CREDIT_PREFIX)]
        options = {n.removeprefix(_CREDIT_PREFIX): getattr(self, n) for n in names}
        method = create_credit_method(self.credit, options)
        check_teacher(method, self.credit, self.teacher_weights)
        return method

    def token_divergence(self) -> Divergence:
        """The configured divergence."""
        return Divergence(
            cast(DivergenceKind, self.divergence), cast(Direction, self.divergence_direction), self.divergence_topk
        )

    @property
    def distills(self) -> bool:
        """Whether there is a distillation loss at any step."""
        return max(self.distill_coef, self.distill_start_coef * (self.distill_warmup_steps > 0)) > 0

    def distillation(self) -> Distillation:
        """The configured distillation loss."""
        kind = cast(DistillationKind, self.distill_divergence)
        return Distillation(kind, self.distill_jsd_beta, self.distill_clip or None)

    def _problems(self) -> list[str]:
        problems = settings_problems(self)
        for check in (
            self.credit_method,
            self.token_divergence,
            self.distillation,
            lambda: get_template(self.teacher_template),
            lambda: check_teacher_weights(self.teacher_weights, self.teacher_snapshot_steps, self.teacher_ema_decay),
        ):
            try:
                check()
            except ConfigError as error:
                problems.append(str(error))
        for name in ("demonstration_max_tokens", "teacher_max_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}: choose at least 1, or leave it out.")
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
