"""What a trainer's model and distribution allow, checked before anything is trained, and its parts put together."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, cast

from accelerate.utils import DistributedType

from scgrpo.credit.methods import check_teacher
from scgrpo.errors import ConfigError
from scgrpo.integrations.trl import compat, overlong
from scgrpo.integrations.trl.conditioning import Conditioner, TeacherPromptFn
from scgrpo.integrations.trl.distillation import Distiller, coefficient, mean_over_tokens
from scgrpo.integrations.trl.dropping import check_droppable
from scgrpo.integrations.trl.dynamic_sampling import DynamicSampling, ExtraPrompts
from scgrpo.integrations.trl.evidence import all_agree, offloads_weights, shares_weights
from scgrpo.integrations.trl.per_step import TurnConditioner
from scgrpo.integrations.trl.rewards import finds_first_errors, guarded
from scgrpo.teacher.hidden import CompletionStates, Sharing, sharing_candidates
from scgrpo.teacher.models import has_dropout, load_teacher, output_head, through_wrapper
from scgrpo.teacher.prompts import DemonstrationFormatter, control_tokens, get_template, teacher_prompt
from scgrpo.teacher.scoring import ConditionedPass, OtherModel

# Every process has all the weights.
_REPLICATED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def check_setup(trainer: Any) -> None:
    """Raise ConfigError, with all problems at once, unless the trainer's settings can work with its model."""
    args = trainer.args
    problems = check_droppable(args, trainer.aux_loss_enabled) if args.drop_zero_advantages else []
    if args.dynamic_sampling_max_rounds:
        problems += _sampling_problems(trainer)
    if args.kl_in_reward and args.beta and not getattr(trainer.credit_method, "needs_rewards", False):
        problems.append(
            f"kl_in_reward with credit={args.credit!r}: the KL would be lost, as group advantages come from the "
            "rewards without it. Set kl_in_reward=False, or credit='reinforce++'."
        )
    if args.credit != "uniform" or args.distills:
        problems += [*_model_problems(trainer), *_distribution_problems(trainer), *_method_problems(trainer)]
    if args.distills:
        problems += _distillation_problems(trainer)
    if problems:
        raise ConfigError("This set-up cannot work:", " | ".join(problems))


def scores_in_loss(trainer: Any) -> bool:
    """Whether rollouts are scored inside the loss: where it is asked for, or where it is known to be the same.

    Raises:
        IncompatibleHostError: it is asked for, and TRL's output head is not the one it was written for.
    """
    args = trainer.args
    if args.distills:  # the loss's forward serves the distillation
        compat.check_fused_head()
        return False
    if args.teacher_timing != "auto":
        in_loss = args.teacher_timing == "loss"
    else:
        whole = args.steps_per_generation == 1  # one micro-batch is the generation batch: threshold and groups
        in_loss = whole and trainer.accelerator.distributed_type in _REPLICATED and not has_dropout(trainer.model)
    if in_loss:
        compat.check_fused_head()
    return in_loss


def _model_problems(trainer: Any) -> list[str]:
    """What keeps credit per token from working with this model."""
    args, problems = trainer.args, []
    limit = getattr(trainer.model.config.get_text_config(), "max_position_embeddings", None)
    shown = args.demonstration_max_tokens or args.max_completion_length
    if args.credit == "uniform" and args.distill_context == "prompt":
        shown = 0
    if limit and shown + args.max_completion_length > limit:
        problems.append(
            f"A demonstration ({shown} tokens) and a completion ({args.max_completion_length}) exceed the "
            f"model's {limit} positions: lower demonstration_max_tokens."
        )
    if trainer._is_vlm:
        problems.append("Models with images are not supported: their prompts cannot be re-rendered as text.")
    if args.teacher_timing == "loss" and has_dropout(trainer.model):
        problems.append("teacher_timing='loss' scores with the loss's own forward, whose dropout is on: set it to 0.")
    peft = getattr(trainer.accelerator.unwrap_model(trainer.model), "active_peft_config", None)
    if peft is not None and peft.is_prompt_learning:
        problems.append("PEFT prompt tuning adds virtual tokens the conditioned pass would miss: use LoRA.")
    return problems


