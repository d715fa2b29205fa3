"""Baselines by name: `SCGRPOConfig(method="dapo")`. A preset is a bundle of settings that stands in for the defaults.

`method` says what is optimised, `credit` how it is spread over tokens: `method="dapo", credit="sc_grpo"` puts
SC-GRPO's weights on DAPO's loss. Whatever is given beside the name wins, also where it equals a default:
1. in Python, every argument of the call `SCGRPOConfig(...)`;
2. on the command line, every key of the recipe and every flag. Only `--method` itself replaces the recipe's `method`
   and `credit` together, as these two name what is trained; `--credit` beside it puts weights on it again.

In the formulas, rho_t = pi / pi_old of a token, A the advantage of its rollout, r the reward. What is common to all:
no KL to a reference unless `beta` is set; learning rate, batch and lengths are the user's.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from scgrpo.errors import ConfigError

Settings = dict[str, Any]
_PRESETS: dict[str, Callable[[], Settings]] = {}


def method_names() -> list[str]:
    """Names of the presets, sorted."""
    return sorted(_PRESETS)


def preset(name: str) -> Settings:
    """Settings of a method; every preset names its `credit`.

    Raises:
        ConfigError: unknown name; the nearest one is named.
    """
    if name not in _PRESETS:
        near = difflib.get_close_matches(str(name), _PRESETS, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"Unknown method {name!r}.", f"{hint}Known: {', '.join(method_names())}.")
    return _PRESETS[name]()


def label(method: str | None, credit: str) -> str:
    """What to call a run: its method, its credit method where there is no other, or both: `dapo+sc_grpo`."""
    if method is None:
        return credit
    return method if preset(method)["credit"] == credit else f"{method}+{credit}"


def _method(name: str) -> Callable[[Callable[[], Settings]], Callable[[], Settings]]:
    def register(settings: Callable[[], Settings]) -> Callable[[], Settings]:
        _PRESETS[name] = settings
        return settings

    return register


@_method("grpo")
def grpo() -> Settings:
    """GRPO (arXiv 2402.03300, eq. 3).

        mean_i mean_t min(rho_t A_i, clip(rho_t, .8, 1.2) A_i),    A_i = (r_i - mean r) / std r  over the group

    Departures: 1. no KL to a reference (there .04); set `beta`. 2. TRL divides by `std + 1e-4`.
    """
    return {
        "credit": "uniform",
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "scale_rewards": "group",
        "epsilon": 0.2,  # and epsilon_high, which follows it
    }


@_method("sc_grpo")
def sc_grpo() -> Settings:
    """SC-GRPO (arXiv 2606.18810): GRPO with `f_t A_i` for `A_i`, `f = D / (D + c)`.

    Departures: the table "Paper versus code" of docs/method.md.
    """
    return {**grpo(), "credit": "sc_grpo"}


@_method("dr_grpo")
def dr_grpo() -> Settings:
    """Dr. GRPO (arXiv 2503.20783, section 3.2): GRPO without its two biases.

        sum_i sum_t min(rho_t A_i, clip(rho_t, .8, 1.2) A_i) / (G * max_completion_length),    A_i = r_i - mean r

    Departures: 1. the sum is over a micro-batch and divided by its number of rollouts: the same mean.
    """
    return {**grpo(), "loss_type": "dr_grpo", "scale_rewards": "none"}


@_method("dapo")
def dapo() -> Settings:
    """DAPO (arXiv 2503.14476, eq. 8, 11 and 13).

        sum_i sum_t min(rho_t A_i, clip(rho_t, .8, 1.28) A_i) / sum_i |o_i|,    0 < solved rollouts < G
        r_i = verdict + soft overlong punishment

    Departures: 1. refilling ends after 3 rounds, see `dynamic_sampling.py`. 2. The punishment weighs one half, see
    `overlong.py`; the stretch it grows on is the paper's fifth of the length. 3. The token mean is over the
    generation batch. 4. TRL divides by `std + 1e-4`. 5. Overlong filtering is not on, as in the paper's final recipe;
    set `mask_truncated_completions`.

    With `credit="sc_grpo"`, plan and groups are those of the refilled batch: a group without a solved rollout is
    seen only where refilling gave up, so the diversity of SC-GRPO rarely has anything to do.
    """
    return {
        **grpo(),
        "loss_type": "dapo",
        "epsilon_high": 0.28,
        "dynamic_sampling_max_rounds": 3,
        "overlong_frac": 0.2,
    }


@_method("gspo_token")
def gspo_token() -> Settings:
    """GSPO in its token form (arXiv 2507.18071, eq. 13 and 14).

        mean_i mean_t min(s_t A_t, clip(s_t, 1 - 3e-4, 1 + 4e-4) A_t),    s_t = sg[s] pi_t / sg[pi_t]
        s = exp(mean_t log(pi_t / pi_old_t))

    Departures: 1. TRL divides by `std + 1e-4`. 2. The paper updates 4 times per generation batch; here that is yours
    to set (`steps_per_generation`, `num_iterations`): with a single update every ratio is 1, and this is GRPO.
    """
    return {
        **grpo(),
        "importance_sampling_level": "sequence_token",
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
    }


@_method("reinforce++")
def reinforce() -> Settings:
    """REINFORCE++ (arXiv 2501.03262): PPO's clip with whitened returns for advantages, no critic, no groups.

        mean over tokens of min(rho_t A_t, clip(rho_t, .8, 1.2) A_t),    A_t = (R_t - mean R) / std R over the batch
        R_t = r - beta * sum_{s >= t} (log pi_old_s - log pi_ref_s)

    Departures: 1. those of credit/reinforce.py. 2. `beta` is yours to set: without it there is no reference. 3. Each
    prompt is sampled `num_generations` times, as the host's batches are groups; the baseline is the batch's all the
    same. Another `credit` is refused: these advantages are a credit method themselves.
    """
    return {**grpo(), "credit": "reinforce++", "loss_type": "dapo", "kl_in_reward": True}


@_method("cispo")
def cispo() -> Settings:
    """CISPO (MiniMax-M1, arXiv 2506.13585, section 3.1): clipped ratios without gradient, no token is dropped.

        sum_i sum_t sg[min(rho_t, epsilon_high)] A_i log pi_t / sum_i |o_i|

    Departures: 1. `epsilon_high` is the cap itself (TRL), the paper's `1 + eps_high`, whose value it does not tell; 5
    is what ScaleRL (arXiv 2510.13786) settles on. 2. No lower clip, as in the paper's runs. 3. The token mean is over
    the generation batch.
    """
    return {**grpo(), "loss_type": "cispo", "epsilon_high": 5.0}


@_method("opd")
def opd() -> Settings:
    """OPD: on-policy distillation from another model (Lu and Thinking Machines, 2025; GKD, arXiv 2306.13649).

        mean over tokens of KL(pi_student || sg pi_teacher),    on the student's own rollouts

    `teacher_model_name_or_path` names the teacher; it reads the prompt as the student does. `distill_divergence` can
    be forward, both or jsd (GKD's generalized JSD with `distill_jsd_beta`), or `sampled`, the blog's own form: the
    policy gradient with A_t = log pi_teacher(y_t) - log pi_student(y_t).

    Departures: 1. exact over the vocabulary instead of from the sampled token. 2. GKD mixes in rollouts of the
    teacher; here all are the student's (its lambda = 1). 3. The token mean is over the generation batch.
    """
    return {
        **grpo(),
        "loss_type": "dapo",
        "policy_coef": 0.0,
        "distill_coef": 1.0,
        "distill_divergence": "reverse",
        "distill_context": "prompt",
    }


@_method("opsd")
def opsd() -> Settings:
    """OPSD: on-policy self-distillation from privileged text (arXiv 2601.18734).

        mean over tokens of sum_v min(l_v, .05),    l_v = pi_T(v) log(pi_T(v) / pi(v))

    pi_T is the policy at its start, with the row's reference solution (`reference_column`) in its context. Forward
    KL, the clip and the frozen teacher are those of the released recipe. The sampled-token form is
    `distill_divergence="sampled"` with `distill_clip=0`.

    A clipped word keeps its place in the softmax: its own term has no gradient, the others' push it down. On the tiny
    model that turns the student away from what the teacher likes best; `distill_clip=0` does not.

    Departures: 1. the reference stands in the system message, in the wording of `teacher_template`. 2. The token mean
    is over the generation batch. 3. The recipe samples at temperature 1.1; here that is yours to set.
    """
    return {
        **opd(),
        "distill_divergence": "forward",
        "distill_clip": 0.05,
        "distill_context": "reference",
        "teacher_weights": "frozen",
    }


@_method("sdpo")
def sdpo() -> Settings:
    """SDPO: self-distillation from own successes (arXiv 2601.20802).

        mean over tokens of min(pi / pi_old, 2) JSD_.5(pi, sg pi_T),    JSD_b = b KL(pi_T || m) + (1 - b) KL(pi || m)

    m = (pi + pi_T) / 2. pi_T has the moving average of the policy's weights (update rate .05) and in its context a
    solved rollout of the group, never the rollout itself. Rollouts without one have no teacher and add 0.

    Departures: 1. exact over the vocabulary; there the student's 100 likeliest words and a tail. 2. The demonstration
    is drawn from the solved rollouts; TRL takes the first. 3. It stands in the system message, in the wording of
    `teacher_template`. 4. No feedback of an environment. 5. Where `loss_type="dapo"` averages, tokens without a
    teacher count. 6. TRL's trainer of this name has other defaults: `distill_divergence="sampled"` and
    `loss_type="grpo"` here.
    """
    return {
        **opd(),
        "distill_divergence": "jsd",
        "distill_is_clip": 2.0,
        "distill_context": "sibling",
        "teacher_weights": "ema",
        "teacher_ema_decay": 0.95,
    }


@_method("grpo_kl")
def grpo_kl() -> Settings:
    """GRPO + beta KL: SC-GRPO's divergence as an additive loss (the ablation of arXiv 2606.18810, Table 2).

        GRPO's loss + .1 * mean_i mean_t KL(sg pi(. given x, tau, y_<t) || pi(. given x, y_<t))

    The teacher is the live policy with a solved sibling tau in its context; the gradient goes through the student.
    The table's other rows: `distill_divergence` reverse and both, and `distill_start_coef=0.03` with
    `distill_warmup_steps`.

    Departures: the paper is silent on all of these. 1. The KL is of rollouts of groups with 2 <= n_c < G, those that
    SC-GRPO weights with a verified demonstration; others add 0. 2. `both` is half the sum, so that beta keeps its
    size. 3. The warm-up is linear, and its length yours to set.
    """
    return {**grpo(), "distill_coef": 0.1, "distill_divergence": "forward", "distill_context": "partial"}
