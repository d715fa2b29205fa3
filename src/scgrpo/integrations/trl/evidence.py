"""Evidence of a plan, whichever process sampled the rollouts: scored where they are, then shared with all."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object

from scgrpo.credit import NONE, Evidence, Plan
from scgrpo.integrations.trl.batch import share_evidence
from scgrpo.integrations.trl.conditioning import Conditioned, Conditioner, LocalRollouts
from scgrpo.teacher.prompts import Demonstration, demonstration_counts


@dataclass
class EvidenceOfAll:
    """Called by every process with the same plan; returns the same evidence on all.

    Attributes:
        condition: the conditioned pass on this process's rollouts.
        log: takes metrics by name, without their prefix.
        floor: smallest threshold c the credit method may use (nats), if it has one.
    """

    accelerator: Accelerator
    condition: Conditioner
    log: Callable[[dict[str, float]], None]
    floor: float | None
    probed: bool = False

    def __call__(
        self, plan: Plan, local: LocalRollouts, completions: Sequence[Any], width: int, past: Sequence[Any] = ()
    ) -> tuple[Conditioned | None, Evidence]:
        """Args: `completions` of this process, in the order of `local`; `width`: tokens of the longest of all;
        `past`: completions of earlier batches, with the row numbers after those of this batch."""
        if not len(plan):
            return None, Evidence(*torch.zeros(4, 0, width, device=self.accelerator.device))
        start = time.perf_counter()
        if not self.probed and not bool(plan.alone.all()):  # it is about demonstrations
            self.probe(local)
        # A demonstration may have been sampled by another process, or earlier.
        completions = [*everywhere(self.accelerator, completions), *past]
        conditioned = self.condition(plan, local, completions, self.agreed_forwards)
        evidence = share_evidence(self.accelerator, conditioned.evidence, conditioned.pairs, len(plan), width)
        used = [int(plan.demonstration[pair]) for pair in conditioned.pairs]
        shown = [conditioned.demonstrations[row] for row in used if row != NONE]
        self.log({"teacher_pass_s": time.perf_counter() - start, **self.demonstration_shares(shown)})
        return conditioned, evidence

    def probe(self, local: LocalRollouts) -> None:
        """Once, at the start: do prompts render as sampled, and how large is D between identical contexts?"""
        self.probed = True
        self.condition.check_prompts(local)
        noise = self.condition.noise_floor(local)
        if noise is None:
            return
        self.log({"noise_floor": noise})
        if self.floor is not None and self.floor < 5 * noise:
            warnings.warn(
                f"token_kl between identical contexts is {noise:.1e} nats here, and the threshold may fall to "
                f"credit_floor={self.floor:.1e}: rounding noise would get weight. Set credit_floor to at least "
                f"{5 * noise:.1e}.",
                stacklevel=2,
            )

    def demonstration_shares(self, shown: Sequence[Demonstration]) -> dict[str, float]:
        """Shares of the demonstrations shown (one per pair that has one) by all processes."""
        counts = demonstration_counts(shown)
        local = torch.tensor([*counts.values(), len(shown)], dtype=torch.float32, device=self.accelerator.device)
        *totals, number = self.accelerator.reduce(local, reduction="sum").tolist()
        return {f"{name}_frac": total / max(1, number) for name, total in zip(counts, totals, strict=True)}

    def agreed_forwards(self, mine: int) -> int | None:
        """Processes that share sharded weights must run the same number of forwards, or they wait for ever."""
        if not shares_weights(self.accelerator):
            return None
        return int(self.accelerator.gather(torch.tensor([mine], device=self.accelerator.device)).max())


def everywhere(accelerator: Accelerator, values: Sequence[Any]) -> list[Any]:
    """The values of all processes, in gathered order."""
    return gather_object(list(values)) if accelerator.num_processes > 1 else list(values)


def shares_weights(accelerator: Accelerator) -> bool:
    """Whether each process holds a part of the weights, so that a forward needs all of them (FSDP, ZeRO-3)."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return bool(accelerator.state.deepspeed_plugin.zero_stage == 3)
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def offloads_weights(accelerator: Accelerator) -> bool:
    """Whether ZeRO-3 keeps its parts of the weights elsewhere than on the device."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return False
    settings = accelerator.state.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
    return bool((settings.get("offload_param") or {}).get("device", "none") != "none")


def all_agree(accelerator: Accelerator, verdict: bool) -> bool:
    """True if it is True on every process."""
    return bool(accelerator.gather(torch.tensor([verdict], device=accelerator.device)).all())
