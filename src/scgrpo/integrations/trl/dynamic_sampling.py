"""Dynamic sampling (DAPO, arXiv 2503.14476, eq. 11): groups that teach nothing are replaced before the update.

A group is degenerate when all its rollouts are solved or none is, or when its advantages are all 0. While there are
any, further prompts are sampled and the groups that came out mixed take the places of degenerate ones. Everything is
decided on rewards that all processes have, so that these stay in step. Differences from the paper:
1. it stops after `max_rounds`; what is degenerate then stays in the batch with advantage 0, and its tokens count in
   the denominators of the loss;
2. a round samples a whole generation batch (TRL knows no smaller one), and what is not needed of it is dropped;
3. its prompts come in an order of their own over the training set, beside the dataloader's, which moves on as ever
   (so a prompt can come up again within an epoch);
4. a group stays on its process; where groups straddle processes, one replaces the one at its own place only.

TRL's own metrics get one entry per batch sampled: with a refill, `reward`, `completions/...`, `num_tokens` and the
like are about everything sampled; `sampling/...` says what was replaced, and the table of completions shows what is
trained on.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scgrpo.errors import IncompatibleHostError
from scgrpo.integrations.rollouts import Rollouts

Batch = dict[str, Any]
# Dataset rows of this process -> its part of a scored generation batch.
Sample = Callable[[list[dict[str, Any]]], tuple[Batch, Rollouts]]


@dataclass
class ExtraPrompts:
    """Training rows beside those of the dataloader, without end, the same on every process.

    The order is named by seed and pass over the data: its whole state is the number of rows drawn.
    """

    dataset: Any
    seed: int
    drawn: int = 0
    _order: tuple[int, list[int]] = field(default=(-1, []), repr=False)

    def take(self, number: int) -> list[Mapping[str, Any]]:
        rows = [self.dataset[self._index(place)] for place in range(self.drawn, self.drawn + number)]
        self.drawn += number
        return rows

    def _index(self, place: int) -> int:
        number, within = divmod(place, len(self.dataset))
        if self._order[0] != number:
            order = list(range(len(self.dataset)))
            random.Random(f"scgrpo/extra/{self.seed}/{number}").shuffle(order)
            self._order = (number, order)
        return self._order[1][within]


def degenerate_groups(
    verdict: Float[Tensor, " n"], advantages: Float[Tensor, " n"], group_size: int, threshold: float
) -> Bool[Tensor, " g"]:
    """(N/G,) groups without both a solved and a failed rollout, or without any advantage.

    Args:
        verdict: success reward, NaN = none; a group without any verdict is judged by its advantages alone.
    """
    verdict, advantages = verdict.view(-1, group_size), advantages.view(-1, group_size)
    mixed = (verdict >= threshold).any(dim=1) & (verdict < threshold).any(dim=1)
    return ~advantages.ne(0).any(dim=1) | (~mixed & ~verdict.isnan().all(dim=1))


def replacements(
    degenerate: Bool[Tensor, " g"], fresh_degenerate: Bool[Tensor, " g"], parts: int
) -> Int[Tensor, " g"]:
    """(G,) number of the fresh group that takes each group's place, -1 = it stays. Groups do not leave their part.

    Args:
        parts: equal stretches of the batch.
    """
    source = torch.full_like(degenerate, -1, dtype=torch.long)
    for part in torch.arange(len(degenerate), device=degenerate.device).view(parts, -1):
        free, good = part[degenerate[part]], part[~fresh_degenerate[part]]
        number = min(len(free), len(good))
        source[free[:number]] = good[:number]
    return source


def with_rows(old: Batch, new: Batch, source: Int[Tensor, " b"], pad_token_id: int) -> Batch:
    """TRL's batch `old` with row `source[b]` of `new` in place of row b, where `source[b] >= 0`.

    Prompts are padded on the left, everything else on the right, to the longer of the two. Scalars stay `old`'s.

    Raises:
        IncompatibleHostError: an entry that has no row per rollout.
    """
    pads = {
        "prompt_ids": pad_token_id,
        "completion_ids": pad_token_id,
        "tool_mask": 1,
        "importance_sampling_ratio": 1,
    }
    if old.keys() != new.keys():
        raise IncompatibleHostError(
            f"Two batches of TRL hold different entries: {sorted(old.keys() ^ new.keys())}.",
            "Set dynamic_sampling_max_rounds=0.",
        )
    merged = {}
    for name, mine in old.items():
        if not isinstance(mine, Tensor) or (mine.dim() and len(mine) != len(source)):
            raise IncompatibleHostError(
                f"TRL's batch holds {name!r}, which has no row per rollout.", "Set dynamic_sampling_max_rounds=0."
            )
        merged[name] = mine if mine.dim() == 0 else _rows(name, mine, new[name], source, pads.get(name, 0))
    return merged


def _rows(name: str, mine: Tensor, theirs: Tensor, source: Tensor, pad: int) -> Tensor:
    if mine.dim() > 1:
        width = max(mine.shape[1], theirs.shape[1])
        mine, theirs = (
            torch.nn.functional.pad(t, (missing, 0) if name.startswith("prompt") else (0, missing), value=pad)
            for t, missing in ((t, width - t.shape[1]) for t in (mine, theirs))
        )
    taken = (source >= 0).view(-1, *[1] * (mine.dim() - 1))
    return torch.where(taken, theirs[source.clamp(min=0)], mine)


def merged_list(old: Sequence[Any], new: Sequence[Any], source: Sequence[int]) -> list[Any]:
    """`new[source[i]]` in place of `old[i]`, where `source[i] >= 0`."""
    return [new[s] if s >= 0 else mine for mine, s in zip(old, source, strict=True)]


@dataclass
class DynamicSampling:
    """Refills generation batches.

    Attributes:
        sample: samples and grades rows; called by every process at the same time.
        success: column of the reward that says what is solved.
        table: the columns of TRL's table of completions, of the batch sampled last.
        log: takes metrics by name, without their prefix.
    """

    accelerator: Accelerator
    prompts: ExtraPrompts
    sample: Sample
    num_generations: int
    success: int
    success_threshold: float
    max_rounds: int
    pad_token_id: int
    table: Callable[[], dict[str, deque[Any]]]
    log: Callable[[dict[str, float]], None]

    def refill(self, batch: Batch, rollouts: Rollouts) -> tuple[Batch, Rollouts]:
        """The batch with mixed groups in place of degenerate ones, as far as `max_rounds` reach."""
        size, rows = self.num_generations, len(rollouts.prompts)
        first = self.accelerator.process_index * rows
        degenerate = at_first = self._degenerate(batch, rollouts)
        parts = len(degenerate) if rows % size else self.accelerator.num_processes
        table = {name: list(column) for name, column in self.table().items()}
        rounds = tokens = 0
        while bool(degenerate.any()) and rounds < self.max_rounds:
            rounds += 1
            prompts = self.prompts.take(len(degenerate))
            fresh, graded = self.sample([dict(prompts[(first + row) // size]) for row in range(rows)])
            tokens += sum(len(ids) for ids in graded.completion_ids)
            groups = replacements(degenerate, self._degenerate(fresh, graded), parts)
            within = torch.arange(size, device=groups.device)
            source = torch.where(groups[:, None] >= 0, groups[:, None] * size + within, -1).flatten()
            mine = source[first : first + rows]
            mine = torch.where(mine >= 0, mine - first, -1)
            batch = with_rows(batch, fresh, mine, self.pad_token_id)
            rollouts = _merged_rollouts(rollouts, graded, mine, source)
            self._merge_table(table, source.tolist())
            degenerate = degenerate & (groups < 0)
        if rounds:
            mask = batch["completion_mask"] * batch.get("tool_mask", 1)
            batch["num_items_in_batch"] = self.accelerator.gather(mask.sum()).sum()
        if bool(degenerate.any()):
            kept = ~degenerate.repeat_interleave(size)[first : first + rows]
            batch["advantages"] = batch["advantages"] * kept
        self._log(at_first, degenerate, rounds, tokens)
        return batch, rollouts

    def _degenerate(self, batch: Batch, rollouts: Rollouts) -> Bool[Tensor, " g"]:
        advantages = self.accelerator.gather(batch["advantages"])
        verdict = rollouts.rewards[:, self.success]
        return degenerate_groups(verdict, advantages, self.num_generations, self.success_threshold)

    def _merge_table(self, table: dict[str, list[Any]], source: Sequence[int]) -> None:
        for name, column in self.table().items():
            if len(table.get(name, ())) == len(column) == len(source):
                table[name] = merged_list(table[name], list(column), source)
                column.extend(table[name])  # it is as long as a batch: what was in it moves out

    def _log(self, at_first: Tensor, left: Tensor, rounds: int, tokens: int) -> None:
        extra = self.accelerator.reduce(torch.tensor(tokens, device=self.accelerator.device), reduction="sum")
        self.log(
            {
                "rounds": float(rounds),
                "degenerate_frac": at_first.float().mean().item(),
                "refilled_frac": (at_first & ~left).float().mean().item(),
                "left_degenerate_frac": left.float().mean().item(),
                "num_extra_tokens": float(extra),
            }
        )


def _merged_rollouts(old: Rollouts, new: Rollouts, mine: Tensor, source: Tensor) -> Rollouts:
    """Lists are of this process (rows `mine`), rewards of all (rows `source`)."""
    lists = ("inputs", "prompts", "completions", "completion_ids", "environments", "first_error")
    local = mine.tolist()
    return replace(
        old,
        **{
            name: merged_list(getattr(old, name), getattr(new, name), local)
            for name in lists
            if getattr(old, name) is not None
        },
        rewards=torch.where((source >= 0)[:, None], new.rewards[source.clamp(min=0)], old.rewards),
        refilled=True,
    )
