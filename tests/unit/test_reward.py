"""A task as TRL's reward function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from scgrpo.errors import VerifierError
from scgrpo.tasks import Canned, Row, Split, Status, Task, Verdict
from scgrpo.tasks.reward import completion_text, reward_function


class Scripted(Task):
    """The completion says which verdict it gets."""

    name = "scripted"

    def __init__(self) -> None:
        self.seen: list[Mapping[str, Any]] = []

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        return []

    def canned(self) -> Canned:
        return Canned({}, (), ())

    def verify(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        self.seen = list(rows)
        kinds = {"error": Verdict.error("broke"), "timeout": Verdict.timeout("late")}
        return [kinds[c] if c in kinds else Verdict(float(c)) for c in completions]


def test_rewards_columns_and_metrics() -> None:
    task, logged = Scripted(), {}
    reward = reward_function(task)
    rewards = reward(
        prompts=["a", "b", "c", "d"],
        completions=["1", "error", [{"role": "assistant", "content": "0.25"}], "timeout"],
        completion_ids=[[1], [2], [3], [4]],
        log_metric=logged.__setitem__,
        log_extra=None,
        trainer_state=object(),
        problem_id=["p0", "p1", "p2", "p3"],
        answer=[10, 11, 12, None],
    )
    assert rewards == [1.0, None, 0.25, None]
    assert reward.__name__ == "scripted"
    assert [v.status for v in reward.last_verdicts] == [Status.GRADED, Status.ERROR, Status.GRADED, Status.TIMEOUT]
    assert logged == {"verdicts/error_frac": 0.25, "verdicts/timeout_frac": 0.25}
    assert task.seen[3] == {"prompt": "d", "problem_id": "p3", "answer": None}


def test_the_last_assistant_message_is_graded() -> None:
    assert completion_text("plain") == "plain"
    turns = [
        {"role": "assistant", "content": "first", "tool_calls": []},
        {"role": "tool", "content": "result"},
        {"role": "assistant", "content": "last"},
        {"role": "user", "content": "thanks"},
    ]
    assert completion_text(turns) == "last"
    assert completion_text([{"role": "assistant", "content": [{"type": "text", "text": "part"}]}]) == "part"
    assert completion_text([{"role": "tool", "content": "result"}]) == ""
    assert completion_text([{"role": "assistant", "content": None}]) == ""


def test_three_batches_without_a_grade_stop_the_run() -> None:
    reward = reward_function(Scripted())
    blind = {"prompts": ["a", "b"], "completions": ["error", "timeout"]}
    for _ in range(2):
        assert reward(**blind) == [None, None]
    assert reward(prompts=["a"], completions=["0"]) == [0.0]
    assert reward(prompts=[], completions=[]) == []
    for _ in range(2):
        assert reward(**blind) == [None, None]
    with pytest.raises(VerifierError, match=r"'scripted' grades nothing: no verdict in 3 batches.*timeout \(late\)"):
        reward(**blind)


class Blaming(Scripted):
    """Completions of zeros and ones, wrong from their first zero; counts how often it is asked."""

    asked = 0

    def verify(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        return [Verdict(float("0" not in completion)) for completion in completions]

    def first_errors(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[int | None]:
        self.asked += 1
        words = [completion.split(" ") if completion else [] for completion in completions]
        return [own.index("0") if "0" in own else len(own) if len(own) < 3 else None for own in words]


def test_first_errors_are_token_positions_and_searched_for_when_read() -> None:
    task = Blaming()
    reward = reward_function(task)
    completions = ["1 1 1", "1 0 1", "1", "1", "", "1 0 1"]
    ids = [[4, 4, 4, 2], [4, 3, 4, 2], [4, 2], [4], [2], [7, 7, 4, 3, 4, 2]]
    reward(prompts=["p"] * 6, completions=completions, completion_ids=ids)
    assert task.asked == 0
    # The fourth was cut off: there is no end token that came too early. The last has more tokens than words.
    assert reward.first_error == [None, 1, 1, -1, 0, -1]
    assert reward.first_error == [None, 1, 1, -1, 0, -1]
    assert task.asked == 1
    reward(prompts=["p"], completions=["0 1"], completion_ids=[[3, 4, 2]])
    assert reward.first_error == [0]
    reward(prompts=["p"], completions=["0 1"])
    assert reward.first_error == [-1]  # without token ids nothing is known of positions


def test_tasks_without_first_errors_tell_none() -> None:
    from scgrpo.integrations.trl.rewards import finds_first_errors, guarded

    assert not finds_first_errors(guarded(reward_function(Scripted())))
    assert finds_first_errors(guarded(reward_function(Blaming())))
