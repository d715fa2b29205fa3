"""verl's training batch as a credit method sees it.

verl keeps one row per *output*, keyed `{uid}_{session}_{index}`. A rollout is a session: usually one output, several
where an agent loop gives each turn a prompt of its own. Its completion is then the outputs' responses one after the
other; its reward that of the last one, and its advantage the same in all of them, as verl has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from scgrpo.credit import Credit, Groups, Plan
from scgrpo.errors import ConfigError, NonFiniteError, RunError, VerifierError
from scgrpo.integrations.verl.settings import VerlSettings
from scgrpo.tasks.base import Status, Verdict

FIELDS = (
    *("raw_prompt", "prompts", "responses", "response_mask", "rm_scores"),
    *("extra_fields", "extra_info", "data_source", "old_log_probs"),
)


@dataclass(frozen=True)
class Output:
    """One row of verl's batch.

    Attributes:
        row: its number there.
        prompt_ids, response_ids: token ids.
        mask: (N,) True where the policy produced the response's token.
        token_rewards: (N,) reward of each of its tokens.
        old_logps: (N,) of its tokens before the update, nats, as verl has them; None where it has none.
        extra: what the agent loop says besides, `reward_extra_info` among it.
    """

    row: int
    prompt_ids: list[int]
    response_ids: list[int]
    mask: Tensor
    token_rewards: Tensor
    extra: Mapping[str, Any]
    old_logps: Tensor | None = None

    def __len__(self) -> int:
        return len(self.response_ids)


@dataclass(frozen=True)
class Session:
    """A rollout.

    Attributes:
        uid: of the prompt's group.
        messages: the prompt as the dataset has it.
        outputs: in order; none is empty.
        source: the dataset's columns that say which problem it is.
    """

    uid: str
    messages: list[dict[str, Any]]
    outputs: Sequence[Output]
    source: Mapping[str, Any]

    @cached_property
    def completion_ids(self) -> list[int]:
        """Token ids of all responses."""
        return [token for output in self.outputs for token in output.response_ids]

    @property
    def reward(self) -> float:
        """The reward of the last output; NaN where the reward function gave none."""
        return float(self.outputs[-1].token_rewards.sum())

    @property
    def info(self) -> Mapping[str, Any]:
        """What the reward function returned besides the reward."""
        return self.outputs[-1].extra.get("reward_extra_info") or {}

    @property
    def verdict(self) -> Verdict:
        """How grading ended: as the reward function says (`verdict`, `detail`), else graded if there is a number."""
        status = status_of(self.info.get("verdict"), self.reward)
        score = self.reward if status == Status.GRADED else math.nan
        return Verdict(score, Status(status), str(self.info.get("detail") or ""))

    def solved(self, settings: VerlSettings) -> bool:
        """Whether the score that decides reaches the threshold.

        Raises:
            ConfigError: the reward function does not return what `success_metric` names.
        """
        if settings.success_metric is None:
            return self.reward >= settings.success_threshold
        if settings.success_metric not in self.info:
            raise ConfigError(
                f"success_metric={settings.success_metric!r}, but the reward function returned only "
                f"{', '.join(sorted(self.info)) or 'a number'}.",
                "Name one of these, or leave success_metric out.",
            )
        return float(self.info[settings.success_metric]) >= settings.success_threshold


def status_of(said: Any, reward: float) -> Status:
    """How grading ended: what a reward function says under `verdict`, else graded if there is a number.

    Raises:
        ConfigError: it says something else than graded, error or timeout.
    """
    if said is None or said == "":
        return Status.ERROR if math.isnan(reward) else Status.GRADED
    if said not in set(Status):
        raise ConfigError(
            f"The reward function returned verdict={said!r}.",
            f"Return one of {', '.join(Status)} under that name, or nothing.",
        )
    return Status(said)


def read_sessions(keys: Sequence[str], tags: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> list[Session]:
    """Sessions of a batch, those of one group together; rows verl added as padding are left out.

    verl orders a batch by random ids and by who was done first. Here it is ordered by prompt and session, so that the
    same rollouts get the same demonstrations.

    Args:
        data: the `FIELDS` of the rows, nested tensors and lists.

    Raises:
        RunError: a key is not of the form verl writes.
        NonFiniteError: an infinite reward.
    """
    columns = {name: _rows(data, name, len(keys)) for name in FIELDS}
    found: dict[str, dict[int, dict[int, int]]] = {}
    for row, (key, tag) in enumerate(zip(keys, tags, strict=True)):
        parts = key.rsplit("_", 2)
        if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
            raise RunError(f"verl's row key {key!r} is not uid_session_index.", "Install verl>=0.9,<0.10.")
        if not tag.get("is_padding", False):
            found.setdefault(parts[0], {}).setdefault(int(parts[1]), {})[int(parts[2])] = row
    groups = [
        [_session(uid, [rows[index] for index in sorted(rows)], columns) for _, rows in sorted(sessions.items())]
        for uid, sessions in found.items()
    ]
    groups.sort(key=lambda sessions: sessions[0].outputs[0].prompt_ids)
    return [session for sessions in groups for session in sessions]


def read_groups(
    sessions: Sequence[Session],
    advantages: Sequence[Tensor],
    settings: VerlSettings,
    *,
    step: int,
    eos_token_ids: frozenset[int],
    response_length: int,
) -> Groups:
    """The whole batch for a credit method; sessions are its rows.

    Args:
        advantages: of verl's rows, one value per response token.
        step: optimizer steps done.
        response_length: at which an output is cut off.

    Raises:
        ConfigError: the advantage estimator gave the tokens of a rollout different advantages.
    """
    width = max(len(session.completion_ids) for session in sessions)
    ids = torch.zeros(len(sessions), width, dtype=torch.long)
    mask = torch.zeros(len(sessions), width, dtype=torch.bool)
    rewards = torch.zeros(len(sessions), width)
    uids = {uid: number for number, uid in enumerate(dict.fromkeys(session.uid for session in sessions))}
    graded = [session.verdict.status == Status.GRADED for session in sessions]
    for row, session in enumerate(sessions):
        length = len(session.completion_ids)
        ids[row, :length] = torch.tensor(session.completion_ids)
        mask[row, :length] = torch.cat([output.mask for output in session.outputs])
        last = session.outputs[-1]
        rewards[row, length - len(last) : length] = last.token_rewards
        if not graded[row]:
            rewards[row] = torch.nan
    return Groups(
        group=torch.tensor([uids[session.uid] for session in sessions]),
        solved=torch.tensor([ok and s.solved(settings) for ok, s in zip(graded, sessions, strict=True)]),
        graded=torch.tensor(graded),
        truncated=torch.tensor([_truncated(session, eos_token_ids, response_length) for session in sessions]),
        lengths=torch.tensor([len(session.completion_ids) for session in sessions]),
        mask=mask,
        advantages=torch.stack([_rollout_advantage(session, advantages) for session in sessions]),
        micro_batch=torch.zeros(len(sessions), dtype=torch.long),
        rewards=rewards,
        step=step,
        completion_ids=ids,
    )


def as_the_loss_sees(sessions: Sequence[Session], masks: Sequence[Tensor]) -> list[Session]:
    """The rollouts with other masks, by verl's row: where it corrects for the rollout engine, it rejects tokens after
    they were sampled."""
    return [
        replace(session, outputs=[replace(output, mask=masks[output.row].bool().cpu()) for output in session.outputs])
        for session in sessions
    ]


def check_outputs(sessions: Sequence[Session], estimator: str) -> None:
    """Raise ConfigError if verl takes outputs of a rollout for rollouts, as it does with all estimators but grpo."""
    if estimator != "grpo" and any(len(session.outputs) > 1 for session in sessions):
        raise ConfigError(
            f"A rollout has several outputs, which algorithm.adv_estimator={estimator} takes for so many rollouts.",
            "Set algorithm.adv_estimator=grpo, or an agent loop with one output (prompting: concat).",
        )


def distribute(credit: Credit, groups: Groups, sessions: Sequence[Session], advantages: list[Tensor]) -> bool:
    """Put credit into the advantages of verl's rows, and say whether any changed; rows whose advantages stay as they
    are keep their very tensors."""
    changed = False
    for row, session in enumerate(sessions):
        if torch.equal(credit.advantages[row], groups.advantages[row].expand_as(credit.advantages[row])):
            continue
        changed, first = True, 0
        for output in session.outputs:
            own = credit.advantages[row, first : first + len(output)] * output.mask
            advantages[output.row] = own.to(advantages[output.row].dtype)
            first += len(output)
    return changed


def logps_gap(sessions: Sequence[Session], plan: Plan, student_logps: Tensor) -> float | None:
    """Mean distance, in nats, between the log-probs (P, T) that the conditioned pass found without a demonstration
    and verl's own: rounding, or a pass that does not see what the policy saw. None if verl has none."""
    gaps = []
    contrasted = plan.contrasted.tolist()
    for pair, row in enumerate(plan.rollout.tolist()):
        outputs = sessions[row].outputs
        known = [output.old_logps for output in outputs if output.old_logps is not None]
        if contrasted[pair] or len(known) < len(outputs):
            continue
        mask = torch.cat([output.mask for output in outputs])
        gaps.append((student_logps[pair, : len(mask)] - torch.cat(known).float().cpu())[mask].abs())
    return torch.cat(gaps).mean().item() if gaps else None


