"""The run directory: what is written, what survives a crash, what is refused."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scgrpo.errors import MissingExtraError, RunError, ShapeError
from scgrpo.runs import SCHEMA_VERSION, RolloutRow, RunDirectory
from scgrpo.runs.files import mend_last_line, replace_text


def row(**changes: Any) -> RolloutRow:
    values: dict[str, Any] = {
        "step": 10,
        "group": 3,
        "rollout": 1,
        "problem_id": "reach/7",
        "prompt": "from 5 to 16",
        "completion": "add 3",
        "tokens": ["add", " 3"],
        "token_ids": [7, 8],
        "is_special": [False, False],
        "mask": [True, False],
        "rewards": {"reach": 1.0, "length": None},
        "solved": True,
        "status": "graded",
        "detail": "",
        "route": "partial",
        "demonstration": 0,
        "demonstration_text": "double",
        "teacher_prompt": "shown: double",
        "demonstration_truncated": False,
        "advantage": 0.1,
        "token_kl": [0.25, 0.0],
        "credit_weights": [0.5, 0.0],
        "student_logps": [-1.5, -0.25],
        "teacher_logps": [-0.5, -0.25],
    }
    return RolloutRow(**{**values, **changes})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs" / "one")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


# --- records ---


def test_metrics_are_flat_versioned_lines(run: RunDirectory) -> None:
    run.log_metrics(1, {"reward": 0.5, "credit/threshold": 1e-4}, time_s=2.5)
    run.log_metrics(2, {"reward": 1}, time_s=5)
    assert lines(run.path / "metrics.jsonl")[0] == (
        '{"schema_version": 1, "step": 1, "time_s": 2.5, "reward": 0.5, "credit/threshold": 0.0001}'
    )
    assert [record["reward"] for record in run.metrics()] == [0.5, 1.0]


def test_what_is_not_finite_is_null_and_the_json_strict(run: RunDirectory) -> None:
    run.log_metrics(1, {"a": math.nan, "b": math.inf, "c": -math.inf}, time_s=0)
    run.log_eval({"step": 1, "pass_at_k": {"value": math.nan}, "list": [math.inf, 1.0]})
    for name in ("metrics.jsonl", "evals.jsonl"):
        assert "NaN" not in (run.path / name).read_text()
        assert "Infinity" not in (run.path / name).read_text()
    assert run.metrics()[0] | {"time_s": 0} == {
        "schema_version": 1, "step": 1, "time_s": 0, "a": None, "b": None, "c": None,
    }  # fmt: skip
    assert run.evals()[0] == {"schema_version": 1, "step": 1, "pass_at_k": {"value": None}, "list": [None, 1.0]}


def test_a_metric_may_not_take_the_name_of_a_field(run: RunDirectory) -> None:
    with pytest.raises(RunError, match="'step'"):
        run.log_metrics(1, {"step": 3.0}, time_s=0)
    assert run.metrics() == []


def test_an_evaluation_needs_a_step_and_json_values(run: RunDirectory) -> None:
    with pytest.raises(RunError, match="step None"):
        run.log_eval({"label": "after"})
    with pytest.raises(RunError, match="cannot be written as JSON"):
        run.log_eval({"step": 1, "value": object()})
    assert run.evals() == []


def test_the_version_of_a_record_is_this_packages(run: RunDirectory) -> None:
    run.log_eval({"schema_version": 99, "step": 1})
    assert run.evals() == [{"schema_version": SCHEMA_VERSION, "step": 1}]


def test_config_round_trips_with_odd_values_as_text(run: RunDirectory) -> None:
    run.write_config({"recipe": "reach", "train": {"output_dir": Path("a/b"), "lr": 1e-6}})
    assert run.config() == {"schema_version": 1, "recipe": "reach", "train": {"output_dir": "a/b", "lr": 1e-6}}


def test_a_new_run_reads_as_empty(run: RunDirectory) -> None:
    assert (run.config(), run.metrics(), run.evals(), run.rollout_steps()) == ({}, [], [], [])
    assert run.provenance() == {"schema_version": 1, "starts": []}
    assert run.checkpoints_dir.is_dir()
    assert run.report_path == run.path / "report.html"


# --- crashes ---


def test_a_cut_last_line_is_left_out_and_told(run: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    run.log_metrics(1, {"reward": 0.5}, time_s=0)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"schema_version": 1, "step": 2, "rew')
    reader = RunDirectory.open(run.path)
    assert [record["step"] for record in reader.metrics()] == [1]
    assert reader.notes == ["metrics.jsonl, line 2: cut short by a crash, left out."]
    assert "metrics.jsonl, line 2" in caplog.text
    reader.metrics()
    assert len(reader.notes) == 1


@pytest.mark.parametrize("tail", [b'{"schema_version": 1, "st', b"\x00\x00\x00", b'{"schema_version": 1, "\xf0\x9f'])
def test_appending_after_a_crash_glues_nothing(run: RunDirectory, tail: bytes) -> None:
    run.log_metrics(1, {}, time_s=0)
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    again = RunDirectory.create(run.path, on_exists="resume")
    again.log_metrics(2, {}, time_s=0)
    again.log_metrics(3, {}, time_s=0)
    assert [record["step"] for record in again.metrics()] == [1, 2, 3]
    assert again.notes == []


def test_a_last_line_that_lacks_only_its_end_is_kept(run: RunDirectory) -> None:
    run.log_metrics(1, {}, time_s=0)
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    again = RunDirectory.create(run.path, on_exists="resume")
    again.log_metrics(2, {}, time_s=0)
    assert [record["step"] for record in again.metrics()] == [1, 2]


@pytest.mark.parametrize(
    ("last", "then"),
    [
        (b'{"step": 1}\n', b'{"step": 1}\n'),
        (b'{"step": 1}', b'{"step": 1}\n'),
        (b'{"ste', b""),
        (b'{"ste\n', b""),
        (b"\n", b"\n"),
    ],
)
@pytest.mark.parametrize("before", [b"", b"not JSON: it is not looked at\n"])
def test_mending_looks_at_the_last_line_alone(tmp_path: Path, before: bytes, last: bytes, then: bytes) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(before + last)
    mend_last_line(path)
    assert path.read_bytes() == before + then


def test_mending_what_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    mend_last_line(path)
    assert not path.exists()
    path.touch()
    mend_last_line(path)
    assert path.read_bytes() == b""


def test_a_damaged_middle_line_names_file_and_line(run: RunDirectory) -> None:
    run.log_metrics(1, {}, time_s=0)
    good = (run.path / "metrics.jsonl").read_text()
    (run.path / "metrics.jsonl").write_text(good + '{"schema_ver\n' + good)
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2 is not a JSON object"):
        run.metrics()


@pytest.mark.parametrize("line", ["[1, 2]", "3", "null", '"text"'])
def test_a_line_that_is_no_object_is_damaged(run: RunDirectory, line: str) -> None:
    good = '{"schema_version": 1, "step": 1}\n'
    (run.path / "evals.jsonl").write_text(line + "\n" + good)
    with pytest.raises(RunError, match="line 1 is not a JSON object"):
        run.evals()


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ('{"schema_version": 2, "step": 1}', "schema_version 2; this scgrpo reads up to 1"),
        ('{"schema_version": "1", "step": 1}', "schema_version '1'"),
        ('{"schema_version": true, "step": 1}', "schema_version True"),
        ('{"step": 1}', "schema_version None"),
        ('{"schema_version": 1}', "line 1 has no step"),
    ],
)
def test_records_of_another_schema_are_refused(run: RunDirectory, record: str, problem: str) -> None:
    (run.path / "metrics.jsonl").write_text(record + "\n")
    with pytest.raises(RunError, match=problem):
        run.metrics()


def test_a_newer_config_is_refused(run: RunDirectory) -> None:
    (run.path / "config.resolved.json").write_text('{"schema_version": 2}')
    with pytest.raises(RunError, match="Upgrade scgrpo"):
        run.config()
    (run.path / "config.resolved.json").write_text("{")
    with pytest.raises(RunError, match="not a JSON object"):
        run.config()


def test_a_failed_replacement_leaves_the_old_file(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_config({"recipe": "old"})

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RunError, match="No space left on device"):
        run.write_config({"recipe": "new"})
    assert run.config()["recipe"] == "old"
    assert not list(run.path.glob(".*.tmp"))


def test_replacing_in_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Cannot write"):
        replace_text(tmp_path / "none" / "file", "text")


# --- rollouts ---


def test_rollouts_round_trip(run: RunDirectory) -> None:
    unscored = row(
        rollout=2, solved=None, status="timeout", detail="10 s", route="fallback", demonstration=None,
        demonstration_text=None, teacher_prompt=None, token_kl=None, student_logps=None, teacher_logps=None,
        credit_weights=[1.0, 1.0], rewards={"reach": None}, completion='<script>"\n',
    )  # fmt: skip
    run.write_rollouts(10, [row(), unscored])
    run.write_rollouts(2, [])
    assert run.rollout_steps() == [2, 10]
    assert run.rollouts(10) == [row(), unscored]
    assert run.rollouts(2) == []
    assert (run.path / "rollouts" / "step-000010.parquet").exists()


def test_empty_completions_and_lone_surrogates_are_kept(run: RunDirectory) -> None:
    empty: dict[str, Any] = dict.fromkeys(
        ("tokens", "token_ids", "is_special", "mask", "token_kl", "credit_weights", "student_logps", "teacher_logps")
    )
    empty = {name: [] for name in empty}
    run.write_rollouts(1, [row(completion="", **empty), row(tokens=["\ud83d", "x"], completion="\ud83dx")])
    first, second = run.rollouts(1)
    assert (first.tokens, first.token_kl) == ([], [])
    assert (second.tokens, second.completion) == (["\\ud83d", "x"], "\\ud83dx")


@pytest.mark.parametrize("name", ["token_ids", "mask", "token_kl", "credit_weights", "teacher_logps", "is_special"])
def test_lists_of_another_length_are_refused(name: str) -> None:
    with pytest.raises(ShapeError, match=f"{name} has 3 entries for 2 tokens"):
        row(**{name: [1, 0, 1]})


def test_rollouts_of_a_newer_or_unknown_schema_are_refused(run: RunDirectory) -> None:
    import pyarrow
    import pyarrow.parquet

    path = run.path / "rollouts" / "step-000001.parquet"
    table = pyarrow.table({"step": [1]})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"scgrpo.schema_version": "2"}), path)
    with pytest.raises(RunError, match="Upgrade scgrpo"):
        run.rollouts(1)
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(RunError, match="schema_version None"):
        run.rollouts(1)
    pyarrow.parquet.write_table(table.replace_schema_metadata({"scgrpo.schema_version": "1"}), path)
    with pytest.raises(RunError, match="lacks the columns advantage"):
        run.rollouts(1)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(RunError, match="cannot be read"):
        run.rollouts(1)


def test_a_step_that_was_not_recorded(run: RunDirectory) -> None:
    run.write_rollouts(4, [row()])
    with pytest.raises(RunError, match=r"Recorded steps: \[4\]"):
        run.rollouts(5)


def test_without_pyarrow_the_extra_is_named(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"scgrpo\[report\]"):
        run.write_rollouts(1, [row()])


# --- an existing folder ---


def filled(path: Path) -> RunDirectory:
    run = RunDirectory.create(path)
    run.write_config({"recipe": "reach"})
    for step in (1, 2, 3):
        run.log_metrics(step, {"reward": step}, time_s=step)
        run.log_eval({"step": step, "label": "during"})
        run.write_rollouts(step, [row(step=step)])
    (run.checkpoints_dir / "checkpoint-2").mkdir()
    run.model_dir.mkdir()
    run.report_path.write_text("page")
    return run


def test_a_folder_in_use_offers_the_three_ways_out(tmp_path: Path) -> None:
    filled(tmp_path / "run")
    with pytest.raises(RunError, match=r"Resume that run .* choose another name, or replace it") as caught:
        RunDirectory.create(tmp_path / "run")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_empty_folder_is_not_in_use(tmp_path: Path) -> None:
    assert RunDirectory.create(tmp_path).path == tmp_path


def test_resume_keeps_everything(tmp_path: Path) -> None:
    filled(tmp_path / "run")
    run = RunDirectory.create(tmp_path / "run", on_exists="resume")
    assert [record["step"] for record in run.metrics()] == [1, 2, 3]
    assert run.rollout_steps() == [1, 2, 3]


def test_overwrite_deletes_what_a_run_writes_and_nothing_else(tmp_path: Path) -> None:
    filled(tmp_path / "run")
    mine = tmp_path / "run" / "notes.txt"
    mine.write_text("keep me")
    (tmp_path / "run" / "rollouts" / "my.parquet").write_text("keep me too")
    run = RunDirectory.create(tmp_path / "run", on_exists="overwrite")
    assert (run.config(), run.metrics(), run.evals(), run.rollout_steps()) == ({}, [], [], [])
    left = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert left == {"notes.txt", "rollouts/my.parquet", "provenance.json"}
    assert not list(run.checkpoints_dir.iterdir())


def test_overwrite_follows_no_link(tmp_path: Path) -> None:
    run = filled(tmp_path / "run")
    elsewhere = tmp_path / "elsewhere"
    run.checkpoints_dir.rename(elsewhere)
    run.checkpoints_dir.symlink_to(elsewhere)
    RunDirectory.create(run.path, on_exists="overwrite")
    assert (elsewhere / "checkpoint-2").is_dir()


@pytest.mark.parametrize("on_exists", ["resume", "overwrite"])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, on_exists: Any) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="does not look like a run"):
        RunDirectory.create(tmp_path, on_exists=on_exists)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "thesis.tex"}


def test_other_ways_not_to_create_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        RunDirectory.create(tmp_path / "file")
    with pytest.raises(RunError, match="Cannot create"):
        RunDirectory.create(tmp_path / "file" / "below")
    with pytest.raises(RunError, match="Choose error, resume or overwrite"):
        RunDirectory.create(tmp_path / "new", on_exists="delete")  # type: ignore[arg-type]


def test_open_says_what_it_misses(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no run directory"):
        RunDirectory.open(tmp_path / "none")
    with pytest.raises(RunError, match=r"holds no run: none of config\.resolved\.json"):
        RunDirectory.open(tmp_path)


def test_truncate_after_drops_later_steps(tmp_path: Path) -> None:
    run = filled(tmp_path / "run")
    before = lines(run.path / "metrics.jsonl")
    run.truncate_after(2)
    assert lines(run.path / "metrics.jsonl") == before[:2]
    assert [record["step"] for record in run.evals()] == [1, 2]
    assert run.rollout_steps() == [1, 2]
    run.log_metrics(3, {"reward": 30}, time_s=9)
    assert [record["reward"] for record in run.metrics()] == [1, 2, 30]


def test_truncate_after_also_drops_a_cut_line(tmp_path: Path) -> None:
    run = filled(tmp_path / "run")
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"schema')
    run.truncate_after(3)
    assert [record["step"] for record in run.metrics()] == [1, 2, 3]
    assert run.notes == []


def test_importing_runs_loads_nothing_heavy() -> None:
    code = "import sys, json, scgrpo.runs; print(json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(json.loads(done.stdout)) & {"torch", "transformers", "trl", "datasets", "pyarrow", "numpy"}
