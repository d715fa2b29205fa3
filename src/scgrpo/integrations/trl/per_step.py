"""Rollouts whose turns have prompts of their own: one row on TRL's books, as many sequences for the model.

    row of the batch     prompt of turn 1 | action 1, action 2, ..., action S
    sequences            prompt of turn s | action s                              s = 1 ... S

Rewards, groups, advantages and the loss's mean are those of rollouts, so every token of a rollout has its advantage;
only what the model is asked, log-probs and the conditioned pass, is asked turn by turn and put back in place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from scgrpo.credit import Evidence, Plan
from scgrpo.errors import ConfigError
from scgrpo.integrations.trl.conditioning import Conditioned, Conditioner, LocalRollouts, kinds_of
from scgrpo.tasks.environment import Episode

# Columns of a generation batch, cut and shuffled with its rows. (They start as those of prompts do: what is cut to
# the longest completion leaves them alone.)
_CONTEXTS, _STARTS = "prompt_contexts", "prompt_turns"
_NOTHING = -1


def columns(episodes: Sequence[Episode], device: torch.device) -> dict[str, Tensor]:
    """Token ids of the turns' prompts (B, S, P) and the place of each turn's first token (B, S); -1 where there is
    nothing. Empty for conversations."""
    if not any(episode.contexts for episode in episodes):
        return {}
    width = max(len(context.ids) for episode in episodes for context in episode.contexts)
    turns = max(len(episode.contexts) for episode in episodes)
    contexts = torch.full((len(episodes), turns, width), _NOTHING)
    starts = torch.full((len(episodes), turns), _NOTHING)
    for row, episode in enumerate(episodes):
        for turn, (context, start) in enumerate(zip(episode.contexts, episode.turns, strict=True)):
            contexts[row, turn, width - len(context.ids) :] = torch.tensor(context.ids)  # as TRL pads prompts
            starts[row, turn] = start
    return {_CONTEXTS: contexts.to(device), _STARTS: starts.to(device)}


def of(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The columns of a batch; empty if it has none."""
    return {name: batch[name] for name in (_CONTEXTS, _STARTS) if name in batch}


@dataclass(frozen=True)
class Turns:
    """N turns with at least one token, cut out of the completions of B rollouts.

    Attributes:
        row: (N,) the rollout of each.
        source: (N, A) place of each token in its completion; 0 where `present` is False.
        present: (N, A).
    """

    row: Int[Tensor, " n"]
    source: Int[Tensor, "n a"]
    present: Bool[Tensor, "n a"]

    @classmethod
    def cut(cls, starts: Int[Tensor, "b s"], lengths: Int[Tensor, " b"]) -> tuple[Turns, Bool[Tensor, "b s"]]:
        """Turns that start at the given places (-1: none) and reach to the next one, or to the end of the completion;
        and which of them there are."""
        ends = torch.cat([starts[:, 1:], torch.full_like(starts[:, :1], _NOTHING)], dim=1)
        ends = torch.where(ends == _NOTHING, lengths[:, None], ends)
        ends = torch.minimum(ends, lengths[:, None])
        there = (starts != _NOTHING) & (ends > starts)
        row = there.nonzero()[:, 0]
        first, length = starts[there], (ends - starts)[there]
        offset = torch.arange(int(length.max()) if len(length) else 0, device=starts.device)
        present = offset < length[:, None]
        return cls(row, torch.where(present, first[:, None] + offset, 0), present), there

    def take(self, values: Tensor) -> Tensor:
        """(N, A) from (B, T); 0 where nothing is present."""
        return values[self.row[:, None], self.source].masked_fill(~self.present, 0)

    def put(self, values: Tensor, rows: Tensor, shape: tuple[int, int]) -> Tensor:
        """Back in place, with gradients: (N, A) -> `shape`, turn n in line `rows[n]`; 0 elsewhere."""
        lines = rows[:, None].expand_as(self.source)[self.present]
        return values.new_zeros(shape).index_put((lines, self.source[self.present]), values[self.present])


def logps(
    compute: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]],
    of_turns: Mapping[str, Tensor],
    input_ids: Int[Tensor, "b s"],
    attention_mask: Int[Tensor, "b s"],
    logits_to_keep: int,
    batch_size: int | None = None,
    *,
    agreed_forwards: Callable[[int], int | None] = lambda mine: None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """TRL's log-probs and entropies (B, T), each turn's under its own prompt.

    Args:
        compute: TRL's `(input_ids, attention_mask, logits_to_keep, batch_size, **kwargs)`, sequences at a time.
        of_turns: the batch's `columns`, its rows in the order of the inputs.
        agreed_forwards: number of forwards -> how many there must be, where processes share weights: rollouts have
            different numbers of turns, and a forward, like its backward, needs every process.
    """
    completion, mask = input_ids[:, -logits_to_keep:], attention_mask[:, -logits_to_keep:]
    turns, there = Turns.cut(of_turns[_STARTS], mask.sum(dim=1))
    contexts = of_turns[_CONTEXTS][there]
    sequences = torch.cat([contexts.clamp(min=0), turns.take(completion)], dim=1)
    seen = torch.cat([contexts != _NOTHING, turns.present], dim=1).to(attention_mask.dtype)
    count, at_once = len(sequences), batch_size or len(input_ids)
    rows, width = _filled(count, at_once, agreed_forwards), turns.source.shape[1]
    per_turn, entropies, aux_loss = compute(sequences[rows], seen[rows], width, at_once, **kwargs)
    # In the graph, so that there are as many backwards, but without a share in any gradient.
    per_turn = per_turn[:count] + 0 * per_turn[count:].sum()
    entropies = None if entropies is None else entropies[:count]
    back = [
        None if x is None else turns.put(x, turns.row, (len(completion), logits_to_keep))
        for x in (per_turn, entropies)
    ]
    assert back[0] is not None
    return back[0], back[1], aux_loss


