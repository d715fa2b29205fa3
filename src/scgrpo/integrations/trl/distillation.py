"""Distillation beside the policy gradient: `SCGRPOConfig(distill_coef=...)`.

    loss = policy_coef * TRL's loss + distill_coef(step) * mean over tokens of w_t * divergence(student, sg teacher)
    w_t  = sg[min(pi / pi_old, distill_is_clip)], 1 without `distill_is_clip`
    distill_coef(step) rises from distill_start_coef to distill_coef over the first distill_warmup_steps steps

The divergence is exact over the vocabulary (`scgrpo.divergence.Distillation`), its gradient goes through the student.
The mean over tokens is that of the `loss_type`: sequence mean of token means for "grpo", mean over the generation
batch for "dapo". Tokens without a teacher count in it, as tokens without an advantage do. TRL's correction for a
sampler that differs from the policy (vLLM) is its loss's alone.

What stands in the teacher's context (`distill_context`):
    prompt     nothing more than in the student's: the teacher is another model, or other weights
    reference  the text of the data set's `reference_column`: privileged information
    sibling    a solved rollout of the group other than the rollout itself, wherever there is one
    partial    the same in groups with 2 <= n_c < G alone, as SC-GRPO's weights

Teacher prompts are made once per generation batch and travel with its rows. The teacher reads them in the loss, whose
own forward is the student's, so that several updates per generation batch see the student as it is then.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator
from torch import Tensor

from scgrpo.credit import NONE, Groups, Plan, choose_demonstrations
from scgrpo.credit.routing import partial_route, sibling_plan
from scgrpo.divergence import Distillation
from scgrpo.errors import DataError
from scgrpo.integrations.rollouts import Rollouts
from scgrpo.integrations.trl.compat import Kernel
from scgrpo.integrations.trl.conditioning import Conditioner, LocalRollouts
from scgrpo.integrations.trl.evidence import everywhere
from scgrpo.integrations.trl.in_loss import completion_logps, padded_states
from scgrpo.teacher.prompts import Demonstration
from scgrpo.teacher.scoring import ConditionedPass, Pairs

Context = Literal["prompt", "reference", "sibling", "partial"]
_IDS, _LENGTHS = "distill_prompt_ids", "distill_prompt_lengths"
# pi / pi_old is cut off here in any case, as in TRL's SDPO: e^20 is no ratio.
_MAX_LOG_RATIO = 20.0


@dataclass
class Distiller:
    """What a trainer adds to its loss.

    Attributes:
        loss: the divergence.
        context: see the module; column: the one with the references.
        is_clip: largest importance ratio; 0: no ratio.
        condition: makes teacher prompts.
        score: the pass of the teacher.
        coefficient: its weight at the current step.
        mean: (inputs of the loss, values (B, T) that are 0 where nothing counts) -> their mean over tokens.
        log: takes metrics by name, without their prefix.
    """

    accelerator: Accelerator
    loss: Distillation
    context: Context
    column: str
    is_clip: float
    condition: Conditioner
    score: ConditionedPass
    coefficient: Callable[[], float]
    mean: Callable[[Mapping[str, Any], Tensor], Tensor]
    log: Callable[[dict[str, float]], None]
    _checked: bool = False
    _found: Tensor | None = None  # (B, T), from the forward of a loss to its end

    def prepare(
        self, batch: dict[str, Any], local: LocalRollouts, rollouts: Rollouts, groups: Groups, rng: random.Random
    ) -> None:
        """Put the teacher's prompts of a generation batch in it: rows of token ids, of length 0 without a teacher.

        Every process calls it, with the same `groups` and `rng`.
        """
        if not self._checked and self.context != "prompt":
            self.condition.check_prompts(local)
        self._checked = True
        rows, shown, demonstrations = self.contexts(local, rollouts, groups, rng)
        prompts = self.condition.contexts(local, rows, demonstrations, shown, [True] * len(rows))
        lengths = torch.zeros(len(local.prompts), dtype=torch.long, device=local.completion_ids.device)
        ids = lengths.new_zeros(len(lengths), max((len(prompt) for prompt in prompts), default=1))
        for row, prompt in zip(rows, prompts, strict=True):
            lengths[row] = len(prompt)
            ids[row, : len(prompt)] = torch.tensor(prompt)
        batch[_IDS], batch[_LENGTHS] = ids, lengths
        used = [demonstrations[number] for number in shown if number != NONE]
        sums = [len(rows), len(lengths), sum(d.truncated for d in used), len(used)]
        with_teacher, all_rows, truncated, all_used = self._totals(lengths.new_tensor(sums, dtype=torch.float32))
        self.log({"teacher_frac": with_teacher / all_rows, "truncated_frac": truncated / max(1.0, all_used)})

    def contexts(
        self, local: LocalRollouts, rollouts: Rollouts, groups: Groups, rng: random.Random
    ) -> tuple[list[int], list[int], Mapping[int, Demonstration]]:
        """Local rows that have a teacher, the number of what each is shown, and that by number."""
        if self.context in ("prompt", "reference"):
            rows = local.mask.any(dim=1).nonzero()[:, 0].tolist()  # no verdict is needed
            if self.context == "prompt":
                return rows, [NONE] * len(rows), {}
            texts = {row: self._reference(rollouts.inputs, row) for row in rows}
            return rows, rows, {row: self.condition.format(text) for row, text in texts.items()}
        plan = self._plan(groups, rng)
        completions = everywhere(self.accelerator, rollouts.completions)
        last = local.first + len(local.prompts)
        pairs = zip(plan.rollout.tolist(), plan.demonstration.tolist(), strict=True)
        mine = [(row - local.first, shown) for row, shown in pairs if local.first <= row < last]
        demonstrations = {shown: self.condition.format(completions[shown]) for shown in sorted({s for _, s in mine})}
        return [row for row, _ in mine], [shown for _, shown in mine], demonstrations

    def logps(self, inputs: dict[str, Any], states: Tensor, tokens: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies (n,) of a loss's completion tokens; on the way, their distillation loss.

        Args:
            inputs: of the loss.
            states, tokens: (n, H) and (n,) of its completion tokens; kernel: TRL's own output head.
        """
        present = inputs["completion_mask"].bool()
        mask = present & inputs.get("tool_mask", present).bool() & (inputs[_LENGTHS] > 0)[:, None]
        rows = mask.any(dim=1).nonzero()[:, 0]
        counts = inputs[_LENGTHS][rows].tolist()
        prompts = [ids[:count].tolist() for ids, count in zip(inputs[_IDS][rows], counts, strict=True)]
        pairs = Pairs(
            student_prompts=prompts,  # not read: the student's states are given
            teacher_prompts=prompts,
            completions=inputs["completion_ids"][rows],
            lengths=present[rows].sum(dim=1),
            mask=mask[rows],
            student_hidden=padded_states(states, present)[rows],
        )
        evidence, loss = self.score.distil(pairs, self.loss)
        total, number = self._totals(torch.stack([loss.detach().sum(), mask.sum()]))
        self.log({"divergence": total / max(1.0, number)})
        old = inputs.get("old_per_token_logps")
        if self.is_clip and old is not None:
            loss = loss * importance_ratio(evidence.student_logps, old[rows], self.is_clip)
        self._found = loss.new_zeros(present.shape).index_put((rows,), loss)
        return completion_logps(evidence, mask[rows], rows, present, states, tokens, kernel)

    def term(self, inputs: Mapping[str, Any]) -> Tensor:
        """What is added to the loss whose `logps` were computed last."""
        assert self._found is not None
        found, self._found = self._found, None
        coefficient = self.coefficient()
        self.log({"coef": coefficient})
        return coefficient * self.mean(inputs, found)

    def _plan(self, groups: Groups, rng: random.Random) -> Plan:
        if self.context == "partial":
            return choose_demonstrations(groups, partial_route(groups), rng)
        return sibling_plan(groups, rng)

    def _reference(self, inputs: Sequence[Mapping[str, Any]], row: int) -> Any:
        text = inputs[row].get(self.column)
        if not text or not isinstance(text, (str, list)):
            raise DataError(
                f"The row of prompt {inputs[row].get('prompt')!r} has no text in its column {self.column!r}.",
                "Give every training row a reference solution, or name their column with reference_column.",
            )
        return text

    def _totals(self, values: Tensor) -> list[float]:
        return self.accelerator.reduce(values.float(), reduction="sum").tolist()


