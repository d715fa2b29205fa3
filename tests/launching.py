"""Several real processes for one test (torchrun, gloo), which end with it: a hang fails and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TESTS = Path(__file__).parent
# Seconds until a run counts as hung; a busy machine needs several times what an idle one does.
PATIENCE = 900
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_CPU": "false"}
# How processes hold the model, by the name accelerate gives it.
SHARDINGS: dict[str, dict[str, str]] = {"MULTI_CPU": {}, "FSDP": FSDP, "DEEPSPEED": DEEPSPEED}


def launch(
    processes: int, arguments: Sequence[str], settings: Mapping[str, str] | None = None, *, patience: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS`, for several processes under torchrun.

    Raises:
        AssertionError: it has not ended within `patience` seconds.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), *arguments]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **(settings or {})}
    folders = [str(TESTS), str(TESTS / "integration"), *sys.path]
    environment["PYTHONPATH"] = os.pathsep.join(folders)
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        out, err = _end(process)
        raise AssertionError(f"{processes} process(es) still wait after {patience} s:\n{err[-3000:]}") from None
    except BaseException:
        _end(process)
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """End the launcher, which ends its workers: they are in sessions of their own, and killing it would free them."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()


def failure(result: subprocess.CompletedProcess[str]) -> str:
    """Why it failed: what the processes said, or else the launcher."""
    own = [line for line in result.stderr.splitlines() if line.startswith("[rank")]
    return "\n".join(own)[-3000:] or result.stderr[-3000:]
