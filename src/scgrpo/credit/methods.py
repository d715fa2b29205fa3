"""The seam between a credit method and the host that trains.

    plan     = method.plan(groups, rng)                # which (rollout, demonstration) pairs to re-score
    evidence = host.score(plan)                        # what the model says about those tokens, with and without
    credit   = method.assign(groups, plan, evidence)   # per-token advantages

A method sees tensors of the *whole* generation batch, of all processes, and nothing of tokenizers, files or
frameworks. A new method is one short file with a frozen dataclass and a `@register_credit_method("name")`.
"""

from __future__ import annotations

import dataclasses
import difflib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scgrpo.errors import ConfigError, NonFiniteError, ShapeError

NONE = -1  # in a plan: nothing is put in this context


@dataclass(frozen=True)
class Groups:
    """One generation batch: B rollouts, padded to T completion tokens, of all processes.

    Attributes:
        group: (B,) id of the prompt a rollout answers; rollouts of one group may stand anywhere in the batch.
        solved: (B,) verified as correct; False where `graded` is False.
        graded: (B,) the verifier gave a verdict. An ungraded rollout is neither solved nor failed: it is never
            scored, never a demonstration, and not counted in `n_c` or `G`.
        truncated: (B,) cut off at the length limit; never used as a demonstration.
        lengths: (B,) completion length in tokens, tool output included.
        mask: (B, T) True where the policy produced the token and the loss counts it.
        advantages: (B,) the host's group advantages A_i.
        micro_batch: (B,) id of the micro-batch a rollout will be trained in; only `scope="micro_batch"` reads it.
        step: optimizer steps done when the batch was sampled; schedules read it.
        completion_ids: (B, T) sampled tokens, for methods that compare rollouts; None where the host does not tell.
        first_error: (B,) position of the first wrong token of a failed rollout, -1 where there is none or it is not
            known; None where nobody looks for it.
        past: (Q,) group each of Q earlier solutions belongs to; in a plan they have the row numbers B, B + 1, ...;
            None where the host keeps none.
    """

    group: Int[Tensor, " b"]
    solved: Bool[Tensor, " b"]
    graded: Bool[Tensor, " b"]
    truncated: Bool[Tensor, " b"]
    lengths: Int[Tensor, " b"]
    mask: Bool[Tensor, "b t"]
    advantages: Float[Tensor, " b"]
    micro_batch: Int[Tensor, " b"]
    step: int = 0
    completion_ids: Int[Tensor, "b t"] | None = None
    first_error: Int[Tensor, " b"] | None = None
    past: Int[Tensor, " q"] | None = None

    def __post_init__(self) -> None:
        rows = self.mask.shape[0]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "past" and isinstance(value, Tensor) and value.shape[0] != rows:
                raise ShapeError(
                    f"Groups.{field.name} has {value.shape[0]} rows, the mask has {rows}.",
                    "Every field describes the same rollouts, one row each.",
                )
        sizes = torch.unique(self.group, return_counts=True)
        if rows and int(sizes[1].min()) < 2:
            lonely = int(sizes[0][sizes[1].argmin()])
            raise ShapeError(
                f"Group {lonely} has a single rollout.", "A group needs at least 2: set num_generations >= 2."
            )
        check_finite("advantages", self.advantages)
        if bool((self.solved & ~self.graded).any()):
            raise ShapeError("A rollout without a verdict is marked as solved.", "Set solved = solved & graded.")

    @property
    def usable(self) -> Bool[Tensor, " b"]:
        """(B,) rollouts that can serve as a demonstration: graded, complete, and with tokens to show."""
        return self.graded & ~self.truncated & (self.lengths > 0)

    @property
    def scorable(self) -> Bool[Tensor, " b"]:
        """(B,) rollouts the loss counts at least one token of."""
        return self.graded & self.mask.any(dim=1)