def importance_ratio(logps: Tensor, old_logps: Tensor, largest: float) -> Tensor:
    """`sg[min(pi / pi_old, largest)]`."""
    log_ratio = (logps.detach() - old_logps).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return log_ratio.exp().clamp(max=largest)


def coefficient(args: Any, step: int) -> float:
    """Weight of the distillation loss after `step` optimizer steps."""
    if step >= args.distill_warmup_steps:
        return args.distill_coef
    risen = step / args.distill_warmup_steps
    return args.distill_start_coef + (args.distill_coef - args.distill_start_coef) * risen


def mean_over_tokens(trainer: Any, inputs: Mapping[str, Any], per_token: Tensor) -> Tensor:
    """The mean TRL's loss of this `loss_type` takes, over values (B, T) that are 0 where nothing counts."""
    mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    accumulated = trainer.current_gradient_accumulation_steps
    if trainer.loss_type in ("grpo", "sapo"):
        return (per_token.sum(-1) / mask.sum(-1).clamp(min=1)).mean() / accumulated
    if trainer.loss_type == "luspo":
        return per_token.sum(-1).mean() / accumulated
    if trainer.loss_type == "bnpo":
        return per_token.sum() / mask.sum().clamp(min=1) / accumulated
    if trainer.loss_type == "dr_grpo":
        return per_token.sum() / (len(per_token) * trainer.max_completion_length) / accumulated
    # Counted over the generation batch of all processes, of which this is one accumulation window.
    tokens = inputs["num_items_in_batch"].clamp(min=1) / trainer.accelerator.num_processes
    return per_token.sum() / (tokens * accumulated / trainer.args.steps_per_generation)


