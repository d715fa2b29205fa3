"""Heads that several processes share, by two real processes (torchrun, gloo): a vocabulary in shards, and FSDP2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _sharded_worker import LAYOUTS, MAX_TOKENS, SHARES, SPLITS, vocabulary_case
from launching import failure, launch

from scgrpo.divergence import token_evidence_reference

pytestmark = pytest.mark.distributed
WORKER = Path(__file__).parent / "_sharded_worker.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("sharded")
    result = launch(2, [str(WORKER), str(folder)])
    assert result.returncode == 0, failure(result)
    return [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("split", SPLITS)
def test_shards_of_the_vocabulary_give_the_evidence_of_the_whole(
    found: list[dict[str, Any]], split: str, direction: Any
) -> None:
    student, teacher, tokens, head = vocabulary_case()
    expected = vars(token_evidence_reference(student, teacher, tokens, head, direction=direction))
    for process in found:
        merged, alone = (process["merged"][f"{split}-{direction}{end}"] for end in ("", " of one shard"))
        assert set(merged) == set(expected)
        for name, values in expected.items():
            torch.testing.assert_close(merged[name], values, atol=1e-12, rtol=0, msg=name)
            assert (alone[name] - values).abs().max() > 1e-3, name  # the other's words do matter


def test_shards_are_merged_within_their_group(found: list[dict[str, Any]]) -> None:
    student, teacher, tokens, head = vocabulary_case()
    expected = token_evidence_reference(student, teacher, tokens, head)
    merged = found[0]["merged"]["group of one"]
    torch.testing.assert_close(merged["token_kl"], expected.token_kl, atol=1e-12, rtol=0)
    assert merged["student_logps"] is merged["student_entropy"] is None  # neither was asked for


@pytest.mark.parametrize("sharing", ["off", "packed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sharded_model_gives_the_evidence_of_the_whole_one(
    found: list[dict[str, Any]], layout: str, sharing: str
) -> None:
    both = [process[f"{layout}-{sharing}"] for process in found]
    for seen in both:
        assert seen["sharing"] == sharing
        assert seen["head"] == ["Parameter"]  # whole, gathered in the precision of the forward
        for share in SHARES:
            assert torch.equal(seen["sharded"][share], seen["whole"][share])
    largest = max(seen["sharded"]["unequal"][0].max() for seen in both)
    assert largest > 0.1  # nats: there was something to measure


@pytest.mark.parametrize("sharing", ["off", "packed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_shards_before_and_after(found: list[dict[str, Any]], layout: str, sharing: str) -> None:
    for process in found:
        seen = process[f"{layout}-{sharing}"]
        assert seen["gathered before"] == seen["gathered after"] == []
        assert seen["trains"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unequal_work_is_filled_with_dummies(found: list[dict[str, Any]], layout: str) -> None:
    """Two passes per batch, of the process that has most of them; the other waited for none of them in vain."""
    both = [process[f"{layout}-off"] for process in found]
    batches = {share: [seen["batches"][share] for seen in both] for share in SHARES}
    assert batches == {"unequal": [4, 1], "one-sided": [4, 0], "other side": [0, 2]}, MAX_TOKENS
    for seen in both:
        assert seen["forwards"] == {share: 2 * max(counts) for share, counts in batches.items()}
