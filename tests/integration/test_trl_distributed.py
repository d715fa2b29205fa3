"""One process and two real ones (torchrun, gloo) give the same credit and the same training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WORKER = Path(__file__).parent / "_distributed_worker.py"
# Three groups of four over two processes of six rows: the second group lies on both.
PATTERNS = {
    "mixed": "SSFFSSSFFFFF",
    # All that is scored lies on the first process.
    "one-sided": "SSFFSFFFSSSS",
    # Nothing is scored anywhere.
    "nothing": "SFFFSSSSSFFF",
}


CASES = [
    f"{PATTERNS[name]}:{loss}"
    for name, loss in (("mixed", "grpo"), ("mixed", "dapo"), ("one-sided", "dapo"), ("nothing", "grpo"))
]


def run(processes: int, folder: Path) -> list[dict[str, Any]]:
    """What each process saw, by case."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(WORKER), str(folder), *CASES]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(WORKER.parents[1]), *sys.path])
    folder.mkdir()
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return [torch.load(folder / f"seen-{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("distributed")
    return run(1, folder / "one"), run(2, folder / "two")


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(runs: tuple[Any, Any], case: str) -> None:
    (one,), two = ([process[case] for process in processes] for processes in runs)
    assert one["num_processes"] == 1
    assert [seen["num_processes"] for seen in two] == [2, 2]
    assert [seen["distributed_type"] for seen in two] == ["MULTI_CPU", "MULTI_CPU"]
    assert one["forwards"] > 0
    for seen in two:
        for name in ("advantages", "weights", "token_kl", "rollout", "demonstration", "route"):
            for mine, its in zip(one[name], seen[name], strict=True):
                torch.testing.assert_close(its, mine, atol=1e-6, rtol=1e-5 if name == "token_kl" else 0)
        for name, value in one["parameters"].items():
            torch.testing.assert_close(seen["parameters"][name], value, atol=1e-6, rtol=0, msg=name)
    mean_loss = torch.stack([torch.stack(seen["losses"]) for seen in two]).mean(0)
    torch.testing.assert_close(mean_loss, torch.stack(one["losses"]), atol=1e-6, rtol=0)
    for name, value in one["metrics"].items():
        if not name.endswith("_s") and "noise" not in name:
            assert two[0]["metrics"][name] == pytest.approx(value, abs=1e-6, rel=1e-5), name
    scored = {row for rows in one["rollout"] for row in rows.tolist()}
    if case.startswith(PATTERNS["one-sided"]):
        assert scored
        assert max(scored) < 6
    else:
        assert bool(scored) == (not case.startswith(PATTERNS["nothing"]))
