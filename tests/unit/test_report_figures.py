"""The paper's figures of a run: which numbers they hold, and what is said where a run has none."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from report_cases import NASTY, Page, eval_record, group_rows, make_run, rollout_row

from scgrpo.report import write_pngs, write_report
from scgrpo.report.charts import Weighting
from scgrpo.report.draw import draw
from scgrpo.report.figures import Figure, build_figures
from scgrpo.report.recorded import EDGES, read_recorded, spread
from scgrpo.report.timing import paper_rows, step_time, time_rows
from scgrpo.report.view import load_views
from scgrpo.runs import RunDirectory


def figures_of(path: Path) -> dict[str, Figure]:
    main, others, _ = load_views(path, [])
    return {figure.key: figure for figure in build_figures(main, others, read_recorded(main))}


def charts_of(path: Path) -> dict[str, Any]:
    return {chart.key: chart for figure in figures_of(path).values() for chart in figure.charts}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a baseline beside it, both evaluated on a second task."""
    root = tmp_path_factory.mktemp("figures")
    for name, credit, beside, after in (("sc", "sc_grpo", "../plain", 0.3), ("plain", "uniform", "../sc", 0.2)):
        made = make_run(root / name, credit, beside=[beside])
        made.log_eval(eval_record(0, "before", 0.25, 0.5, task="countdown"))
        made.log_eval(eval_record(60, "after", after, 0.6, task="countdown"))
    return root / "sc"


def test_a_whole_run_has_every_figure_and_names_it(run: Path) -> None:
    assert [text for figure in figures_of(run).values() for text in figure.missing] == []
    text = write_report(run).read_text()
    assert set(re.findall(r'class="paper">(Fig\. \d+)', text)) == {f"Fig. {n}" for n in (3, 5, 6, 7, 8, 9, 10)}
    assert 'class="lack"' not in text
    assert Page(text).words  # every element is closed


def test_what_is_missing_names_the_setting_that_makes_it(tmp_path: Path) -> None:
    make_run(tmp_path / "plain", "uniform")
    figures = figures_of(tmp_path / "plain")
    assert (
        figures["domains"].missing[0].startswith("In and out of domain (Fig. 5): needs evaluations on a second task")
    )
    weight = figures["weight"].missing
    assert any(line.startswith("The weight over the distribution of D (Fig. 8)") for line in weight)
    assert any("rollouts_every" in line for line in weight)
    assert any("credit: sc_grpo" in line for line in weight)
    words = Page(write_report(tmp_path / "plain").read_text()).words
    assert "scgrpo eval --run RUN --task NAME" in words


def test_a_run_alone_is_told_how_to_get_its_overhead(tmp_path: Path) -> None:
    for credit in ("sc_grpo", "uniform"):
        make_run(tmp_path / credit, credit)
        words = Page(write_report(tmp_path / credit).read_text()).words
        assert "Overhead (Fig. 3): needs a run with credit: uniform beside one with another" in words


