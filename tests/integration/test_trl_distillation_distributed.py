"""One process and two real ones (torchrun, gloo) distil the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from launching import failure, launch

WORKER = Path(__file__).parent / "_distillation_worker.py"
METHODS = ["opd", "opsd", "sdpo", "grpo_kl"]


def run(processes: int, folder: Path) -> list[dict[str, Any]]:
    """What each process saw, by method."""
    folder.mkdir()
    result = launch(processes, [str(WORKER), str(folder), *METHODS])
    assert result.returncode == 0, failure(result)
    return [torch.load(folder / f"seen-{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("runs")
    return run(1, folder / "one")[0], run(2, folder / "two")


@pytest.mark.distributed
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_distil_as_one(runs: tuple[dict[str, Any], list[dict[str, Any]]], method: str) -> None:
    alone, both = runs[0][method], [process[method] for process in runs[1]]
    assert [alone["num_processes"], *(seen["num_processes"] for seen in both)] == [1, 2, 2]
    for seen in both:
        for name, value in alone["parameters"].items():
            torch.testing.assert_close(seen["parameters"][name], value, atol=1e-6, rtol=0, msg=name)
    mean_loss = torch.stack([torch.stack(seen["losses"]) for seen in both]).mean(0)
    torch.testing.assert_close(mean_loss, torch.stack(alone["losses"]), atol=1e-6, rtol=0)
    assert alone["metrics"]["distill/divergence"] > 1e-3
    for name, value in alone["metrics"].items():
        assert both[0]["metrics"][name] == pytest.approx(value, abs=1e-6, rel=1e-4), name
