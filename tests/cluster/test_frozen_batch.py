"""verl's half and TRL's half of the package give the same batch the same credit (tests/frozen_batch.py has it)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import ENVIRONMENT, HERE, SOURCE

RECORD = json.loads((HERE.parent / "fixtures" / "frozen_batch" / "batch.json").read_text())["credit"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list]]:
    out = tmp_path_factory.mktemp("frozen") / "credit.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    paths = {"PYTHONPATH": f"{HERE}{os.pathsep}{SOURCE}", "VERL_USE_EXTERNAL_MODULES": "cpu_platform"}
    environment = {**os.environ, **ENVIRONMENT, **paths, "VERL_USE_EXTERNAL_PLUGINS": "none"}
    command = [sys.executable, *launcher, str(HERE / "_frozen_worker.py"), str(out)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(Path(out).read_text())


@pytest.mark.parametrize("method", RECORD)
def test_credit_is_that_of_the_trl_integration(found: dict[str, dict[str, list]], method: str) -> None:
    for name in ("weights", "advantages"):
        mine, theirs = torch.tensor(found[method][name]), torch.tensor(RECORD[method][name])
        assert mine.shape == theirs.shape
        assert (mine - theirs).abs().max() < 1e-6
