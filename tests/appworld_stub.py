"""An AppWorld root for tests: a stub of the engine behind the real supervisor and confinement (inside/serve.py)."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

STUB = Path(__file__).parent / "fixtures" / "appworld_stub" / "stub.py"
PERSON = {"first_name": "Ada", "last_name": "Test", "email": "ada@example.com", "phone_number": "5550100100"}
TRAIN, DEV = ("a_1", "a_2", "flaky_1", "broken_1", "untested_1"), ("b_1",)


def make_root(root: Path, *, preamble: str = "") -> Path:
    """A root with tasks whose right answer is their id. The server runs the code in `preamble` before all else."""
    data = root / "data"
    for name, ids in (("train", TRAIN), ("dev", DEV)):
        write(data / "datasets" / f"{name}.txt", "\n".join(ids) + "\n")
        for task_id in ids:
            task = data / "tasks" / task_id
            specs = {"instruction": f"What is {task_id}?", "supervisor": PERSON, "datetime": "2024-03-01T09:00:00"}
            write(task / "specs.json", json.dumps(specs))
            write(task / "ground_truth" / "answer", task_id)
    # Beside the data, where the confined may read. `sitecustomize` is what Python runs first.
    stubs = data / "stubs"
    write(stubs / "sitecustomize.py", f"{preamble}\nimport stub\nstub.install()\n")
    shutil.copy(STUB, stubs / "stub.py")
    write(stubs / "appworld-0.0.dist-info" / "METADATA", "Metadata-Version: 2.1\nName: appworld\nVersion: 0.0\n")
    wrapper = root / "venv" / "bin" / "python"
    write(wrapper, f'#!/bin/sh\nPYTHONPATH={stubs} exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    return root


def act(*commands: str) -> Sequence[str]:
    """Actions that run commands of the stub."""
    return [f"<think></think><code>{command}</code>" for command in commands]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
