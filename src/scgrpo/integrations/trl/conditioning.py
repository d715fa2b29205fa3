"""From a plan to evidence on one process: demonstrations, teacher prompts, the conditioned pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scgrpo.credit import NONE, Evidence, Plan
from scgrpo.credit.weighting import linear_quantile
from scgrpo.errors import ConfigError
from scgrpo.integrations.rollouts import Rollouts
from scgrpo.tasks.environment import EPISODE, Episode
from scgrpo.teacher.hidden import rerun_hidden
from scgrpo.teacher.models import evaluation_mode
from scgrpo.teacher.prompts import Demonstration, DemonstrationFormatter, Prompt
from scgrpo.teacher.scoring import ConditionedPass, Pairs

# (prompt, demonstration text, verified) -> teacher prompt
TeacherPromptFn = Callable[..., Prompt]


@dataclass(frozen=True)
class LocalRollouts:
    """This process's rows of a generation batch, as the conditioned pass needs them.

    Attributes:
        first: row number of the first one in the whole batch.
        prompts: as rendered for generation; prompt_ids: their token ids.
        completion_ids, mask: (B, T); lengths: (B,).
        hidden: (B, T, H) hidden states of the policy from a pass of the host, or None.
        episodes: of rollouts whose turns have prompts of their own; else None.
    """

    first: int
    prompts: Sequence[Prompt]
    prompt_ids: Sequence[Sequence[int]]
    completion_ids: Tensor
    lengths: Tensor
    mask: Tensor
    hidden: Tensor | None
    episodes: Sequence[Episode] | None = None


def local_rollouts(
    batch: Mapping[str, Tensor], rollouts: Rollouts, first: int, hidden: Tensor | None = None
) -> LocalRollouts:
    """Of a generation batch of the host, rows in the order they were sampled in."""
    ids, mask = batch["prompt_ids"].tolist(), batch["prompt_mask"].tolist()
    completion_ids = batch["completion_ids"]
    episodes = [row[EPISODE] for row in rollouts.inputs if EPISODE in row]
    return LocalRollouts(
        first=first,
        prompts=rollouts.prompts,
        prompt_ids=[[i for i, keep in zip(*row, strict=True) if keep] for row in zip(ids, mask, strict=True)],
        completion_ids=completion_ids,
        lengths=torch.tensor([len(ids) for ids in rollouts.completion_ids], device=completion_ids.device),
        mask=(batch["completion_mask"] * batch.get("tool_mask", 1)).bool(),
        hidden=hidden,
        episodes=episodes if any(episode.contexts for episode in episodes) else None,
    )


@dataclass(frozen=True)
class Conditioned:
    """Evidence of this process's pairs and how it came about."""

    pairs: Sequence[int]
    evidence: Evidence
    demonstrations: Mapping[int, Demonstration]
    teacher_prompt_ids: Mapping[int, Sequence[int]]


