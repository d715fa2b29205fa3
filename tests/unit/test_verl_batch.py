"""verl's rows as rollouts: sessions of several outputs, padding, missing verdicts, wrong rewards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scgrpo.credit import NONE, Plan
from scgrpo.errors import ConfigError, NonFiniteError, RunError, VerifierError
from scgrpo.integrations.verl.batch import (
    as_the_loss_sees,
    check_graded,
    check_outputs,
    logps_gap,
    lonely,
    read_groups,
    read_sessions,
)
from scgrpo.integrations.verl.settings import VerlSettings
from scgrpo.tasks.base import Status

EOS, LIMIT = 9, 4


def row(key: str, response: list[int], reward: float, **more: Any) -> dict[str, Any]:
    scores = torch.zeros(len(response))
    scores[-1] = reward
    return {
        "key": key,
        "raw_prompt": [{"role": "user", "content": key.split("_")[0]}],
        "prompts": torch.tensor(more.pop("prompt", [1, 2])),
        "responses": torch.tensor(response),
        "response_mask": torch.tensor(more.pop("mask", [1] * len(response))),
        "rm_scores": scores,
        "extra_fields": {"reward_extra_info": more.pop("info", {})},
        "extra_info": {"problem_id": f"p-{key.split('_')[0]}"},
        "data_source": "toy",
        "tag": more.pop("tag", {}),
        "advantage": more.pop("advantage", 0.5),
    }


def read(rows: list[dict[str, Any]], **settings: Any):
    names = [name for name in rows[0] if name not in ("key", "tag", "advantage")]
    data = {name: [r[name] for r in rows] for name in names}
    sessions = read_sessions([r["key"] for r in rows], [r["tag"] for r in rows], data)
    advantages = [torch.full((len(r["responses"]),), r["advantage"]) * r["response_mask"] for r in rows]
    return sessions, groups_of(sessions, advantages, **settings)


def groups_of(sessions: Any, advantages: list[Tensor], **settings: Any):
    chosen = VerlSettings(**settings)
    return read_groups(sessions, advantages, chosen, step=3, eos_token_ids=frozenset({EOS}), response_length=LIMIT)


def test_groups_of_uids_whatever_the_order_and_padding_left_out() -> None:
    rows = [
        row("b_1_0", [5, EOS], 0.0, advantage=-1.0),
        row("a_10_0", [5, 6, EOS], 1.0, advantage=1.0, prompt=[2]),
        row("pad3_0_0", [EOS], 0.0, tag={"is_padding": True}),
        row("b_0_0", [7, EOS], 1.0),
        row("a_9_0", [8, 8, 8, 8], 0.0, advantage=-1.0, prompt=[2]),
    ]
    sessions, groups = read(rows)
    assert [s.uid for s in sessions] == ["b", "b", "a", "a"]  # by prompt, then by session
    assert [s.outputs[0].row for s in sessions] == [3, 0, 4, 1]
    assert groups.group.tolist() == [0, 0, 1, 1]
    assert groups.solved.tolist() == [True, False, False, True]
    assert groups.truncated.tolist() == [False, False, True, False]  # cut off at the limit
    assert groups.advantages.tolist() == [0.5, -1.0, -1.0, 1.0]
    assert groups.lengths.tolist() == [2, 2, 4, 3]
    assert groups.rewards[0].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert groups.step == 3
    assert sessions[0].source == {"data_source": "toy", "problem_id": "p-b"}


def test_several_outputs_are_one_rollout_with_the_last_ones_reward() -> None:
    rows = [
        row("a_0_1", [6, EOS], 1.0, mask=[1, 0]),
        row("a_0_0", [5], 1.0),  # verl gives every output the session's reward
        row("a_1_0", [7, EOS], 0.0, advantage=-0.5),
    ]
    sessions, groups = read(rows)
    assert [output.row for output in sessions[0].outputs] == [1, 0]
    assert sessions[0].completion_ids == [5, 6, EOS]
    assert sessions[0].reward == 1.0
    assert groups.mask.tolist() == [[True, True, False], [True, True, False]]
    assert groups.rewards.tolist() == [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert groups.lengths.tolist() == [3, 2]


def test_ten_and_more_outputs_keep_their_order() -> None:
    rows = [row(f"a_0_{index}", [index % 8], 0.0) for index in (10, 2, 0, 11, 1, *range(3, 10))]
    sessions, _ = read([*rows, row("a_1_0", [5, EOS], 1.0)])
    assert sessions[0].completion_ids == [index % 8 for index in range(12)]


@pytest.mark.parametrize(
    ("reward", "info", "status"),
    [
        (1.0, {}, Status.GRADED),
        (float("nan"), {}, Status.ERROR),
        (0.0, {"verdict": "timeout", "detail": "hung"}, Status.TIMEOUT),
        (0.0, {"verdict": "graded"}, Status.GRADED),
    ],
)
def test_a_rollout_without_a_verdict_is_neither_solved_nor_failed(reward: float, info: Any, status: Status) -> None:
    sessions, groups = read([row("a_0_0", [5, EOS], reward, info=info), row("a_1_0", [6, EOS], 1.0)])
    assert sessions[0].verdict.status == status
    assert bool(groups.graded[0]) == (status == Status.GRADED)
    assert bool(groups.solved[0]) == (status == Status.GRADED and reward == 1.0)
    assert bool(groups.rewards[0].isnan().all()) == (status != Status.GRADED)
    assert lonely(sessions) == (set() if status == Status.GRADED else {"a"})


def test_a_step_without_any_verdict_is_not_trained_on() -> None:
    lost = {"verdict": "error", "detail": "no judge"}
    sessions, _ = read([row("a_0_0", [5, EOS], 0.0, info=lost), row("a_1_0", [6, EOS], 0.0, info=lost)])
    with pytest.raises(VerifierError, match="no judge"):
        check_graded(sessions)
    with pytest.raises(VerifierError, match="None of 0"):
        check_graded([])


def test_how_far_the_pass_is_from_the_policys_own_log_probs() -> None:
    rows = [row("a_0_0", [5, 6, EOS], 1.0, mask=[1, 0, 1]), row("a_1_0", [7, EOS], 0.0)]
    for r in rows:
        r["old_log_probs"] = torch.full((len(r["responses"]),), -1.0)
    sessions, _ = read(rows)
    pairs = torch.tensor([0, 1, 0])
    plan = Plan(pairs, torch.tensor([1, 0, 1]), torch.ones(3, dtype=torch.bool), torch.tensor([NONE, NONE, 1]))
    found = torch.tensor([[-1.0, 9.0, -1.3], [-1.1, -1.0, 9.0], [9.0, 9.0, 9.0]])  # the last against another
    assert logps_gap(sessions, plan, found) == pytest.approx(0.1)
    without, _ = read([row("a_0_0", [5, EOS], 1.0), row("a_1_0", [7, EOS], 0.0)])
    assert logps_gap(without, Plan(pairs[:1], pairs[1:2], torch.ones(1, dtype=torch.bool)), found[:1]) is None


def test_what_decides_may_be_another_value_than_the_reward() -> None:
    rows = [row("a_0_0", [5, EOS], -0.3, info={"acc": 1.0}), row("a_1_0", [6, EOS], 0.9, info={"acc": 0.0})]
    _, groups = read(rows, success_metric="acc")
    assert groups.solved.tolist() == [True, False]
    with pytest.raises(ConfigError, match="acc"):
        read(rows, success_metric="correct")


def test_a_verdict_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match="graded, error, timeout"):
        read([row("a_0_0", [5, EOS], 1.0, info={"verdict": "correct"}), row("a_1_0", [6, EOS], 1.0)])


def test_tokens_that_verl_rejects_are_not_scored_and_break_nothing() -> None:
    rows = [row("a_0_0", [5, 6, EOS], 1.0, advantage=0.7), row("a_1_0", [7, EOS], 0.0, advantage=-0.7)]
    sessions, _ = read(rows)
    masks = [torch.tensor([1, 0, 1]), torch.tensor([0, 0])]
    seen = as_the_loss_sees(sessions, masks)
    advantages = [torch.tensor([0.7, 0.0, 0.7]), torch.tensor([0.0, 0.0])]  # verl multiplies by its new mask
    groups = groups_of(seen, advantages)
    assert groups.mask.tolist() == [[True, False, True], [False, False, False]]
    assert groups.advantages.tolist() == pytest.approx([0.7, 0.0])
    assert groups.scorable.tolist() == [True, False]


def test_several_outputs_need_an_estimator_that_knows_them() -> None:
    sessions, _ = read([row("a_0_0", [5], 1.0), row("a_0_1", [6, EOS], 1.0), row("a_1_0", [7, EOS], 0.0)])
    check_outputs(sessions, "grpo")
    with pytest.raises(ConfigError, match="rloo"):
        check_outputs(sessions, "rloo")
    check_outputs(sessions[1:], "rloo")


def test_bad_rows_end_in_a_named_error() -> None:
    with pytest.raises(NonFiniteError, match="group a"):
        read([row("a_0_0", [5, EOS], float("inf")), row("a_1_0", [6, EOS], 1.0)])
    with pytest.raises(RunError, match="uid_session_index"):
        read([row("a-0", [5, EOS], 1.0)])


def test_an_estimator_with_advantages_of_its_own_per_token_is_refused() -> None:
    sessions, _ = read([row("a_0_0", [5, EOS], 1.0), row("a_1_0", [6, EOS], 0.0)])
    with pytest.raises(ConfigError, match="adv_estimator=grpo"):
        groups_of(sessions, [torch.tensor([0.5, 0.1]), torch.tensor([0.5, 0.5])])