def settings_problems(args: Any) -> list[str]:
    """What keeps the distillation settings of an SCGRPOConfig from working."""
    problems = []
    if min(args.policy_coef, args.distill_coef, args.distill_start_coef, args.distill_warmup_steps) < 0:
        problems.append("policy_coef, distill_coef, distill_start_coef and distill_warmup_steps must be at least 0.")
    if not args.distills:
        if args.policy_coef == 0:
            problems.append("policy_coef=0 without distillation trains nothing: set distill_coef.")
        return problems
    if args.distill_context not in get_args(Context):
        problems.append(f"distill_context={args.distill_context!r}: choose one of {', '.join(get_args(Context))}.")
    if args.distill_is_clip < 0:
        problems.append(f"distill_is_clip is {args.distill_is_clip}: choose a ratio above 0, or 0 for none.")
    if args.teacher_model_name_or_path is not None and args.credit == "uniform" and args.teacher_weights != "current":
        problems.append(
            f"teacher_weights={args.teacher_weights!r} with teacher_model_name_or_path: the teacher is that model, "
            "and stays as it is. Leave one of them out."
        )
    itself = args.teacher_model_name_or_path is None and args.teacher_weights == "current"
    if args.distill_context == "prompt" and itself:
        problems.append(
            "distill_context='prompt' and the policy's own weights: the teacher is the student. Set "
            "teacher_model_name_or_path, or teacher_weights to snapshot, ema or frozen."
        )
    if args.teacher_timing == "loss":
        problems.append(
            "teacher_timing='loss' with distill_coef: the loss's forward serves the distillation. Leave it out; a "
            "credit method scores its rollouts after sampling."
        )
    if args.drop_zero_advantages:
        problems.append("drop_zero_advantages with distill_coef: rows without an advantage have a gradient.")
    if args.use_liger_kernel:
        problems.append("use_liger_kernel with distill_coef has not been verified: leave it out.")
    return problems
