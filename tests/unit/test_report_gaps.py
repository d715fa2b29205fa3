"""Reports of runs that lack something: the page is written all the same, and says what."""

from __future__ import annotations

import html
import math
import re
from pathlib import Path

import pytest

from scgrpo.errors import RunError
from scgrpo.report import write_png, write_report
from scgrpo.report.figures import build_figures
from scgrpo.report.recorded import read_recorded
from scgrpo.report.view import load_views
from scgrpo.runs import RunDirectory


def words_of(page: Path) -> str:
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", page.read_text()).split()))


def test_an_almost_empty_run_still_gives_a_page(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    words = words_of(write_report(run.path))
    for sentence in (
        "This run has no configuration file.",
        "This run has no evaluations before or after training.",
        "Reward in training (Fig. 6): every run of scgrpo train logs it",
        "Held-out Avg@k and Pass@k (Fig. 6): set eval_problems above 0",
        "Seconds per step, by part (Fig. 3): every run of scgrpo train logs it",
        "No rollouts were recorded in this run.",
        "This run did not record where it came from.",
    ):
        assert sentence in words
    with pytest.raises(RunError, match="neither metrics nor evaluations"):
        write_png(run.path)


def test_a_cut_line_and_a_missing_comparison_are_told(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.write_config({"beside": ["../gone"]})
    run.log_metrics(1, {"reward": 0.5}, time_s=1.0)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"schema_version": 1, "st')
    words = words_of(write_report(run.path))
    assert "run: metrics.jsonl, line 2: cut short by a crash, left out." in words
    assert "The run gone, listed for comparison, is not shown" in words
    with pytest.raises(RunError, match="no run directory"):
        write_report(run.path, beside=[tmp_path / "gone"])


def test_runs_of_the_same_method_are_told_apart_by_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        RunDirectory.create(tmp_path / name).write_config({"train": {"credit": "sc_grpo"}})
    main, others, _ = load_views(tmp_path / "a", [tmp_path / "b"])
    assert [main.label, others[0].label] == ["sc_grpo, a", "sc_grpo, b"]


def test_runs_of_the_same_folder_name_are_told_apart_by_path(tmp_path: Path) -> None:
    for name in ("x/run", "y/run", "z"):
        RunDirectory.create(tmp_path / name).write_config({"train": {"credit": "uniform"}})
    main, others, _ = load_views(tmp_path / "x" / "run", [tmp_path / "y" / "run", tmp_path / "z"])
    assert main.label == f"uniform (GRPO), {(tmp_path / 'x' / 'run').resolve()}"
    assert len({main.label, *(view.label for view in others)}) == 3
    assert others[1].label == "uniform (GRPO), z"


def test_runs_are_named_by_what_they_train(tmp_path: Path) -> None:
    for name, label in (("a", "dapo"), ("b", "dapo+sc_grpo")):
        run = RunDirectory.create(tmp_path / name)
        run.write_config({"label": label, "train": {"credit": "uniform"}})
    main, others, _ = load_views(tmp_path / "a", [tmp_path / "b"])
    assert [main.label, others[0].label] == ["dapo", "dapo+sc_grpo"]


def test_a_metric_that_was_not_finite_is_a_gap(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    for step, value in enumerate((0.25, math.nan, 0.75), start=1):
        run.log_metrics(step, {"reward": value, "credit/token_kl_p50": 0.0, "credit/threshold": 1e-4}, time_s=step)
    main, _, _ = load_views(run.path, [])
    line = build_figures(main, [], read_recorded(main))[0].charts[0].lines[0]
    assert line.values[::2] == [0.25, 0.75]
    assert math.isnan(line.values[1])
    assert line.ends == "0.25 → 0.75"
    assert "reward" in words_of(write_report(run.path))


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        write_report(tmp_path)
