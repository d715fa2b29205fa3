"""Which groups are replaced, by which, and what becomes of a batch; the punishment of overlong rollouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scgrpo.errors import IncompatibleHostError
from scgrpo.integrations.trl import overlong
from scgrpo.integrations.trl.dynamic_sampling import ExtraPrompts, degenerate_groups, replacements, with_rows

NAN = float("nan")


def booleans(text: str) -> torch.Tensor:
    return torch.tensor([letter == "x" for letter in text])


@pytest.mark.parametrize(
    ("verdicts", "advantages", "degenerate"),
    [
        ([1, 1, 1, 1], [0, 0, 0, 0], True),
        ([0, 0, 0, 0], [0, 0, 0, 0], True),
        ([1, 0, 0, 0], [1.5, -0.5, -0.5, -0.5], False),
        ([1, 1, 1, 1], [0.5, 0.5, -0.5, -0.5], True),  # a length reward alone does not make a group mixed
        ([1, 0, 0, 0], [0, 0, 0, 0], True),  # the verifier's reward does not count here
        ([1, NAN, NAN, NAN], [0.5, 0, 0, -0.5], True),
        ([1, NAN, 0, NAN], [0.5, 0, -0.5, 0], False),
        ([NAN, NAN, NAN, NAN], [0.5, 0.5, -0.5, -0.5], False),  # another task: its own rewards say
        ([NAN, NAN, NAN, NAN], [0, 0, 0, 0], True),
    ],
)
def test_degenerate_groups(verdicts: list[float], advantages: list[float], degenerate: bool) -> None:
    ones, others = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0.5, -0.5, 0.5, -0.5])
    verdict = torch.cat([torch.tensor(verdicts, dtype=torch.float32), ones])
    advantage = torch.cat([torch.tensor(advantages, dtype=torch.float32), others])
    assert degenerate_groups(verdict, advantage, 4, 0.5).tolist() == [degenerate, False]


@pytest.mark.parametrize(
    ("degenerate", "fresh", "parts", "expected"),
    [
        ("x.x.", "x.x.", 1, [1, -1, 3, -1]),  # any good group of the process will do
        ("xxxx", "xx.x", 1, [2, -1, -1, -1]),
        ("x...", "....", 1, [0, -1, -1, -1]),
        ("x.x.", "xx..", 2, [-1, -1, 2, -1]),  # the first process has none
        ("xx..", ".x..", 4, [0, -1, -1, -1]),  # at its own place only
        ("....", "....", 1, [-1, -1, -1, -1]),
    ],
)
def test_replacements(degenerate: str, fresh: str, parts: int, expected: list[int]) -> None:
    assert replacements(booleans(degenerate), booleans(fresh), parts).tolist() == expected


def batch(**entries: Any) -> dict[str, Any]:
    return {name: torch.tensor(value) for name, value in entries.items()}


def test_rows_are_replaced_in_every_entry_and_padded_anew() -> None:
    old = batch(
        prompt_ids=[[5, 6], [0, 7]],
        prompt_mask=[[1, 1], [0, 1]],
        completion_ids=[[1, 2, 3], [4, 0, 0]],
        completion_mask=[[1, 1, 1], [1, 0, 0]],
        tool_mask=[[1, 0, 1], [1, 1, 1]],
        old_per_token_logps=[[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0]],
        importance_sampling_ratio=[[1.0, 2.0, 3.0], [4.0, 1.0, 1.0]],
        advantages=[0.5, -0.5],
        num_items_in_batch=4,
    )
    new = batch(
        prompt_ids=[[0, 0, 8], [9, 9, 9]],
        prompt_mask=[[0, 0, 1], [1, 1, 1]],
        completion_ids=[[8], [9]],
        completion_mask=[[1], [1]],
        tool_mask=[[1], [0]],
        old_per_token_logps=[[-8.0], [-9.0]],
        importance_sampling_ratio=[[8.0], [9.0]],
        advantages=[0.8, 0.9],
        num_items_in_batch=2,
    )
    expected = batch(
        prompt_ids=[[99, 5, 6], [9, 9, 9]],
        prompt_mask=[[0, 1, 1], [1, 1, 1]],
        completion_ids=[[1, 2, 3], [9, 99, 99]],
        completion_mask=[[1, 1, 1], [1, 0, 0]],
        tool_mask=[[1, 0, 1], [0, 1, 1]],
        old_per_token_logps=[[-1.0, -2.0, -3.0], [-9.0, 0.0, 0.0]],
        importance_sampling_ratio=[[1.0, 2.0, 3.0], [9.0, 1.0, 1.0]],
        advantages=[0.5, 0.9],
        num_items_in_batch=4,
    )
    merged = with_rows(old, new, torch.tensor([-1, 1]), pad_token_id=99)
    assert merged.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(merged[name], value), name
    assert with_rows(old, new, torch.tensor([1, -1]), 99)["prompt_ids"].tolist() == [[9, 9, 9], [99, 0, 7]]


def test_entries_without_rows_are_refused() -> None:
    old = batch(advantages=[0.5, -0.5])
    for name, value in (("pixel_values", torch.zeros(7, 3)), ("num_images", [1, 1])):
        with pytest.raises(IncompatibleHostError, match=name):
            with_rows({**old, name: value}, {**old, name: value}, torch.tensor([-1, 1]), 0)
    with pytest.raises(IncompatibleHostError, match="tool_mask"):
        with_rows(old, {**old, "tool_mask": torch.ones(2, 1)}, torch.tensor([-1, 1]), 0)


def test_extra_prompts_go_through_the_data_again_and_again_in_the_order_of_the_seed() -> None:
    data = [{"number": n} for n in range(5)]
    prompts = ExtraPrompts(data, seed=3)
    numbers = [row["number"] for take in (2, 4, 4, 5) for row in prompts.take(take)]
    assert prompts.drawn == 15
    assert [sorted(numbers[start : start + 5]) for start in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    assert numbers[:5] != numbers[5:10]
    resumed = ExtraPrompts(data, seed=3, drawn=7)
    assert [row["number"] for row in resumed.take(8)] == numbers[7:]
    assert [row["number"] for row in ExtraPrompts(data, seed=4).take(15)] != numbers


def test_the_punishment_is_the_papers() -> None:
    """L_max = 20, L_cache = 4."""
    (verifier, punishment), weights = overlong.with_punishment(len, None, 0.2, 20)
    assert verifier is len
    lengths = [0, 15, 16, 17, 18, 19, 20, 21]
    assert punishment(completion_ids=[[7] * n for n in lengths]) == [0, 0, 0, -0.25, -0.5, -0.75, -1, -1]
    assert punishment.__name__ == overlong.NAME
    assert weights == [1.0, 0.5]
    assert overlong.with_punishment([len, sum], [0.3, 0.7], 0.2, 20)[1] == [0.3, 0.7, 0.5]
    assert overlong.with_punishment([len, sum], [0.3, 0.7, 1.0], 0.2, 20)[1] == [0.3, 0.7, 1.0]


def test_a_rollout_that_nobody_graded_is_not_trained_on_for_its_length() -> None:
    rewards = torch.tensor([[1.0, NAN, -0.5], [NAN, NAN, -0.5], [NAN, 0.0, -0.5]])
    kept = overlong.only_where_graded(rewards, ["verifier", "format", overlong.NAME])
    expected = torch.tensor([[1.0, NAN, -0.5], [NAN, NAN, NAN], [NAN, 0.0, -0.5]])
    torch.testing.assert_close(kept, expected, rtol=0, atol=0, equal_nan=True)
    assert overlong.only_where_graded(rewards, ["a", "b", "c"]) is rewards