@dataclass(frozen=True)
class Plan:
    """P pairs to score: `rollout[p]` is re-scored with `demonstration[p]` in the teacher's context.

    A rollout may have several pairs, and a demonstration may answer another prompt.

    Attributes:
        rollout: (P,) row numbers in the generation batch.
        demonstration: (P,) row numbers, or `NONE`: the teacher's context is then the prompt alone, as the student's.
        verified: (P,) the demonstration is a verified solution; otherwise the teacher prompt must not claim so.
        contrast: (P,) what stands in the *student's* context, in the same wording: row numbers, or `NONE` (as
            everywhere if there is no `contrast`). Both contexts of such a pair are read by the teacher's weights, so
            `token_kl`, `teacher_logps` and `student_logps` compare two teachers.
    """

    rollout: Int[Tensor, " p"]
    demonstration: Int[Tensor, " p"]
    verified: Bool[Tensor, " p"]
    contrast: Int[Tensor, " p"] | None = None

    def __post_init__(self) -> None:
        counts = [len(self.rollout), len(self.demonstration), len(self.verified)]
        if any(count != counts[0] for count in [*counts, *([] if self.contrast is None else [len(self.contrast)])]):
            raise ShapeError(
                f"A plan of {counts[0]} rollouts, {counts[1]} demonstrations and {counts[2]} flags"
                + ("." if self.contrast is None else f", {len(self.contrast)} contrasts."),
                "Give one of each per pair.",
            )

    def __len__(self) -> int:
        return int(self.rollout.shape[0])

    @property
    def contrasted(self) -> Bool[Tensor, " p"]:
        """(P,) pairs with something in the student's context."""
        return torch.zeros_like(self.verified) if self.contrast is None else self.contrast != NONE

    @property
    def alone(self) -> Bool[Tensor, " p"]:
        """(P,) pairs with nothing in either context: only weights other than the policy's make a teacher."""
        return (self.demonstration == NONE) & ~self.contrasted

    @property
    def single(self) -> bool:
        """Each rollout has at most one pair, and its student is the policy itself."""
        return len(self.rollout.unique()) == len(self) and not bool(self.contrasted.any())


@dataclass(frozen=True)
class Evidence:
    """What the model says about the completion tokens of each pair of a plan; 0 where the mask is False.

    Attributes:
        token_kl: (P, T) nats, `KL(teacher || student)` over the whole vocabulary; 0 for a pair that is `alone` where
            the teacher's weights are the policy's.
        teacher_logps, student_logps: (P, T) nats, log-probability of the sampled token.
        student_entropy: (P, T) nats.
    """

    token_kl: Float[Tensor, "p t"]
    teacher_logps: Float[Tensor, "p t"]
    student_logps: Float[Tensor, "p t"]
    student_entropy: Float[Tensor, "p t"]


@dataclass(frozen=True)
class Credit:
    """What the loss gets.

    Attributes:
        base: (B,) advantage of each rollout before weighting: the host's, or a method's own.
        advantages: (B, T) per-token advantages.
        weights: (B, T) credit weights; exactly 1 for rollouts the method leaves alone.
        route: (B,) `scgrpo.credit.routing.Route` of each rollout's group.
        metrics: name -> value, logged by the host as `credit/<name>`.
    """

    base: Float[Tensor, " b"]
    advantages: Float[Tensor, "b t"]
    weights: Float[Tensor, "b t"]
    route: Int[Tensor, " b"]
    metrics: Mapping[str, float]


@runtime_checkable
class CreditMethod(Protocol):
    """A credit method. Instances are immutable; all randomness of a plan comes from `rng`.

    A method may state what it needs, so that a host can refuse at the start what cannot work, as class attributes:
    `teachers`, the `teacher_weights` it makes sense with; `needs_first_error`, if it reads `Groups.first_error`;
    `needs_past`, if it reads `Groups.past`.
    """

    def plan(self, groups: Groups, rng: random.Random) -> Plan:
        """Pairs to score; an empty plan leaves the host's advantages untouched."""
        ...

    def assign(self, groups: Groups, plan: Plan, evidence: Evidence) -> Credit:
        """Per-token advantages from the evidence."""
        ...


_METHODS: dict[str, type] = {}
_M = TypeVar("_M", bound=type)


