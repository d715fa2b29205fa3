"""`scgrpo eval` as a user meets it: folders that go on, interruptions, several tasks, comparisons, refusals."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scgrpo.cli.main import main

BASE = ["eval", "--model", "tiny", "--problems", "4", "--batch_size", "8", "--max_new_tokens", "16"]
SLOW_TASK = """
import os, time
from scgrpo.tasks.reach import ReachTask

class Slow(ReachTask):
    name = "slow"

    def verify(self, completions, rows):
        time.sleep(float(os.environ.get("NAP_S", "0")))
        return super().verify(completions, rows)
"""


def run(*arguments: str | Path) -> int:
    return main([*BASE, *map(str, arguments)])


def numbers(path: Path) -> dict[str, Any]:
    """All but the times."""
    record = json.loads(path.read_text())
    return {name: value for name, value in record.items() if name not in ("seconds", "tokens_per_s")}


def test_an_evaluation_with_all_there_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--task", "reach", "--k", "1", "4", "--num_samples", "8", "--out", tmp_path / "out"]
    assert run(*options, "--json", tmp_path / "first.json") == 0
    shown = capsys.readouterr().out
    for label in ("Avg@8", "success", "Pass@4", "95 % interval", "ungraded 0.00% (0 errors, 0 timeouts)"):
        assert label in shown
    record = json.loads((tmp_path / "first.json").read_text())
    assert (record["k"], record["num_samples"], list(record["pass_at"])) == (4, 8, ["1", "4"])
    assert record["pass_at"]["4"] == record["pass_at_k"]
    assert record["settings"] == {"model": "tiny", "revision": None, "task_options": {}, "split": "eval"}
    assert run(*options, "--json", tmp_path / "second.json") == 0
    assert numbers(tmp_path / "first.json") == numbers(tmp_path / "second.json")
    assert run(*options, "--temperature", "0.9") == 2
    assert "temperature was 0.6, is 0.9" in capsys.readouterr().err
    assert run("--task", "reach", "--k", "9", "--num_samples", "8") == 2
    assert "n samples say nothing unbiased about Pass@k of k > n" in capsys.readouterr().err


def test_several_tasks_in_one_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--task", "reach", "countdown", "--k", "2", "--out", tmp_path / "out", "--json", tmp_path / "all.json"]
    assert run(*options, "--task_options", '{"reach": {"eval_part": "tune"}}') == 0
    shown = capsys.readouterr().out
    assert shown.index("reach:") < shown.index("countdown:")
    records = json.loads((tmp_path / "all.json").read_text())
    assert [record["task"] for record in records] == ["reach", "countdown"]
    assert [record["settings"]["task_options"] for record in records] == [{"eval_part": "tune"}, {}]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["countdown", "reach"]
    assert run(*options, "--task_options", '{"eval_part": "tune"}') == 2
    assert "has 'eval_part', which is none of the tasks reach, countdown" in capsys.readouterr().err


def test_a_run_on_its_own_and_another_task(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from scgrpo.runs import RunDirectory
    from scgrpo.tiny import tiny_model_path

    trained = RunDirectory.create(tmp_path / "run")
    trained.write_config(
        {
            "run": {"task": "reach", "task_options": {"eval_part": "tune"}, "eval_problems": 4, "eval_k": 2},
            "train": {"max_completion_length": 16, "max_steps": 3, "success_threshold": 0.5, "use_cpu": True},
            "model": {"name_or_path": "tiny"},
            "task": {"name": "reach", "eval_part": "tune"},
        }
    )
    shutil.copytree(tiny_model_path(), trained.model_dir)
    command = ["eval", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert main([*command, "--task", "reach", "countdown", "--json", str(tmp_path / "all.json")]) == 0
    evals = trained.evals()
    assert [(e["label"], e["step"], e["task"]) for e in evals] == [
        ("before", 0, "reach"),
        ("before", 0, "countdown"),
        ("after", 3, "reach"),
        ("after", 3, "countdown"),
    ]
    assert [e["settings"]["task_options"] for e in evals] == [{"eval_part": "tune"}, {}] * 2
    assert {(e["num_problems"], e["k"], e["max_new_tokens"], e["success_threshold"]) for e in evals} == {
        (4, 2, 16, 0.5)
    }
    assert [e["label"] for e in json.loads((tmp_path / "all.json").read_text())] == ["after", "after"]
    folders = {str(path.parent.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("result.json")}
    assert folders == {"reach/before", "reach/after", "countdown/before", "countdown/after"}
    assert main(["eval", "--run", str(tmp_path / "run")]) == 0
    assert [(e["label"], e["task"]) for e in trained.evals()[4:]] == [("after", "reach")], "before is known"
    for more in (["--max_new_tokens", "8"], ["--task_options", '{"eval_part": "final"}']):
        assert main(["eval", "--run", str(tmp_path / "run"), *more]) == 0
        assert [e["label"] for e in trained.evals()[-2:]] == ["before", "after"], "but not like this"
    assert main(["eval", "--run", str(tmp_path / "run")]) == 0
    assert len(trained.evals()) == 10
    capsys.readouterr()
    assert main(["eval", "--compare", str(tmp_path / "out" / "reach" / "before"), str(tmp_path / "run")]) == 0
    assert "No difference in Avg@2 can be told from chance." in capsys.readouterr().out
    assert main(["eval", "--compare", str(tmp_path / "run"), str(tmp_path / "run"), "--task", "countdown"]) == 0
    assert "4 problems of countdown on both sides." in capsys.readouterr().out


def test_comparisons_by_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, temperature in (("a", "0.6"), ("b", "0.6"), ("hot", "1.0")):
        out = ["--out", tmp_path / name, "--seed", str(ord(name[0]))]
        assert run("--task", "reach", "--k", "4", "--temperature", temperature, *out) == 0
    capsys.readouterr()
    pair = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["eval", "--compare", *pair, "--json", str(tmp_path / "difference.json")]) == 0
    shown = capsys.readouterr().out
    assert "4 problems of reach on both sides." in shown
    assert "sign-flip p" in shown
    record = json.loads((tmp_path / "difference.json").read_text())
    assert record["differences"]["Avg@4"]["num_units"] == 4
    assert main(["eval", "--compare", str(tmp_path / "a"), str(tmp_path / "hot")]) == 2
    assert "temperature was 0.6, is 1.0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["eval", "--compare", *pair, "--model", "tiny"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "raech"], "There is no task 'raech'.\nDid you mean 'reach'?"),
        (["--task", "reach", "--task_options", '{"parts": "tune"}'], "has no option 'parts'"),
        (["--task", "reach", "--engine", "vllm"], "pip install vllm"),
        (["--task", "reach", "--problems", "0"], "--problems is 0."),
        (["--task", "reach", "--json", "no/such/folder/x.json"], "--json no/such/folder/x.json cannot be written."),
        (["--task", "reach", "--temperature", "nan"], "temperature=nan"),
        (["--task", "reach", "--device", "nowhere"], "does not go to the device 'nowhere'"),
        (["--task", "reach", "--dtype", "float17"], "There is no dtype 'float17'"),
        (["--task", "reach", "--engine_options", '{"seed": 1}'], "are not for --engine transformers"),
    ],
)
def test_what_cannot_be_evaluated(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("given", ["{", "[1]"])
def test_options_that_are_no_mapping(given: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        run("--task", "reach", "--task_options", given)
    assert given in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([], None, "there are no rows"),
        ([{"problem": "1 + 1?", "answer": 2}], {"answer": "result"}, "column 'result' (the answer) is missing"),
    ],
)
def test_data_that_cannot_be_used(
    tmp_path: Path, rows: list[dict], columns: dict | None, message: str, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("math_verify")
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    options = {"dataset_name": str(data), "columns": columns}
    assert run("--task", "math", "--task_options", json.dumps(options)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "rows.jsonl" in error


def test_repeated_rows_count_once(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    data = tmp_path / "rows.jsonl"
    data.write_text('{"problem": "1 + 1?", "answer": 2}\n' * 3 + '{"problem": "1 + 2?", "answer": 3}\n')
    options = ["--task", "math", "--task_options", json.dumps({"dataset_name": str(data)}), "--k", "1"]
    assert run(*options, "--split", "train", "--json", tmp_path / "out.json") == 0
    assert numbers(tmp_path / "out.json")["num_problems"] == 1, "of two problems one is held out"


def test_too_many_errors_are_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "crashing_task.py").write_text(
        SLOW_TASK.replace(
            '        time.sleep(float(os.environ.get("NAP_S", "0")))', '        raise OSError("no compiler")'
        )
    )
    sys.path.insert(0, str(tmp_path))
    try:
        assert run("--task", "crashing_task:Slow", "--k", "2") == 0
        assert "error: problem " in capsys.readouterr().out
        assert run("--task", "crashing_task:Slow", "--k", "2", "--max_error_frac", "0.5") == 1
    finally:
        sys.path.remove(str(tmp_path))
    shown = capsys.readouterr()
    assert "100.00% of the completions of slow have no grade" in shown.err
    assert "the verifier raised OSError('no compiler')" in shown.out
    assert "... and 3 more without a grade" in shown.out


@pytest.fixture
def slow(tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Starts `scgrpo eval` of the slow task as a process of its own."""
    (tmp_path / "slow_task.py").write_text(SLOW_TASK)

    def start(out: Path, nap_s: float = 0.0, **more: Any) -> subprocess.Popen:
        command = [sys.executable, "-m", "scgrpo.cli.main", *BASE, "--task", "slow_task:Slow", "--k", "8"]
        paths = os.pathsep.join([str(tmp_path), *sys.path])
        return subprocess.Popen(
            [*command, "--out", str(out)],
            env={**os.environ, "PYTHONPATH": paths, "NAP_S": str(nap_s)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    return start


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_it_goes_on(slow: Callable[..., subprocess.Popen], tmp_path: Path, how: int) -> None:
    whole = slow(tmp_path / "whole")
    assert whole.wait(timeout=300) == 0, whole.stderr.read()
    process = slow(tmp_path / "parts", nap_s=3.0)
    completions = tmp_path / "parts" / "completions.jsonl"
    deadline = time.monotonic() + 300
    while not (completions.exists() and completions.read_bytes().count(b"\n") >= 8):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(how)
    _, error = process.communicate(timeout=300)
    kept = completions.read_bytes().count(b"\n")
    assert 8 <= kept < 32
    if how == signal.SIGINT:
        assert process.returncode == 1
        assert f"interrupted; {kept} graded completions are kept in {tmp_path / 'parts'}" in error
        assert "Traceback" not in error
    again = slow(tmp_path / "parts")
    assert again.wait(timeout=300) == 0, again.stderr.read()
    assert numbers(tmp_path / "parts" / "result.json") == numbers(tmp_path / "whole" / "result.json")
    starts = json.loads((tmp_path / "parts" / "settings.json").read_text())["starts"]
    assert len(starts) == 2


def test_a_full_disk_is_said_and_costs_nothing_that_was_done(
    slow: Callable[..., subprocess.Popen], tmp_path: Path
) -> None:
    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    process = slow(tmp_path / "out", preexec_fn=little_room)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 2, error
    assert "completions.jsonl: File too large." in error
    assert "Make room, and start the same command again" in error
    assert "Traceback" not in error
    kept = (tmp_path / "out" / "completions.jsonl").read_bytes().count(b"\n")
    assert 8 <= kept < 32
    again = slow(tmp_path / "out")
    assert again.wait(timeout=300) == 0, again.stderr.read()
    assert numbers(tmp_path / "out" / "result.json")["num_samples"] == 8
