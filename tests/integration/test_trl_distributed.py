"""One process and two real ones (torchrun, gloo), which each hold the model or share it, give the same training."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import SHARDINGS, failure, launch

WORKER = Path(__file__).parent / "_distributed_worker.py"
# Three groups of four over two processes of six rows: the second group lies on both.
PATTERNS = {
    "mixed": "SSFFSSSFFFFF",
    # All that is scored lies on the first process.
    "one-sided": "SSFFSFFFSSSS",
    # All that is scored lies on the second process.
    "other side": "SSSSSSSSFFSS",
    # Contrasts on the first process, a solve-none group on both.
    "contrasts": "SSFFFFFFSSSS",
    # Nothing is scored anywhere.
    "nothing": "SFFFSSSSSFFF",
    # The second and third group are replaced by those of the next batch, see the worker.
    "unsolved": "SSFFFFFFFFFF",
}


CASES = [
    f"{PATTERNS[name]}:{loss}:{model}"
    for name, loss, model in (
        ("mixed", "grpo", "tied"),
        ("mixed", "dapo", "untied"),
        ("mixed", "dapo", "lora"),
        ("mixed", "grpo", "twice"),  # each batch is trained on twice, and TRL's own pass leaves the student's states
        ("one-sided", "dapo", "tied"),
        ("other side", "dapo", "tied"),
        ("unsolved", "dapo", "refilled"),
        ("nothing", "grpo", "tied"),
        # Pairs of different kinds: without a demonstration, and with one in each context; elsewhere there is none of
        # either on the second process.
        ("mixed", "dapo", "entropy"),
        ("contrasts", "dapo", "rlcsd_weight"),
    )
]


def run(processes: int, folder: Path, settings: dict[str, str]) -> list[dict[str, Any]]:
    """What each process saw, by case."""
    folder.mkdir()
    # A pass that one process runs and the other does not would wait for ever.
    result = launch(processes, [str(WORKER), str(folder), *CASES], settings)
    assert result.returncode == 0, failure(result)
    return [torch.load(folder / f"seen-{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(1, tmp_path_factory.mktemp("one") / "run", {})[0]


@pytest.fixture(scope="module", params=SHARDINGS)
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """Two processes that each hold the model, and two that share it (FSDP2, ZeRO-3)."""
    if request.param == "DEEPSPEED" and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed (.ci/run has an environment with it)")
    return request.param, run(2, tmp_path_factory.mktemp("two") / "run", SHARDINGS[request.param])


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(one: dict[str, Any], two: tuple[str, Any], case: str) -> None:
    kind, alone, both = two[0], one[case], [process[case] for process in two[1]]
    assert alone["num_processes"] == 1
    assert [seen["num_processes"] for seen in both] == [2, 2]
    assert [seen["distributed_type"] for seen in both] == [kind, kind]
    for seen in both:
        for name in ("advantages", "weights", "token_kl", "rollout", "demonstration", "route"):
            for mine, its in zip(alone[name], seen[name], strict=True):
                torch.testing.assert_close(its, mine, atol=1e-6, rtol=1e-5 if name == "token_kl" else 0)
        for name, value in alone["parameters"].items():
            torch.testing.assert_close(seen["parameters"][name], value, atol=1e-6, rtol=0, msg=name)
    mean_loss = torch.stack([torch.stack(seen["losses"]) for seen in both]).mean(0)
    torch.testing.assert_close(mean_loss, torch.stack(alone["losses"]), atol=1e-6, rtol=0)
    for name, value in alone["metrics"].items():
        if not name.endswith("_s") and "noise" not in name:
            assert both[0]["metrics"][name] == pytest.approx(value, abs=1e-6, rel=1e-5), name
    spent = both[0]["compute"]
    for name in ("tokens_sampled", "tokens_trained"):
        assert spent[name] == both[1]["compute"][name] == alone["compute"][name], "of all processes, on each"
    # A prompt that both processes hold is computed by both.
    for name in ("student_forward_tokens", "teacher_forward_tokens"):
        assert spent[name] >= alone["compute"][name]
        assert (spent[name] > 0) == (alone["compute"][name] > 0)
    scored = {row for rows in alone["rollout"] for row in rows.tolist()}
    if case.startswith(PATTERNS["one-sided"]):
        assert scored
        assert max(scored) < 6
    elif case.startswith(PATTERNS["other side"]):
        assert scored
        assert min(scored) >= 6
    else:
        assert bool(scored) == (not case.startswith(PATTERNS["nothing"]))


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_a_process_runs_no_more_passes_than_it_must(two: tuple[str, Any], case: str) -> None:
    """Passes of the second generation batch, when nothing is probed any more: a teacher's for each batch of pairs,
    and a student's where the loss's own does not serve. The process that has fewer batches runs dummies of a token or
    two, and only where weights are shared."""
    first, second = (process[case]["passes"][1] for process in two[1])
    if case.startswith(PATTERNS["nothing"]):
        assert first == second == []
    elif case.startswith((PATTERNS["one-sided"], PATTERNS["other side"])):
        busy, idle = (first, second) if case.startswith(PATTERNS["one-sided"]) else (second, first)
        assert len(busy) >= 1
        assert min(busy) > 2
        dummies = 0 if two[0] == "MULTI_CPU" else len(busy)
        assert len(idle) == dummies
        assert all(tokens <= 2 for tokens in idle)
    elif two[0] != "MULTI_CPU":
        assert len(first) == len(second) > 0


@pytest.mark.distributed
def test_shards_stay_shards(two: tuple[str, Any]) -> None:
    kind, processes = two
    for seen in (process[case] for process in processes for case in CASES):
        if kind != "MULTI_CPU":
            assert seen["gathered_after_training"] == []
            assert seen["gathered_after_scoring"] == [[], []]
        else:  # the test can tell
            assert seen["gathered_after_training"] == list(seen["parameters"])
