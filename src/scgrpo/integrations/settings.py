"""What is set the same way on every host: the credit method, what counts as solved, what the teacher sees.

Defaults are the paper's method. A host's own configuration inherits these settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from scgrpo.credit import create_credit_method
from scgrpo.credit.methods import CreditMethod, check_teacher
from scgrpo.divergence.choice import Divergence, DivergenceKind
from scgrpo.divergence.exact import Direction
from scgrpo.errors import ConfigError
from scgrpo.teacher.prompts import get_template

_CREDIT_PREFIX = "credit_"


def setting(default: Any, text: str) -> Any:
    """A field with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass
class CreditSettings:
    """Settings of credit per token; see docs/credit_methods.md."""

    credit: str = setting("sc_grpo", "Credit method, see docs/credit_methods.md; uniform = plain GRPO.")
    credit_quantile: float = setting(0.75, "Threshold c is this quantile of the active token_kl.")
    credit_floor: float = setting(1e-4, "Smallest threshold c, in nats.")
    credit_scope: str = setting("generation_batch", "Scope of c: generation_batch, or micro_batch (the paper's).")
    credit_alpha: float = setting(0.1, "Size of the diversity pseudo-advantage of unsolved groups; 0 = off.")
    credit_normalize: str = setting(
        "none", "none (the paper), mean_one: divide weights by their mean, or centered: 1 + mix * (f - mean f)."
    )
    credit_weight_sign: str = setting(
        "both", "Rollouts weighted per token: both (the paper), solved, or failed; the others get the mean weight."
    )
    credit_demonstrations: str = setting(
        "uniform",
        "uniform: each rollout draws one of its group (the paper); shared: one for the group, cheaper; shortest, "
        "longest, nearest or least_similar of the group's; buffer: earlier solutions of the prompt, if any.",
    )
    credit_routes: str = setting(
        "partial",
        "Groups weighted by solved demonstrations: partial, 2 <= n_c < G (the paper); mixed, 1 <= n_c < G; "
        "all_solved, n_c = G; all, the last two.",
    )
    credit_mix: float = setting(1.0, "Share of the weight against uniform credit, 1 = the paper.")
    credit_fixed_threshold: float | None = setting(None, "Threshold c in nats, instead of a quantile.")
    credit_anneal_steps: int | None = setting(
        None, "Optimizer steps over which mix or strength falls to 0; 0 = it stays. Default: the method's own."
    )
    credit_strength: float | None = setting(
        None, "Size of a method's own term, of those that have one. Default: the method's own."
    )
    credit_top_fraction: float | None = setting(
        None, "Share of tokens that entropy_mask keeps and stare lifts. Default: the method's own (0.2, 0.1)."
    )
    credit_entropy_gate: float | None = setting(
        None, "Mean entropy in nats below which stare acts and antisd does not. Default: the method's own (0.3, 0.1)."
    )
    credit_num_wrong: int | None = setting(None, "Failed rollouts rlcsd contrasts with. Default: 4.")
    credit_num_demonstrations: int | None = setting(None, "Solved siblings value_baseline reads. Default: 3.")
    credit_value_features: str | None = setting(
        None, "What value_baseline knows of a prefix: own, demonstrations, or both. Default: both."
    )
    credit_gae_lambda: float | None = setting(
        None, "value_baseline: 1 = unbiased, smaller = credit where the value moved. Default: 1."
    )
    credit_seed: int | None = setting(None, "Seed of the controls that shuffle weights. Default: 0.")

    success_threshold: float = setting(0.5, "A rollout is solved when that reward reaches this value.")
    teacher_template: str = setting("generic", "Wording of the teacher's prompt: math, code, agent, generic, tiny.")
    demonstration_max_tokens: int | None = setting(
        None, "Token budget of a demonstration, cut from the right. Default: max_completion_length."
    )
    teacher_weights: str = setting("current", "Teacher's weights: current (the paper), snapshot, ema or frozen.")

    divergence: str = setting(
        "exact",
        "What token_kl is: exact over the vocabulary (the paper), or an approximation for comparison: topk (the "
        "student's likeliest words and a tail), k1, k3 (from the sampled token).",
    )
    divergence_direction: str = setting(
        "forward", "forward: KL(teacher || student) (the paper); reverse: KL(student || teacher)."
    )
    divergence_topk: int = setting(64, "Words of divergence=topk.")

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

    def credit_problems(self) -> Iterator[str]:
        """What cannot work among these settings, each with its remedy."""
        for check in (self.credit_method, self.token_divergence, lambda: get_template(self.teacher_template)):
            try:
                check()
            except ConfigError as error:
                yield str(error)
        if self.demonstration_max_tokens is not None and self.demonstration_max_tokens < 1:
            yield (
                f"demonstration_max_tokens is {self.demonstration_max_tokens}: choose at least 1, or leave it out."
            )