@dataclass
class Conditioner:
    """Scores the pairs of a plan whose rollouts live on this process.

    Attributes:
        score: the conditioned pass.
        format: completion -> demonstration.
        teacher_prompt: see `TeacherPromptFn`.
        tokenize: prompts and their local row numbers -> token ids, as the host does for generation.
    """

    score: ConditionedPass
    format: DemonstrationFormatter
    teacher_prompt: TeacherPromptFn
    tokenize: Callable[[list[Prompt], list[int]], list[list[int]]]

    def __call__(
        self,
        plan: Plan,
        local: LocalRollouts,
        completions: Sequence[Any],
        num_forwards: Callable[[int], int | None],
        kinds_of_all: Collection[str] = (),
    ) -> Conditioned:
        """Evidence of this process's pairs.

        Args:
            completions: of the whole batch, by row number: a demonstration may come from another process.
            num_forwards: number of batches of this process -> number all processes must run (None: its own).
            kinds_of_all: kinds of pairs that other processes have, where the plan is of this process alone.
        """
        rollout = plan.rollout.tolist()
        shown, contrast = plan.demonstration.tolist(), None if plan.contrast is None else plan.contrast.tolist()
        count = len(local.prompts)
        mine = [pair for pair, row in enumerate(rollout) if local.first <= row < local.first + count]
        needed = {side[pair] for side in (shown, contrast) if side is not None for pair in mine} - {NONE}
        demonstrations = {row: self.format(completions[row]) for row in sorted(needed)}
        contexts = partial(self.contexts, local, [rollout[pair] - local.first for pair in mine], demonstrations)
        verified = plan.verified.tolist()
        claims = [verified[pair] for pair in mine]
        teacher_ids = contexts([shown[pair] for pair in mine], claims)
        student_ids = None if contrast is None else contexts([contrast[pair] for pair in mine], claims)

        parts: list[tuple[list[int], Evidence]] = []
        # All processes go through the same kinds of pairs, whichever of them they have.
        kinds = kinds_of(plan)
        for kind in sorted({*kinds, *kinds_of_all}):
            at = [place for place, pair in enumerate(mine) if kinds[pair] == kind]
            rows = [rollout[mine[place]] - local.first for place in at]
            pairs = replace(self.pairs(local, rows, [teacher_ids[place] for place in at]), alone=kind == "alone")
            if kind == "contrasted" and student_ids is not None:
                own = [student_ids[place] for place in at]
                pairs = replace(pairs, contrasted=True, student_prompts=own, student_hidden=None)
            parts.append((at, self.score(pairs, num_forwards(len(list(self.score.batches(pairs)))))))
        return Conditioned(mine, merged(parts, len(mine)), demonstrations, dict(zip(mine, teacher_ids, strict=True)))

    def contexts(
        self,
        local: LocalRollouts,
        rows: Sequence[int],
        demonstrations: Mapping[int, Demonstration],
        shown: Sequence[int],
        claims: Sequence[bool],
    ) -> list[list[int]]:
        """Prompt ids of local rows, each with the demonstration it is shown (`NONE`: as sampled).

        Rows that share a prompt and a demonstration share the teacher's prompt: it is rendered once.
        """
        kinds = [
            (tuple(local.prompt_ids[row]), demonstration, claim)
            for row, demonstration, claim in zip(rows, shown, claims, strict=True)
        ]
        first = {kind: at for at, kind in reversed(list(enumerate(kinds))) if kind[1] != NONE}
        prompts = [
            self.teacher_prompt(local.prompts[rows[at]], demonstrations[demonstration].text, verified=claim)
            for (_, demonstration, claim), at in first.items()
        ]
        rendered = self.tokenize(prompts, [rows[at] for at in first.values()]) if first else []
        ids_of = dict(zip(first, rendered, strict=True))
        return [ids_of[kind] if kind in ids_of else list(kind[0]) for kind in kinds]

    def pairs(self, local: LocalRollouts, rows: list[int], teacher_ids: list[list[int]]) -> Pairs:
        """Pairs of local rows under the given teacher prompts."""
        return Pairs(
            student_prompts=[local.prompt_ids[row] for row in rows],
            teacher_prompts=teacher_ids,
            completions=local.completion_ids[rows],
            lengths=local.lengths[rows],
            mask=local.mask[rows],
            student_hidden=None if local.hidden is None else local.hidden[rows],
        )

    def noise_floor(self, local: LocalRollouts, rows: int = 8) -> float | None:
        """75th percentile of D (nats) between *identical* contexts that were batched differently.

        Their true D is 0: what is measured is numeric noise, and a threshold c near it would turn that noise into
        weights. One side is scored row by row, as the teacher is; the other is what the conditioned pass will take
        for the student's: hidden states the host left, padded as it pads, or a padded pass. None if there is nothing
        to score. Every process runs the same number of forwards.
        """
        rows = min(rows, len(local.prompts))
        chosen = local.mask.any(dim=1).nonzero()[:rows, 0].tolist() or [0]
        prompt_ids = [list(local.prompt_ids[row]) for row in chosen]
        pairs = self.pairs(local, chosen, prompt_ids)
        if pairs.student_hidden is None:
            together = partial(rerun_hidden, self.score.model, prompt_ids, pairs.completions, pairs.lengths)
            with torch.no_grad(), evaluation_mode(self.score.model), self.score.autocast():
                pairs = replace(pairs, student_hidden=self.score.redirect(together))
        uncounted = partial(self.score.counted_as, None)
        one_by_one = replace(self.score, max_tokens=1, teacher_weights=None, counted_as=lambda side: uncounted())
        evidence = one_by_one(pairs, num_forwards=rows)
        noise = evidence.token_kl[pairs.mask]
        return linear_quantile(noise, 0.75).item() if len(noise) else None

    def check_prompts(self, local: LocalRollouts) -> None:
        """The prompt ids that were sampled from must be what the prompts render to: otherwise a teacher prompt made
        from the text would differ from the student's by more than the demonstration.

        Raises:
            ConfigError: they differ.
        """
        if self.tokenize([local.prompts[0]], [0])[0] != list(local.prompt_ids[0]):
            raise ConfigError(
                "The prompt ids that were sampled from are not what the prompt renders to (a rollout_func that "
                "builds its own prompts?).",
                "Pass teacher_prompt_fn=(prompt, demonstration, verified) -> prompt to SCGRPOTrainer, and prompts "
                "that render to the sampled ids.",
            )


def kinds_of(plan: Plan) -> list[str]:
    """For each pair, what its two contexts are: each kind is scored in forwards of its own."""
    return [
        "contrasted" if contrasted else "alone" if alone else "plain"
        for alone, contrasted in zip(plan.alone.tolist(), plan.contrasted.tolist(), strict=True)
    ]


def merged(parts: Sequence[tuple[list[int], Evidence]], count: int) -> Evidence:
    """Evidence of `count` pairs from parts of them, each with the places its pairs stand at."""
    if len(parts) == 1:
        return parts[0][1]
    fields = [torch.stack([e.token_kl, e.teacher_logps, e.student_logps, e.student_entropy]) for _, e in parts]
    whole = fields[0].new_zeros(4, count, fields[0].shape[2])
    for (at, _), values in zip(parts, fields, strict=True):
        whole[:, at] = values.to(whole.dtype)
    return Evidence(*whole)