def register_credit_method(name: str) -> Callable[[_M], _M]:
    """Class decorator that makes a credit method available as `SCGRPOConfig(credit=name)`."""

    def register(cls: _M) -> _M:
        if not dataclasses.is_dataclass(cls):
            raise ConfigError(
                f"{cls.__name__} is not a dataclass.", "Put @dataclass(frozen=True) under the decorator."
            )
        known = _METHODS.get(name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(f"A credit method named {name!r} is registered already.", "Choose another name.")
        _METHODS[name] = cls  # the same class again: a notebook cell that was run twice
        return cls

    return register


def credit_method_names() -> list[str]:
    """Registered names, sorted."""
    return sorted(_METHODS)


def create_credit_method(name: str, options: Mapping[str, Any]) -> CreditMethod:
    """Build a registered method from those `options` that are fields of its dataclass; others, and None, are ignored.

    Raises:
        ConfigError: unknown name (the nearest one is named), or a value the method refuses.
    """
    if name not in _METHODS:
        near = difflib.get_close_matches(name, _METHODS, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"Unknown credit method {name!r}.", f"{hint}Known: {', '.join(credit_method_names())}.")
    cls = _METHODS[name]
    accepted = {field.name for field in dataclasses.fields(cls)}
    return cls(**{key: value for key, value in options.items() if key in accepted and value is not None})


def check_teacher(method: CreditMethod, name: str, teacher_weights: str) -> None:
    """Raise ConfigError if a method cannot work with this teacher."""
    known: tuple[str, ...] = getattr(method, "teachers", (teacher_weights,))
    if teacher_weights not in known:
        raise ConfigError(
            f"Credit method {name!r} needs a teacher that lags behind the policy; teacher_weights is "
            f"{teacher_weights!r}.",
            f"Set teacher_weights to one of {', '.join(known)}.",
        )


def of_rollouts(what: str, values: Float[Tensor, "p w"], groups: Groups, plan: Plan) -> Float[Tensor, "b t"]:
    """Evidence of pairs (P, T), detached, as rows of their rollouts (B, T); 0 for rollouts without a pair.

    Raises:
        ShapeError: it is not one row of T values per pair of the plan.
        NonFiniteError: NaN or infinity; names the rollout's row and the position.
    """
    rows = torch.zeros_like(groups.mask, dtype=values.dtype)
    if values.shape != (len(plan), rows.shape[1]):
        raise ShapeError(
            f"{what} of shape {tuple(values.shape)} for {len(plan)} pairs of {rows.shape[1]} tokens.",
            "The host returns one row of evidence per pair, padded like the mask.",
        )
    rows[plan.rollout] = values.detach()
    check_finite(what, rows)
    return rows


def stack_pairs(
    what: str, values: Float[Tensor, "p w"], groups: Groups, plan: Plan
) -> tuple[Float[Tensor, "b k t"], Bool[Tensor, "b k"]]:
    """Evidence of plans with up to K pairs per rollout: (B, K, T), detached, in the plan's order, and which of the K
    there are. Raises as `of_rollouts`."""
    at = torch.zeros_like(plan.rollout)
    for row in plan.rollout.unique():
        mine = plan.rollout == row
        at[mine] = torch.arange(int(mine.sum()), device=at.device)
    most = int(at.max()) + 1 if len(plan) else 0
    rows, width = groups.mask.shape
    stacked = values.new_zeros(rows, most, width)
    there = torch.zeros(rows, most, dtype=torch.bool, device=values.device)
    for k in range(most):
        kth = at == k
        chosen = Plan(plan.rollout[kth], plan.demonstration[kth], plan.verified[kth])
        stacked[:, k] = of_rollouts(what, values[kth], groups, chosen)
        there[chosen.rollout, k] = True
    return stacked, there


def check_finite(what: str, values: Float[Tensor, "*shape"]) -> None:
    """Raise NonFiniteError naming the first offending row (and position) unless every value is finite."""
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        where = bad.nonzero()[0].tolist()
        place = f"row {where[0]}" + (f", position {where[1]}" if len(where) > 1 else "")
        raise NonFiniteError(
            f"{what} is {values[tuple(where)].item()} at {place} ({int(bad.sum())} of {values.numel()} values).",
            "Nothing was trained on it. Look at that rollout; lower the learning rate, use bf16 or fp32 instead of "
            "fp16, or fix the reward that produced it.",
        )