def _sampling_problems(trainer: Any) -> list[str]:
    """What keeps dynamic sampling from working with this trainer."""
    problems = []
    if not hasattr(trainer.train_dataset, "__len__"):
        problems.append("dynamic_sampling_max_rounds needs a training set with a length, not a stream.")
    if trainer._is_vlm:
        problems.append("dynamic_sampling_max_rounds cannot replace prompts with images.")
    return problems


def _distillation_problems(trainer: Any) -> list[str]:
    """What a distillation loss needs and does not find."""
    args, problems = trainer.args, []
    columns = getattr(trainer.train_dataset, "column_names", None)
    if args.distill_context == "reference" and columns and args.reference_column not in columns:
        problems.append(
            f"distill_context='reference' needs reference solutions, and the training rows have no column "
            f"{args.reference_column!r} (they have {', '.join(columns)}): set reference_column."
        )
    if shares_weights(trainer.accelerator):
        problems.append("distill_coef has not been verified under FSDP and ZeRO-3: leave weights unsharded.")
    return problems


def _method_problems(trainer: Any) -> list[str]:
    """What the credit method needs and does not find."""
    method, problems = trainer.credit_method, []
    try:
        check_teacher(method, type(method).__name__, trainer.args.teacher_weights)
    except ConfigError as error:
        problems.append(str(error))
    reward_func = trainer.reward_funcs[trainer._success]
    if getattr(method, "needs_first_error", False) and not finds_first_errors(reward_func):
        problems.append(
            f"{type(method).__name__} needs to know where failed rollouts go wrong: give the reward function that "
            "decides 'solved' an attribute `first_error`, the token position for each rollout it graded last (None "
            "or -1: unknown)."
        )
    return problems


def _distribution_problems(trainer: Any) -> list[str]:
    """What keeps it from working with this distribution."""
    args, accelerator, problems = trainer.args, trainer.accelerator, []
    if accelerator.distributed_type == DistributedType.FSDP and accelerator.state.fsdp_plugin.fsdp_version != 2:
        problems.append("FSDP version 1 has not been verified: set fsdp_version to 2.")
    if shares_weights(accelerator):
        if args.teacher_timing == "loss":
            problems.append("teacher_timing='loss' has not been verified under FSDP and ZeRO-3.")
        if args.teacher_weights != "current":
            problems.append("teacher_weights other than 'current' cannot be swapped under FSDP and ZeRO-3.")
        if offloads_weights(accelerator):
            problems.append("ZeRO-3 with offload_param has not been verified: leave it out.")
    return problems


def success_column(trainer: Any) -> int:
    """Which reward function decides what is solved.

    Raises:
        ConfigError: there is none of that name.
    """
    names, wanted = trainer.reward_func_names, trainer.args.success_reward
    if wanted is None:
        return names.index(next(name for name in names if name != overlong.NAME))
    if wanted not in names:
        raise ConfigError(
            f"success_reward={wanted!r} is not among the reward functions.", f"Choose one of {', '.join(names)}."
        )
    return names.index(wanted)


def rewarding(reward_funcs: Any, args: Any) -> Any:
    """Reward functions whose failures cost single rollouts; DAPO's punishment joins them, and its weight those in
    `args`, if it is configured."""
    if isinstance(reward_funcs, (list, tuple)):
        reward_funcs = [guarded(func) for func in reward_funcs]
    elif reward_funcs is not None:
        reward_funcs = guarded(reward_funcs)
    if args.overlong_frac:
        reward_funcs, args.reward_weights = overlong.with_punishment(
            reward_funcs, args.reward_weights, args.overlong_frac, args.max_completion_length
        )
    return reward_funcs