def test_seconds_per_step_by_hand(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.log_metrics(1, {"step_time": 9.0, "timing/sampling_s": 1, "timing/scoring_s": 1, "timing/recording_s": 1}, 1)
    for step, update in ((2, 0.4), (3, 0.6)):
        parts = {"timing/sampling_s": 1.0, "timing/scoring_s": 0.25, "timing/recording_s": 2.0}
        run.log_metrics(step, {"step_time": 3.25 + update, **parts}, time_s=step)
    run.log_metrics(4, {"step_time": 7.0}, time_s=4)
    main, _, _ = load_views(run.path, [])
    own = step_time(main)
    assert own is not None
    assert (own.num_steps, own.sampling, own.scoring) == (2, 1.0, 0.25), "the first, and one without parts, left out"
    assert own.update == pytest.approx(0.5)
    assert own.whole == pytest.approx(1.75), "recording is not the method's"


def test_overhead_stands_beside_the_papers(run: Path) -> None:
    main, others, _ = load_views(run, [])
    own, plain = time_rows([main, *others])
    # update: 0.25 - 0.12 - 0.04 - 0.01 = 0.08, with scoring 0.12; plain: 0.2 - 0.12 - 0.01 = 0.07.
    assert (own.update, plain.update) == ("0.08 s", "0.07 s")
    assert (own.update_overhead, own.whole_overhead) == ("+71 %", "+26 %")
    assert (plain.update_overhead, plain.whole_overhead) == ("–", "–")
    assert [(t.run, t.update_overhead, t.whole_overhead) for t in paper_rows()] == [
        ("the paper, LCB v6", "+51 %", "+13 %"),
        ("the paper, math", "+37 %", "+2 %"),
    ]
    bars = charts_of(run)["time"]
    assert bars.values["sc_grpo"] == pytest.approx([0.12, 0.04, 0.08])
    assert list(bars.values) == ["sc_grpo", "uniform (GRPO)"]


def test_no_times_no_rows(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.log_metrics(1, {"step_time": 1.0}, time_s=1)
    main, _, _ = load_views(run.path, [])
    assert time_rows([main]) == []


def test_in_and_out_of_domain(run: Path) -> None:
    changes = charts_of(run)["domains-avg_at_k"].changes
    assert [(c.task, c.run, c.before[0], c.after[0]) for c in changes] == [
        ("reach (trained on)", "sc_grpo", 0.214, 0.684),
        ("reach (trained on)", "uniform (GRPO)", 0.214, 0.641),
        ("countdown", "sc_grpo", 0.25, 0.3),
        ("countdown", "uniform (GRPO)", 0.25, 0.2),
    ]
    assert changes[3].after == pytest.approx((0.2, 0.169, 0.231))
    held_out = [key for key in charts_of(run) if key.startswith("avg_at_k")]
    assert held_out == ["avg_at_k-reach-8"], "dynamics are those of the task trained on"


def test_spread_by_hand() -> None:
    kl = [0.0, 5e-7, 0.0009, 0.005, 0.5, 0.5, 1e3] + [9.0] * 11
    mask = [True] * 7 + [False] * 11
    found = spread(3, [rollout_row(token_kl=kl, mask=mask), rollout_row(scored=False)])
    assert found is not None
    assert (found.step, found.num_tokens) == (3, 7)
    assert found.near_zero == (3 / 7, 4 / 7)
    assert sum(found.shares) == pytest.approx(1)
    assert found.shares[0] == 2 / 7, "what is below the first bin is in it"
    assert found.shares[-1] == 1 / 7, "and above the last"
    index = next(i for i, edge in enumerate(EDGES) if edge > 0.5) - 1
    assert found.shares[index] == 2 / 7
    assert spread(3, [rollout_row(scored=False)]) is None


def test_the_weight_function_has_the_threshold_of_its_step(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.write_rollouts(59, group_rows(59, True))
    logged = {record["step"]: record["credit/threshold"] for record in run.metrics()}
    charts = [chart for chart in charts_of(run.path).values() if isinstance(chart, Weighting)]
    assert [chart.key for chart in charts] == ["weight-0", "weight-40", "weight-59"], "first, middle, last"
    assert [chart.c for chart in charts] == [logged[1], logged[41], logged[60]]


def test_a_threshold_of_something_else_draws_no_weight_over_d(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.log_metrics(1, {"credit/threshold": 0.5, "credit/student_entropy_p75": 0.5}, time_s=1)
    run.write_rollouts(0, [rollout_row()])
    figure = figures_of(run.path)["weight"]
    assert not any(isinstance(chart, Weighting) for chart in figure.charts)
    assert not any(chart.key == "token_kl" for chart in figure.charts)


def test_the_drawn_weight_is_one_half_at_c() -> None:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas()
    chart = Weighting("w", "w", "nats", EDGES, [1 / (len(EDGES) - 1)] * (len(EDGES) - 1), 0.01)
    draw(canvas.add_subplot(), chart)
    bars, twin = canvas.axes
    x, y = twin.lines[0].get_data()
    nearest = min(range(len(x)), key=lambda i: abs(x[i] - 0.01))
    assert y[nearest] == pytest.approx(x[nearest] / (x[nearest] + 0.01))
    assert all(b > a for a, b in itertools.pairwise(y))
    assert sum(patch.get_height() for patch in bars.patches) == pytest.approx(1)


def test_every_chart_is_a_png_of_its_own(run: Path, tmp_path: Path) -> None:
    written = write_pngs(run, tmp_path / "out")
    assert len(written) == len(charts_of(run))
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") for path in written)
    assert [path.name for path in written[:2]] == ["01-fig6-reward.png", "02-fig6-avg_at_k-reach-8.png"]


def test_names_of_pictures_stay_in_their_folder(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.log_eval(eval_record(0, "before", 0.2, 0.5, task=f"../{NASTY}$x$"))
    run.log_eval(eval_record(0, "before", 0.2, 0.5, task="other"))
    written = write_pngs(run.path, tmp_path / "out")
    assert {path.parent for path in written} == {tmp_path / "out"}
    assert sorted((tmp_path / "out").iterdir()) == sorted(written)
