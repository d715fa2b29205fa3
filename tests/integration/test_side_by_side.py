"""Methods trained at the same time, each in a process of its own."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from scgrpo.cli import beside, run, train
from scgrpo.cli.beside import Job, SideRuns, enough_cores
from scgrpo.cli.main import main
from scgrpo.errors import RunError

ARGUMENTS = ["--config", "reach", "--max_steps", "2", "--eval_problems", "4", "--eval_k", "2", "--eval_every", "0"]
ARGUMENTS += ["--max_train_rows", "64", "--per_device_train_batch_size", "16", "--num_generations", "4"]
JOB = Job(argv=["--credit", "uniform"], path="runs/x-uniform", beside=["../x"])


def train_into(out: Path, monkeypatch: pytest.MonkeyPatch, *, at_once: bool) -> int:
    monkeypatch.setattr(train, "_at_once", lambda parsed, runs: at_once)
    return main(["train", *ARGUMENTS, "--output_dir", str(out)])


def evaluations(run_directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_directory / "evals.jsonl").read_text().splitlines()]


def lasting(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("seconds", "tokens_per_s")}


def test_at_once_gives_what_one_after_another_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert train_into(tmp_path / "turn", monkeypatch, at_once=False) == 0
    capsys.readouterr()
    assert train_into(tmp_path / "once", monkeypatch, at_once=True) == 0
    shown = capsys.readouterr().out
    assert "uniform     : step 2/2" in shown
    assert "sc_grpo     : step 2/2" in shown
    for suffix in ("", "-uniform"):
        turn, once = tmp_path / f"turn{suffix}", tmp_path / f"once{suffix}"
        weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (turn, once)]
        assert weights[0] == weights[1]
        assert [lasting(e) for e in evaluations(turn)] == [lasting(e) for e in evaluations(once)]
        assert (once / "report.html").stat().st_size > 10_000
    assert json.loads((tmp_path / "once-uniform" / "config.resolved.json").read_text())["beside"] == ["../once"]
    first, second = (
        json.loads((tmp_path / name / "provenance.json").read_text())["starts"][0]["command"]
        for name in ("once", "once-uniform")
    )
    assert first == ["scgrpo", "train", *ARGUMENTS, "--output_dir", str(tmp_path / "once")]
    assert second == [*first, "--credit", "uniform"], "the same program with what makes this run"


def test_the_evaluation_before_training_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    evaluate = run.evaluate
    monkeypatch.setattr(run, "evaluate", lambda *args, **kwargs: calls.append(1) or evaluate(*args, **kwargs))
    assert train_into(tmp_path / "run", monkeypatch, at_once=False) == 0
    assert len(calls) == 3, "before; after each method"
    before = [evaluations(tmp_path / name)[0] for name in ("run", "run-uniform")]
    assert before[0] == before[1]
    assert before[0]["label"] == "before"


def test_a_run_that_fails_leaves_the_others_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "run-uniform").mkdir()
    (tmp_path / "run-uniform" / "notes.txt").write_text("in use")
    assert train_into(tmp_path / "run", monkeypatch, at_once=True) == 2
    shown = capsys.readouterr()
    assert "exists and is not empty" in shown.out
    assert "run-uniform" in shown.err
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert [e["label"] for e in evaluations(tmp_path / "run")] == ["before", "after"]


def side_runs(code: str) -> tuple[SideRuns, io.StringIO]:
    out = io.StringIO()
    return SideRuns(Console(file=out, width=80), (sys.executable, "-u", "-c", code)), out


def test_lines_of_a_process_are_printed_as_they_are() -> None:
    code = "import json, sys; print('[red]', json.load(sys.stdin)['path'], 'x' * 90); print('e', file=sys.stderr)"
    side, out = side_runs(code)
    with side:
        side.start(JOB)
        side.wait()
    assert out.getvalue() == f"[red] runs/x-uniform {'x' * 90}\ne\n"


def test_a_process_that_fails_is_named() -> None:
    side, _ = side_runs("import sys; sys.exit(3)")
    with side:
        side.start(JOB)
        with pytest.raises(RunError, match="runs/x-uniform"):
            side.wait()


def test_no_process_outlives_the_first_one() -> None:
    side, out = side_runs("import time\nwhile True: time.sleep(0.01)")
    with contextlib.suppress(KeyboardInterrupt), side:
        side.start(JOB)
        raise KeyboardInterrupt
    assert side._processes[0][0].poll() is not None
    assert out.getvalue() == ""


def test_a_core_for_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert enough_cores(2, 1)
    assert not enough_cores(3, 1)
    assert not enough_cores(2, 2)
    assert not enough_cores(2, None), "torch would take all cores in each"


@pytest.mark.parametrize(("name", "own"), [("scgrpo", "True"), ("mine.py", "False")])
def test_another_program_is_not_started_again(name: str, own: str, tmp_path: Path) -> None:
    script = tmp_path / name
    script.write_text("from scgrpo.cli.beside import is_own_command\nprint(is_own_command())")
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == own


REASONS = ("nothing", "not asked for", "one run", "no CPU", "launched", "cores", "program")


@pytest.mark.parametrize("against", REASONS)
def test_when_runs_go_side_by_side(against: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = train.parse_train(ARGUMENTS)
    parsed.run.side_by_side = against != "not asked for"
    parsed.trainer.use_cpu = against != "no CPU"
    processes = SimpleNamespace(num_processes=2 if against == "launched" else 1)
    monkeypatch.setattr(train, "PartialState", lambda: processes)
    monkeypatch.setattr(train, "enough_cores", lambda runs, threads: against != "cores")
    monkeypatch.setattr(train, "is_own_command", lambda: against != "program")
    assert train._at_once(parsed, 1 if against == "one run" else 2) is (against == "nothing")
