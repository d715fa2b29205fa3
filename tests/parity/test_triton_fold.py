"""The Triton kernel, run by Triton's interpreter in a process of its own, against the plain fold in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from _triton_worker import BROKEN_ROW, ENTROPY, LEADS, SHAPES, evidence_case, make_tile

from scgrpo.divergence import OutputHead, backends, token_evidence_reference, token_kl
from scgrpo.divergence.fold import fold_plain
from scgrpo.errors import ConfigError

WORKER = Path(__file__).parent / "_triton_worker.py"
needs_triton = pytest.mark.skipif(not backends.has_triton(), reason="Triton is not installed (Linux on x86 only)")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the kernel made of every case."""
    file = tmp_path_factory.mktemp("triton") / "found.pt"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(WORKER), str(file)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(file, weights_only=True)


@needs_triton
@pytest.mark.parametrize("entropy", ENTROPY, ids=["", "entropy"])
@pytest.mark.parametrize("lead", LEADS, ids=["reverse", "forward"])
@pytest.mark.parametrize("extreme", [False, True], ids=["ordinary", "1e4 apart"])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_the_kernel_is_the_plain_fold(
    found: dict[str, Any], rows: int, width: int, extreme: bool, lead: int, entropy: bool
) -> None:
    statistics = found["folds"][f"{rows}-{width}-{extreme}-{lead}-{entropy}"]
    expected = fold_plain(make_tile(rows, width, extreme).double(), lead, entropy)
    assert statistics.shape == expected.shape == (4 if entropy else 3, rows)
    torch.testing.assert_close(statistics, expected.float(), atol=1e-5, rtol=1e-5)


@needs_triton
def test_a_broken_logit_breaks_its_own_row_visibly(found: dict[str, Any]) -> None:
    whole = [found["folds"][f"4-1025-False-{lead}-True"] for lead in LEADS]
    others = [row for row in range(4) if row != BROKEN_ROW]
    assert len(found["broken"]) == 12
    for case, statistics in found["broken"].items():
        for broken, clean in zip(statistics, whole, strict=True):
            assert not broken[2, BROKEN_ROW].isfinite(), case  # row 2 is what token_kl is made of
            assert torch.equal(broken[:, others], clean[:, others]), case


@needs_triton
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evidence_by_the_kernel_end_to_end(found: dict[str, Any], dtype: torch.dtype, direction: Any) -> None:
    evidence = found["evidence"][f"{dtype}-{direction}"]
    student, teacher, tokens, head = evidence_case(dtype)
    exact = OutputHead(head.weight.double(), head.bias.double(), head.scale, head.softcap, head.temperature)
    expected = token_evidence_reference(student.double(), teacher.double(), tokens, exact, direction=direction)
    assert set(evidence) == set(vars(expected))
    for name, values in vars(expected).items():
        torch.testing.assert_close(evidence[name], values.float(), atol=5e-6, rtol=1e-5, msg=name)


def test_the_kernel_is_refused_on_a_cpu_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends, "has_triton", lambda: True)
    with pytest.raises(ConfigError, match=r"needs a GPU, and these tensors are on the CPU.*backend='auto'"):
        token_kl(torch.zeros(2, 4), torch.zeros(2, 4), OutputHead(torch.zeros(9, 4)), backend="triton")


def test_the_kernel_is_refused_where_triton_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "has_triton", lambda: False)
    with pytest.raises(ConfigError, match=r"needs Triton, which is not installed.*backend='auto'"):
        token_kl(torch.zeros(2, 4), torch.zeros(2, 4), OutputHead(torch.zeros(9, 4)), backend="triton")
