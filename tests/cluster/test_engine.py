"""The conditioned pass in verl's own FSDP engine, in one and two real processes (torchrun, gloo), without Ray.

Every number is compared with a plain forward of each sequence by itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import ENVIRONMENT, HERE, SOURCE

pytestmark = pytest.mark.distributed
FIELDS = ("token_kl", "teacher_logps", "student_logps", "student_entropy")
ANYWHERE = ["packed, dynamic", "packed, dynamic, tied", "padded, fixed, tied", "longer than the budget", "one pair"]
EXACT = {
    1: [
        *ANYWHERE,
        "packed, fixed",
        "packed, to a length",
        "padded, dynamic",
        "one sequence per forward",
        "temperature",
        "reverse",
        "fused kernels",
        "LoRA, padded, tied",
    ],
    2: [
        *ANYWHERE,
        "LoRA",
        "FSDP1",
        "sequence parallel",
        "sequence parallel, tied, fixed",
        "sequence parallel, longer than the budget",
    ],
}
ROUNDED = {1: ["bf16, tied"], 2: ["bf16"]}
OTHERS = {1: ["logits", "training, tied"], 2: ["NaN", "training", "training, LoRA"]}


def cases(scenarios: dict[int, list[str]]) -> list[tuple[int, str]]:
    return [(processes, name) for processes, names in scenarios.items() for name in names]


def run(folder: Path, processes: int) -> list[dict[str, Any]]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    names = [name for group in (EXACT, ROUNDED, OTHERS) for name in group[processes]]
    command = [sys.executable, *launcher, str(HERE / "_engine_worker.py"), str(folder), *names]
    modules = {"PYTHONPATH": f"{HERE}{os.pathsep}{SOURCE}", "VERL_USE_EXTERNAL_MODULES": "cpu_platform"}
    environment = {**os.environ, **ENVIRONMENT, **modules, "VERL_USE_EXTERNAL_PLUGINS": "none"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    return [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Number of processes -> what each of them found."""
    return {processes: run(tmp_path_factory.mktemp("engine"), processes) for processes in (1, 2)}


@pytest.fixture
def found(everything: dict[int, list[dict[str, Any]]], processes: int, scenario: str) -> dict[str, Any]:
    """Of the first process; every other one must have the same."""
    first, *others = [process[scenario] for process in everything[processes]]
    assert "error" not in first, first.get("error")
    for other in others:
        assert "error" not in other, other.get("error")
        if "found" in first:
            assert torch.equal(other["found"], first["found"])
    return first


@pytest.mark.parametrize(("processes", "scenario"), cases(EXACT))
def test_evidence_is_that_of_a_plain_forward(found: dict[str, Any], processes: int, scenario: str) -> None:
    for name, values, expected in zip(FIELDS, found["found"], found["expected"], strict=True):
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert found["expected"][0].max() > 1  # nats: there was something to measure
    if scenario != "one pair":
        assert bool((found["found"][0, 2] == 0).all())  # the third pair has no demonstration
        assert found["found"][1, 2].min() < 0  # but is scored


@pytest.mark.parametrize(("processes", "scenario"), cases(ROUNDED))
def test_mixed_precision_rounds_and_no_more(found: dict[str, Any], processes: int, scenario: str) -> None:
    difference = (found["found"] - found["expected"]).abs()
    assert 1e-3 < difference.max() < 0.5
    assert bool((found["found"][0, 2] == 0).all())


@pytest.mark.parametrize(
    ("processes", "scenario", "forwards", "limit"),
    [
        # 7 pairs; the longest of all has 59 tokens, of "longer than the budget" 145.
        (1, "packed, dynamic", 3, 120),
        (2, "packed, dynamic", 2, 120),
        (1, "packed, fixed", 4, None),  # 5 sequences: 2 pairs
        (2, "padded, fixed, tied", 2, None),
        (1, "one sequence per forward", 7, None),
        (1, "longer than the budget", 6, 145),
        (2, "longer than the budget", 3, 145),
        (2, "one pair", 1, 120),
        (2, "sequence parallel, longer than the budget", 6, 73),  # two processes share a forward
    ],
)
def test_forwards_keep_within_the_budget(
    found: dict[str, Any], processes: int, scenario: str, forwards: int, limit: int | None
) -> None:
    assert (found["forwards"], found["limit"]) == (forwards, limit)


@pytest.mark.parametrize(("processes", "scenario"), [(1, "fused kernels")])
def test_fused_kernels_are_left_aside(found: dict[str, Any], processes: int, scenario: str) -> None:
    assert found["patched"]  # they were there


@pytest.mark.parametrize(("processes", "scenario"), [(1, "LoRA, padded, tied"), (2, "LoRA")])
def test_the_adapter_counts(found: dict[str, Any], processes: int, scenario: str) -> None:
    assert (found["found"] - found["without"]).abs().max() > 0.1


@pytest.mark.parametrize(("processes", "scenario"), [(2, "NaN")])
def test_nan_names_the_pair(found: dict[str, Any], processes: int, scenario: str) -> None:
    assert found["raised"] == "NonFiniteError"
    assert "pair 3" in found["message"]


@pytest.mark.parametrize(("processes", "scenario"), [(1, "logits")])
def test_logits_of_all_tokens_are_never_formed(found: dict[str, Any], processes: int, scenario: str) -> None:
    """Nothing as large as the scored tokens times the vocabulary exists in the pass; in verl's own it does."""
    assert found["pass"] < found["tokens x words"] / 2
    assert found["verl"] > found["tokens x words"]
    assert found["answer"] == ["log_probs"]  # what is not the pass is verl's


@pytest.mark.parametrize(("processes", "scenario"), [(1, "training, tied"), (2, "training"), (2, "training, LoRA")])
def test_training_goes_on_as_without_the_pass(found: dict[str, Any], processes: int, scenario: str) -> None:
    assert found["steps"]["with"] == found["steps"]["without"]
    for name, weights in found["weights"]["without"].items():
        assert torch.equal(found["weights"]["with"][name], weights), name
    assert found["left"]["pass"] == found["left"]["verl"]  # modes, gathered weights, gradients: as verl's own
    assert found["left"]["pass"]["forward"] == found["left"]["pass"]["gradients"] == []
    assert any("lm_head" in name or "embed" in name for name in found["left"]["pass"]["sharded"])
