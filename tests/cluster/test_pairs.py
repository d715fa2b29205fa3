"""From pairs to verl's batch and back, without a model: what travels, to whom, and where the answers go."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch

pytest.importorskip("verl", reason="verl is not installed: run .ci/verl")

from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu

from scgrpo.credit import Evidence
from scgrpo.divergence import Divergence
from scgrpo.errors import ConfigError, IncompatibleHostError, NonFiniteError, ShapeError
from scgrpo.integrations.verl.scoring import FIELDS, PASS, Pair, score_pairs

WIDTH = 20


def make_pairs(count: int, seed: int = 0) -> list[Pair]:
    rng = random.Random(seed)

    def ids(most: int) -> list[int]:
        return [rng.randrange(1000) for _ in range(rng.randint(1, most))]

    pairs = []
    for _ in range(count):
        student, completion = ids(30), ids(WIDTH)
        mask = [rng.random() < 0.6 for _ in completion]
        mask[rng.randrange(len(mask))] = True
        pairs.append(Pair(student, student if rng.random() < 0.3 else ids(60), completion, mask))
    return pairs


def answer(pair_tokens: list[int], scored: list[int]) -> Tensor:
    """(4, n) numbers that tell rows, fields and tokens apart."""
    base = torch.tensor([7.0 * sum(pair_tokens) + pair_tokens[place] for place in scored], dtype=torch.float64)
    return torch.stack([base + field for field in range(4)])


class Group:
    """Workers that read the batch as it is documented, token by token, and answer with `answer`."""

    def __init__(self, mapping: list[int], change: Callable[[Tensor], Tensor] = lambda values: values) -> None:
        self.mapping, self.change = mapping, change
        self.batches: list[TensorDict] = []

    def _query_dispatch_info(self, mesh: str) -> list[int]:
        return self.mapping

    def compute_log_prob(self, data: TensorDict) -> TensorDict:
        self.batches.append(data)
        columns = (data[name].unbind() for name in ("input_ids", "loss_mask", "position_ids"))
        rows = []
        for ids, mask, positions, length in zip(*columns, data["student_length"].tolist(), strict=True):
            starts = [0] if length == len(ids) else [0, length]
            assert positions.tolist() == [
                p for a, b in zip(starts, [*starts[1:], len(ids)], strict=True) for p in range(b - a)
            ]
            parts = [(ids[a:b].tolist(), mask[a:b].nonzero()[:, 0].tolist()) for a, b in _bounds(starts, len(ids))]
            for tokens, scored in parts:  # both sequences end in the same completion
                end = len(parts[0][0]) - parts[0][1][0]
                assert tokens[-end:] == parts[0][0][-end:]
                assert [len(tokens) - place for place in scored] == [len(parts[0][0]) - p for p in parts[0][1]]
            rows.append(self.change(answer(*parts[0])))
        jagged = {
            name: torch.nested.as_nested_tensor([row[number] for row in rows], layout=torch.jagged)
            for number, name in enumerate(FIELDS)
        }
        return TensorDict(jagged, batch_size=len(rows))


def _bounds(starts: list[int], stop: int) -> list[tuple[int, int]]:
    return list(zip(starts, [*starts[1:], stop], strict=True))


def score(group: Any, pairs: list[Pair], **options: Any) -> Evidence:
    limit = {} if "micro_batch_size_per_gpu" in options else {"max_token_len_per_gpu": 100}
    return score_pairs(group, pairs, WIDTH, **{"temperature": 0.7, "divergence": Divergence(), **limit, **options})


def expected(pairs: list[Pair]) -> Tensor:
    out = torch.zeros(4, len(pairs), WIDTH)
    for row, pair in enumerate(pairs):
        scored = [place for place, flag in enumerate(pair.mask) if flag]
        tokens = [*pair.student_ids, *pair.completion_ids[: scored[-1] + 1]]
        out[:, row, scored] = answer(tokens, [len(pair.student_ids) + place for place in scored]).float()
    return out


@pytest.mark.parametrize("mapping", [[0], [0, 1], [0, 0, 1, 1, 2, 2]])
@pytest.mark.parametrize("options", [{}, {"micro_batch_size_per_gpu": 5}, {"micro_batch_size_per_gpu": 1}])
@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_answers_go_where_the_tokens_came_from(mapping: list[int], options: dict[str, int], count: int) -> None:
    pairs = make_pairs(count, seed=count)
    evidence = score(Group(mapping), pairs, **options)
    found = torch.stack([getattr(evidence, field.name) for field in fields(Evidence)])
    assert found.dtype == torch.float32
    assert torch.equal(found, expected(pairs))


@pytest.mark.parametrize(("processes", "sequences", "multiple"), [(1, 5, 2), (3, 5, 6), (4, 1, 4), (3, 8, 12)])
def test_every_process_gets_whole_forwards_of_equal_number(processes: int, sequences: int, multiple: int) -> None:
    group = Group(list(range(processes)))
    score(group, make_pairs(7), micro_batch_size_per_gpu=sequences)
    data = group.batches[0]
    assert len(data) == -(-7 // multiple) * multiple
    size = tu.get_non_tensor_data(data, "micro_batch_size_per_gpu", None)
    assert len(data) // processes % size == 0
    assert size == max(1, sequences // 2)


def test_work_is_shared_out_evenly_longest_first() -> None:
    group = Group([0, 1])
    score(group, make_pairs(40))
    lengths = group.batches[0]["input_ids"].offsets().diff()
    parts = lengths.chunk(2)
    assert abs(int(parts[0].sum() - parts[1].sum())) < lengths.max() / 4
    for part in parts:
        assert part.tolist() == sorted(part.tolist(), reverse=True)


@pytest.mark.parametrize(("mapping", "limit"), [([0, 1], 270), ([0, 0, 1, 1], 135), ([0, 0, 0, 0], 68)])
def test_the_budget_is_raised_to_the_longest_pair(mapping: list[int], limit: int) -> None:
    """270 tokens in one row; sequence parallelism divides a forward among the processes of a data-parallel rank."""
    long = Pair([1] * 30, [1] * 200, [5] * WIDTH, [True] * WIDTH)
    group = Group(mapping)
    score(group, [*make_pairs(3), long], max_token_len_per_gpu=60)
    assert tu.get_non_tensor_data(group.batches[0], "max_token_len_per_gpu", None) == limit
    score(group, [*make_pairs(3), long], max_token_len_per_gpu=1000)
    assert tu.get_non_tensor_data(group.batches[1], "max_token_len_per_gpu", None) == 1000


def test_what_the_workers_are_told() -> None:
    group = Group([0])
    score(group, make_pairs(2), divergence=Divergence("topk", "reverse", 9))
    told = dict(group.batches[0].exclude("input_ids").items())
    told = {name: tu.unwrap_non_tensor_data(value) for name, value in told.items()}
    assert told[PASS] == {"kind": "topk", "direction": "reverse", "k": 9}
    assert (told["temperature"], told["use_dynamic_bsz"]) == (0.7, True)
    assert told["compute_loss"] is told["calculate_entropy"] is told["use_fused_kernels"] is False


def test_a_pair_without_demonstration_is_one_sequence_and_its_end_is_trimmed() -> None:
    row = Pair([1, 2], [1, 2], [3, 4, 5, 6], [True, False, True, False]).row()
    assert row["input_ids"].tolist() == [1, 2, 3, 4, 5]
    assert row["loss_mask"].tolist() == [0, 0, 1, 0, 1]
    assert int(row["student_length"]) == 5
    row = Pair([1, 2], [9, 1, 2], [3, 4, 5, 6], [True, False, True, False]).row()
    assert row["input_ids"].tolist() == [1, 2, 3, 4, 5, 9, 1, 2, 3, 4, 5]
    assert row["position_ids"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]
    assert row["loss_mask"].tolist() == [0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1]
    assert int(row["student_length"]) == 5


def test_nothing_to_score_asks_nobody() -> None:
    group = Group([0])
    assert score(group, []).token_kl.shape == (0, WIDTH)
    assert not group.batches


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("field", range(4))
def test_a_number_that_is_none_names_pair_and_token(bad: float, field: int) -> None:
    pairs = make_pairs(6)
    pairs[4] = Pair([1], [2], [10, 11, 12, 424242], [True, False, True, True])

    def spoil(values: Tensor) -> Tensor:
        if values.max() > 424242:
            values[field, 1] = bad
        return values

    with pytest.raises(NonFiniteError, match=r"pair 4, completion token 2 \(1 of 3 scored tokens"):
        score(Group([0, 1], spoil), pairs)


def test_workers_with_another_engine_are_found_out() -> None:
    class Others(Group):
        def compute_log_prob(self, data: TensorDict) -> TensorDict:
            return TensorDict({"log_probs": data["input_ids"]}, batch_size=len(data))

    with pytest.raises(IncompatibleHostError, match="do not run scgrpo's engine"):
        score(Others([0]), make_pairs(2))


@pytest.mark.parametrize("limits", [{}, {"max_token_len_per_gpu": 9, "micro_batch_size_per_gpu": 9}])
def test_exactly_one_limit(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="one limit"):
        score_pairs(Group([0]), make_pairs(1), WIDTH, temperature=1.0, divergence=Divergence(), **limits)


@pytest.mark.parametrize(
    ("pair", "problem"),
    [
        (([], [1], [2], [True]), "no tokens"),
        (([1], [], [2], [True]), "no tokens"),
        (([1], [1], [2, 3], [True]), "mask of 1"),
        (([1], [1], [2, 3], [False, False]), "0 of them to score"),
        (([1], [1], [], []), "0 of them to score"),
    ],
)
def test_what_is_not_a_pair(pair: tuple[Any, ...], problem: str) -> None:
    with pytest.raises(ShapeError, match=problem):
        Pair(*pair)


def test_a_completion_longer_than_the_width() -> None:
    with pytest.raises(ShapeError, match="width"):
        score(Group([0]), [Pair([1], [2], [3] * (WIDTH + 1), [True] * (WIDTH + 1))])