def _filled(count: int, at_once: int, agreed_forwards: Callable[[int], int | None]) -> list[int]:
    """Numbers of the rows, and of copies of the last one, for as many forwards as the processes agree on."""
    own = math.ceil(count / at_once)
    agreed = agreed_forwards(own) or own
    return [*range(count), *[count - 1] * max(0, (agreed - 1) * at_once + 1 - count)]


class TurnConditioner(Conditioner):
    """A conditioner whose teacher reads each turn under that turn's prompt with the demonstration."""

    def __call__(
        self,
        plan: Plan,
        local: LocalRollouts,
        completions: Sequence[Any],
        num_forwards: Callable[[int], int | None],
        kinds_of_all: Collection[str] = (),
    ) -> Conditioned:
        if local.episodes is None:
            return super().__call__(plan, local, completions, num_forwards, kinds_of_all)
        rollout, rows = plan.rollout.tolist(), len(local.prompts)
        mine = [pair for pair, row in enumerate(rollout) if local.first <= row < local.first + rows]
        starts = columns(local.episodes, plan.rollout.device)[_STARTS]
        turns, there = Turns.cut(starts, local.lengths)
        numbers = torch.full_like(starts, _NOTHING)
        numbers[there] = torch.arange(len(turns.row), device=starts.device)
        # One pair per turn of a pair's rollout.
        pair_rows = torch.tensor([rollout[pair] - local.first for pair in mine], dtype=torch.long)
        place, at = (numbers[pair_rows.to(numbers.device)] != _NOTHING).nonzero(as_tuple=True)
        turn = numbers[pair_rows.to(numbers.device)][place, at]
        source = torch.tensor(mine, dtype=torch.long, device=plan.rollout.device)[place]
        each = Plan(
            rollout=turn,
            demonstration=plan.demonstration[source],
            verified=plan.verified[source],
            contrast=None if plan.contrast is None else plan.contrast[source],
        )
        rollouts = self._as_rollouts(local, turns, there)
        found = super().__call__(each, rollouts, completions, num_forwards, kinds_of(plan))
        shape = (len(mine), local.completion_ids.shape[1])
        chosen = Turns(place, turns.source[turn], turns.present[turn])
        fields = (getattr(found.evidence, field.name) for field in dataclasses.fields(Evidence))
        evidence = Evidence(*(chosen.put(values[:, : chosen.source.shape[1]], place, shape) for values in fields))
        first = {mine[where]: index for index, where in reversed(list(enumerate(place.tolist())))}
        shown = {pair: found.teacher_prompt_ids[index] for pair, index in first.items()}
        return Conditioned(mine, evidence, found.demonstrations, shown)

    @staticmethod
    def _as_rollouts(local: LocalRollouts, turns: Turns, there: Bool[Tensor, "b s"]) -> LocalRollouts:
        """The turns as if each were a rollout of its own."""
        assert local.episodes is not None
        contexts = [local.episodes[row].contexts[turn] for row, turn in there.nonzero().tolist()]
        return LocalRollouts(
            first=0,
            prompts=[context.messages for context in contexts],
            prompt_ids=[context.ids for context in contexts],
            completion_ids=turns.take(local.completion_ids),
            lengths=turns.present.sum(dim=1),
            mask=turns.take(local.mask),
            hidden=None,
        )


def check(trainer: Any) -> None:
    """Raise ConfigError, with all problems at once, for settings that cannot work with a prompt per step."""
    args = trainer.args
    problems = []
    if args.distills:
        problems.append("distill_coef needs rollouts that are one sequence.")
    if args.use_liger_kernel:
        problems.append("use_liger_kernel scores whole rows: set it to False.")
    if args.dynamic_sampling_max_rounds:
        problems.append("dynamic_sampling_max_rounds cannot refill batches whose turns have prompts of their own.")
    if args.teacher_timing == "loss":
        problems.append("teacher_timing='loss' scores with the loss's forward over whole rows: leave it at 'auto'.")
    if problems:
        raise ConfigError("A prompt per step cannot work with:", " | ".join(problems))
