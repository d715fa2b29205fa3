"""`scgrpo sweep` for real: the embedded model, few steps, processes that are killed."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scgrpo.cli.main import main
from scgrpo.cli.sweep.directory import SweepDirectory
from scgrpo.runs import RunDirectory
from scgrpo.runs.results import RunKey, RunResult, read_results

TESTS = Path(__file__).resolve().parents[1]
STUDY: dict[str, Any] = {
    "name": "small",
    "settings": {
        "max_steps": 2,
        "max_train_rows": 64,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "eval_problems": 6,
        "eval_k": 2,
        "eval_every": 0,
    },
    "testbeds": {"reach": {"recipe": "reach"}},
    "methods": {"grpo": {"method": "grpo"}, "sc_grpo": {"method": "sc_grpo"}},
    "tune": {"learning_rates": [3e-4, 3e-3], "seeds": [100], "settings": {"task_options": {"eval_part": "tune"}}},
    "final": {"seeds": [0, 1], "settings": {"task_options": {"eval_part": "final"}}},
}
RUNS = 2 * 2 + 2 * 2


@pytest.fixture(autouse=True)
def importable_in_workers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Python ignores SIGINT where the shell started it in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def write(folder: Path, **parts: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **parts}))
    return path


def start(study: Path, out: Path) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    command = [sys.executable, "-m", "scgrpo.cli.main", "sweep", str(study), "--out", str(out), "--workers", "2"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for_lines(path: Path, number: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or len(path.read_text().splitlines()) < number:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lasting(out: Path) -> dict[RunKey, RunResult]:
    """Results without what differs from one time to the next."""
    found = {}
    for result in read_results(out / "results.jsonl"):
        assert result.compute is not None
        assert result.compute.seconds > 0
        compute = dataclasses.replace(result.compute, seconds=0.0, cpu_seconds=0.0)
        found[result.key] = dataclasses.replace(result, compute=compute)
    return found


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    times = ("seconds", "tokens_per_s", "time_s", "step_time", "teacher_pass_s")
    return {name: x for name, x in record.items() if not name.endswith(times) and not name.startswith("timing/")}


def rows(table: str) -> list[str]:
    return [line.rstrip() for line in table.splitlines() if line.startswith("  ")]


def interrupted_after_one(add: Callable[..., None]) -> Callable[..., None]:
    """Ctrl-C while the first result is being written."""

    def add_and_interrupt(directory: SweepDirectory, result: RunResult) -> None:
        add(directory, result)
        signal.raise_signal(signal.SIGINT)

    return add_and_interrupt


def test_a_killed_sweep_goes_on_and_gives_the_same_table(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write(tmp_path)
    assert main(["sweep", str(study), "--out", str(tmp_path / "whole"), "--workers", "2"]) == 0
    whole = capsys.readouterr().out

    killed = start(study, tmp_path / "killed")
    wait_for_lines(tmp_path / "killed" / "results.jsonl", 2, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    done = (tmp_path / "killed" / "results.jsonl").read_text().splitlines()
    assert 2 <= len(done) < RUNS

    again = ["sweep", str(study), "--out", str(tmp_path / "killed"), "--workers", "1"]
    # Stopped by hand, the same: it says how to go on.
    monkeypatch.setattr(SweepDirectory, "add", interrupted_after_one(SweepDirectory.add))
    assert main(again) == 1
    assert "The same command goes on from here." in capsys.readouterr().out
    monkeypatch.undo()
    assert len((tmp_path / "killed" / "results.jsonl").read_text().splitlines()) == len(done) + 1

    assert main(again) == 0
    resumed = capsys.readouterr().out
    assert (tmp_path / "killed" / "results.jsonl").read_text().splitlines()[: len(done)] == done, "not made again"
    assert len(lasting(tmp_path / "whole")) == RUNS
    assert lasting(tmp_path / "killed") == lasting(tmp_path / "whole")
    assert rows(resumed) == rows(whole)
    assert sum(line.split()[:2] == ["grpo", "2/2"] for line in rows(whole)) == 1
    assert "tuning: mean Avg@k" in whole

    before = (tmp_path / "killed" / "results.jsonl").read_bytes()
    begun = time.monotonic()
    assert main(["sweep", str(study), "--out", str(tmp_path / "killed"), "--dry-run"]) == 0
    assert "8 runs" in capsys.readouterr().out
    assert main(["sweep", str(study), "--out", str(tmp_path / "killed")]) == 0
    assert rows(capsys.readouterr().out) == rows(whole)
    assert time.monotonic() - begun < 5, "nothing to do, no worker started"
    assert (tmp_path / "killed" / "results.jsonl").read_bytes() == before

    changed = write(tmp_path, methods={**STUDY["methods"], "sc_grpo": {"method": "sc_grpo", "credit_mix": 0.5}})
    assert main(["sweep", str(changed), "--out", str(tmp_path / "killed")]) == 2
    assert "4 finished run(s)" in (shown := capsys.readouterr().err)
    assert "credit_mix" in shown
    assert "--redo-changed" in shown


def test_a_run_is_what_the_plain_command_gives(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    parts = {"tune": None, "final": {"seeds": [3], "learning_rates": [1e-3]}, "keep": ["model", "rollouts"]}
    study = write(tmp_path, **parts, settings={**STUDY["settings"], "eval_every": 1, "rollouts_every": 1})
    assert main(["sweep", str(study), "--out", str(tmp_path / "sweep"), "--workers", "1"]) == 2
    assert "settings.rollouts_every: the sweep itself decides" in capsys.readouterr().err
    study = write(tmp_path, **parts, settings={**STUDY["settings"], "eval_every": 1})
    assert main(["sweep", str(study), "--out", str(tmp_path / "sweep"), "--workers", "1"]) == 0
    results = {result.method: result for result in read_results(tmp_path / "sweep" / "results.jsonl")}
    for method, result in results.items():
        ours = RunDirectory.open(tmp_path / "sweep" / result.path)
        (started,) = ours.provenance()["starts"]
        assert started["command"][:2] == ["scgrpo", "train"]
        # Its own command, on its own.
        assert main([*started["command"][1:], "--output_dir", str(tmp_path / method)]) == 0
        plain = RunDirectory.open(tmp_path / method)
        assert [untimed(record) for record in ours.evals()] == [untimed(record) for record in plain.evals()]
        assert [untimed(record) for record in ours.metrics()] == [untimed(record) for record in plain.metrics()]
        assert (ours.model_dir / "model.safetensors").read_bytes() == (
            plain.model_dir / "model.safetensors"
        ).read_bytes()
        assert ours.rollout_steps() == plain.rollout_steps()

        evals, metrics = plain.evals(), plain.metrics()
        assert [point.step for point in result.curve] == [0, 1, 2]
        assert [point.avg_at_k for point in result.curve] == [e["avg_at_k"]["value"] for e in evals]
        assert [len(point.problems) for point in result.curve] == [0, 0, 6]
        assert [p.problem_id for p in result.curve[-1].problems] == [
            p["problem_id"] for p in evals[-1]["per_problem"]
        ]
        assert result.compute is not None
        assert result.compute.updates == 2
        assert result.compute.tokens_sampled == metrics[-1]["compute/tokens_sampled"]
        assert [p.tokens_sampled for p in result.curve] == [0, *(m["compute/tokens_sampled"] for m in metrics)]
        assert result.diagnostics["entropy"] == pytest.approx(sum(m["entropy"] for m in metrics) / 2, rel=1e-4)
    assert (results["grpo"].compute, results["sc_grpo"].compute) != (None, None)
    assert results["grpo"].compute.teacher_forward_tokens == 0  # type: ignore[union-attr]
    assert results["sc_grpo"].compute.teacher_forward_tokens > 0  # type: ignore[union-attr]
    assert results["grpo"].settings == {"method": "grpo"}
    # The second run took its first evaluation from the first one's.
    assert len(list((tmp_path / "sweep" / "cache").iterdir())) == 1
    assert results["grpo"].curve[0] == results["sc_grpo"].curve[0]


def test_failures_are_results_too(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    study = write(
        tmp_path,
        methods={"grpo": {"method": "grpo"}, "broken": {"method": "grpo", "attn_implementation": "nonsense"}},
        settings={**STUDY["settings"], "max_steps": 3, "warmup_steps": 0},
        tune={**STUDY["tune"], "learning_rates": [3e-4, 1e39]},
        final={**STUDY["final"], "seeds": [0]},
    )
    assert main(["sweep", str(study), "--out", str(tmp_path / "out"), "--workers", "1"]) == 1
    shown = capsys.readouterr().out
    results = read_results(tmp_path / "out" / "results.jsonl")
    (diverged,) = [result for result in results if (result.method, result.learning_rate) == ("grpo", 1e39)]
    assert diverged.status == "failed"
    assert "nan" in diverged.error.lower(), diverged.error
    assert [point.step for point in diverged.curve] == [0], "what there was of it"
    assert diverged.compute is None
    broken = [result for result in results if result.method == "broken"]
    assert [(result.stage, result.status) for result in broken] == [("tune", "failed")] * 2 + [("final", "failed")]
    assert "nonsense" in broken[0].error
    assert "every learning rate failed in tuning" in broken[-1].error
    assert [(r.learning_rate, r.status) for r in results if (r.stage, r.method) == ("final", "grpo")] == [
        (3e-4, "done")
    ]
    assert "every rate failed" in shown
    assert "0.0003 (smallest)" in shown
    assert "4 run(s) failed; --retry-failed" in shown


def test_mistakes_are_named_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    study = write(tmp_path, methods={"grpo": {"metod": "grpo"}})
    assert main(["sweep", str(study), "--out", str(tmp_path / "out")]) == 2
    assert "methods.grpo: unknown setting(s) metod (did you mean method?)" in capsys.readouterr().err
    assert main(["sweep", str(write(tmp_path)), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "time not known yet" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
