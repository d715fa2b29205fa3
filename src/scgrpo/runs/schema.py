"""What one record of a run directory holds."""

from __future__ import annotations

from dataclasses import dataclass

from scgrpo.errors import RunError, ShapeError

SCHEMA_VERSION = 1

_PER_TOKEN = ("token_ids", "is_special", "mask", "token_kl", "credit_weights", "student_logps", "teacher_logps")


def check_version(version: object, where: str) -> None:
    """Refuse records of another schema.

    Raises:
        RunError: `version` is no version at all, or newer than this package.
    """
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RunError(f"{where} has schema_version {version!r}.", "It was not written by scgrpo, or it is damaged.")
    if version > SCHEMA_VERSION:
        raise RunError(
            f"{where} has schema_version {version}; this scgrpo reads up to {SCHEMA_VERSION}.",
            "Upgrade scgrpo to read this run.",
        )


@dataclass(frozen=True)
class RolloutRow:
    """One rollout as it was trained on.

    Lists are per completion token, all of one length T. `None` in their place: the rollout was not scored under a
    demonstration (its weights are then 1).

    Attributes:
        step: optimizer steps done when it was sampled.
        group, rollout: number of its group in the generation batch, and its own number within the group.
        problem_id: the task's id of the problem.
        prompt: rendered prompt, as text.
        completion: what the policy wrote (and tools answered), as text.
        tokens, token_ids: text and id of each completion token.
        is_special: special tokens of the tokenizer.
        mask: True where the policy produced the token, False for tool output.
        rewards: by reward function; None = no verdict.
        solved: None = no verdict.
        status, detail: how the verification ended (graded, error, timeout), and what it said.
        route: partial, none_solved or fallback.
        demonstration: `rollout` number of the rollout shown to the teacher; None if it is of another prompt or
            batch, or there is none.
        demonstration_text: what the teacher was shown of it.
        teacher_prompt: rendered prompt of the conditioned pass.
        demonstration_truncated: it did not fit its token budget.
        advantage: of the whole rollout, before weights: the host's group advantage, or the credit method's own.
        token_kl: D, nats.
        credit_weights: factors of the advantage.
        student_logps, teacher_logps: log-probability of the token without and with the demonstration, nats.

    Raises:
        ShapeError: lists of different lengths.
    """

    step: int
    group: int
    rollout: int
    problem_id: str
    prompt: str
    completion: str
    tokens: list[str]
    token_ids: list[int]
    is_special: list[bool]
    mask: list[bool]
    rewards: dict[str, float | None]
    solved: bool | None
    status: str
    detail: str
    route: str
    demonstration: int | None
    demonstration_text: str | None
    teacher_prompt: str | None
    demonstration_truncated: bool
    advantage: float
    token_kl: list[float] | None
    credit_weights: list[float]
    student_logps: list[float] | None
    teacher_logps: list[float] | None

    def __post_init__(self) -> None:
        for name in _PER_TOKEN:
            values = getattr(self, name)
            if values is not None and len(values) != len(self.tokens):
                raise ShapeError(
                    f"Rollout {self.rollout} of group {self.group}, step {self.step}: {name} has {len(values)} "
                    f"entries for {len(self.tokens)} tokens.",
                    "Give one entry per completion token.",
                )
