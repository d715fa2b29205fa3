"""The benchmarks run, at sizes where their numbers mean nothing; nothing is timed here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("benchmarks") / "results.json"
    cases = ("token_kl", "precision", "memory", "teacher_pass", "update", "step", "growth")
    done = benchmarks("run", *cases, "--profile", "smoke", "--repetitions", "1", "--device", "cpu", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(out.read_text()))


def test_every_case_gives_its_tables_with_what_is_needed_to_repeat_them(results: dict[str, Any]) -> None:
    found = {table["case"] for table in results["tables"]}
    assert found == {"token_kl", "precision", "memory", "teacher_pass", "update", "step", "growth"}
    assert results["failed"] == []
    assert {"device", "date", "command", "repetitions", "versions", "floor"} <= results.keys()
    assert results["floor"]["bandwidth"] > 0
    for table in results["tables"]:
        timed = {row["name"]: row["ratio"] for row in table["rows"] if row["ratio"] is not None}
        if timed and table["case"] != "growth":
            assert timed[table["base"]] == 1.0


def test_the_candidates_of_the_update_are_all_there(results: dict[str, Any]) -> None:
    update = next(table for table in results["tables"] if table["case"] == "update")
    assert update["notes"] == []
    assert [row["name"].split(" (")[0].split(",")[0] for row in update["rows"]] == [
        *("GRPO", "GRPO", "GRPO", "SC-GRPO", "SC-GRPO", "SC-GRPO", "SC-GRPO as written: student pass", "SDPO")
    ]


def test_an_unknown_case_is_named() -> None:
    done = benchmarks("run", "token_lk")
    assert done.returncode == 2
    assert "no case token_lk; there are token_kl" in done.stderr


def test_a_case_that_fails_does_not_cost_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = (
        "import sys; from benchmarks import __main__ as m\n"
        "def broken(context):\n    raise RuntimeError('gone')\n"
        "m.CASES = {'broken': broken, 'precision': m.CASES['precision']}\n"
        "sys.exit(m.main(['run', '--profile', 'smoke', '--device', 'cpu', '--out', sys.argv[1]]))\n"
    )
    out = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "RuntimeError: gone" in done.stdout
    record = json.loads(out.read_text())
    assert record["failed"] == ["broken"]
    assert [table["case"] for table in record["tables"]] == ["precision"]


def test_the_gpu_machine_gets_every_wheel_that_is_needed_and_no_torch() -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.wheels import closure
    finally:
        sys.path.remove(str(ROOT))
    names = set(closure(("trl", "transformers", "datasets", "pytest")))
    assert {"trl", "transformers", "tokenizers", "safetensors", "pyarrow", "huggingface-hub", "pluggy"} <= names
    assert not {name for name in names if name.startswith(("torch", "nvidia", "triton"))}