def check_graded(sessions: Sequence[Session]) -> None:
    """Raise VerifierError, quoting one of them, if no rollout of a step has a verdict."""
    if not any(session.verdict.status == Status.GRADED for session in sessions):
        said = next((session.verdict.detail for session in sessions if session.verdict.detail), "nothing")
        raise VerifierError(
            f"None of {len(sessions)} rollouts of this step has a verdict; the verifier says: {said}",
            "Nothing was trained on it. Call the reward function on one row of your data to see why.",
        )


def lonely(sessions: Sequence[Session]) -> set[str]:
    """Groups with fewer than two verdicts: their advantages compare with nothing."""
    count = dict.fromkeys((session.uid for session in sessions), 0)
    for session in sessions:
        count[session.uid] += session.verdict.status == Status.GRADED
    return {uid for uid, number in count.items() if number < 2}


def _session(uid: str, rows: Sequence[int], columns: Mapping[str, list[Any]]) -> Session:
    outputs = []
    for row in rows:
        extra = columns["extra_fields"][row]
        scores = columns["rm_scores"][row].float().cpu()
        if bool(torch.isinf(scores).any()):
            raise NonFiniteError(
                f"The reward function returned {float(scores.sum())} for a rollout of group {uid}.",
                "Return a finite number; for a rollout that cannot be graded, NaN.",
            )
        outputs.append(
            Output(
                row=row,
                prompt_ids=columns["prompts"][row].tolist(),
                response_ids=columns["responses"][row].tolist(),
                mask=columns["response_mask"][row].bool().cpu(),
                token_rewards=scores,
                extra=extra if isinstance(extra, Mapping) else {},
                old_logps=columns["old_log_probs"][row],
            )
        )
    told = columns["extra_info"][rows[0]]
    source = {"data_source": str(columns["data_source"][rows[0]]), **(told if isinstance(told, Mapping) else {})}
    return Session(uid, [dict(message) for message in columns["raw_prompt"][rows[0]]], outputs, source)


def _truncated(session: Session, eos_token_ids: frozenset[int], response_length: int) -> bool:
    last = session.outputs[-1]
    if "done" in last.extra:  # an agent loop with an environment knows: its turns end, its rollouts may not
        return not last.extra["done"]
    return len(last) >= response_length and last.response_ids[-1] not in eos_token_ids


def _rollout_advantage(session: Session, advantages: Sequence[Tensor]) -> Tensor:
    values = torch.cat([advantages[output.row][output.mask] for output in session.outputs])
    if not len(values):
        return torch.zeros(())
    if bool((values != values[0]).any()):
        raise ConfigError(
            f"The advantages of a rollout range from {float(values.min())} to {float(values.max())}: there is no one "
            "advantage to distribute over its tokens.",
            "Set algorithm.adv_estimator=grpo.",
        )
    return values[0]


def _rows(data: Mapping[str, Any], name: str, count: int) -> list[Any]:
    """A column as a list with one entry per row; None in each where there is no such column."""
    if name not in data:
        return [None] * count
    column = data[name]
    if isinstance(column, Tensor):
        return list(column.unbind())
    return column.tolist() if hasattr(column, "tolist") else list(column)