def conditioner(trainer: Any, policy: Any, teacher_prompt_fn: TeacherPromptFn | None) -> Conditioner:
    """The conditioned pass over the trainer's model."""
    args, tokenizer = trainer.args, trainer._tokenizer
    template = get_template(args.teacher_template)
    sharded = shares_weights(trainer.accelerator)
    score = ConditionedPass(
        model=policy,
        head=partial(output_head, policy, args.temperature),
        states=completion_states(trainer, policy, sharded),
        max_rows=args.per_device_train_batch_size,
        max_tokens=args.teacher_max_tokens,
        teacher_weights=None if args.teacher_weights == "current" else trainer._teacher.applied,
        autocast=trainer.accelerator.autocast,
        divergence=args.token_divergence(),
        counted_as=trainer.meter.forwards,
    )
    if sharded:
        score = replace(score, redirect=through_wrapper(trainer.model, policy))
    return TurnConditioner(
        score=score,
        format=DemonstrationFormatter(
            encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
            decode=tokenizer.decode,
            max_tokens=args.demonstration_max_tokens or args.max_completion_length,
            special_tokens=control_tokens(tokenizer),
            turns=template.turns,
        ),
        teacher_prompt=teacher_prompt_fn or partial(teacher_prompt, template=template),
        tokenize=trainer._tokenize_rows,
    )


def distiller(trainer: Any, condition: Conditioner) -> Distiller | None:
    """What adds the configured distillation to the trainer's loss, if there is one.

    Raises:
        ConfigError: the teacher's model cannot be read, or has another vocabulary.
    """
    args = trainer.args
    if not args.distills:
        return None
    return Distiller(
        accelerator=trainer.accelerator,
        loss=args.distillation(),
        context=args.distill_context,
        column=args.reference_column,
        is_clip=args.distill_is_clip,
        condition=condition,
        score=replace(condition.score, teacher=_other_teacher(trainer)),
        coefficient=lambda: coefficient(args, trainer.state.global_step),
        mean=partial(mean_over_tokens, trainer),
        log=partial(trainer._log_under, "distill"),
    )


def _other_teacher(trainer: Any) -> OtherModel | None:
    """The model `teacher_model_name_or_path` names."""
    args = trainer.args
    if args.teacher_model_name_or_path is None:
        return None
    model, vocabulary = load_teacher(args.teacher_model_name_or_path, trust_remote_code=args.trust_remote_code)
    model.to(trainer.accelerator.device)
    trainer.meter.watch(model)
    head = partial(output_head, model, args.temperature)
    policy = output_head(trainer.accelerator.unwrap_model(trainer.model), args.temperature)
    if vocabulary != trainer._tokenizer.get_vocab() or len(head()) != len(policy):
        raise ConfigError(
            f"The teacher {args.teacher_model_name_or_path} has another vocabulary than the policy (output heads of "
            f"{len(head())} and {len(policy)} words): their predictions cannot be compared word by word.",
            "Choose a teacher of the policy's family, with the same tokenizer and size of the output head.",
        )
    return OtherModel(head, completion_states(trainer, model, sharded=False))


def completion_states(trainer: Any, policy: Any, sharded: bool) -> CompletionStates:
    """How completions are run: the ways of sharing prompts that can work here."""
    candidates = sharing_candidates(policy)
    if trainer.args.teacher_prefix_sharing != "auto":
        candidates = (cast(Sharing, trainer.args.teacher_prefix_sharing),)
    if not sharded:
        return CompletionStates(policy, candidates)
    # Through a cache, processes would run different numbers of forwards; and a packed forward breaks off where
    # rows are longer than a layer's window, which may be so on one process alone.
    windows = "sliding_attention" in (getattr(policy.config.get_text_config(), "layer_types", None) or ())
    kept = tuple(c for c in candidates if c == "off" or (c == "packed" and not windows)) or ("off",)
    return CompletionStates(policy, kept, partial(all_agree, trainer.accelerator))


def dynamic_sampling(trainer: Any) -> DynamicSampling:
    """What refills the trainer's generation batches."""
    args = trainer.args
    return DynamicSampling(
        accelerator=trainer.accelerator,
        prompts=ExtraPrompts(trainer.train_dataset, args.seed),
        sample=trainer._sample,
        num_generations=trainer.num_generations,
        success=trainer._success,
        success_threshold=args.success_threshold,
        max_rounds=args.dynamic_sampling_max_rounds,
        pad_token_id=trainer._tokenizer.pad_token_id,
        table=partial(compat.completions_table, trainer._logs),
        log=partial(trainer._log_under, "sampling"),
    )
