"""The report: made from a synthetic run, checked as HTML and number by number."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report_cases import NASTY, Page, eval_record, group_rows, make_run, rollout_row

from scgrpo.errors import MissingExtraError
from scgrpo.report import write_png, write_report
from scgrpo.report.figures import build_figures
from scgrpo.report.heatmap import build_sections, shift
from scgrpo.report.recorded import read_recorded
from scgrpo.report.summary import cost_rows, result_rows
from scgrpo.report.text import number
from scgrpo.report.view import load_views
from scgrpo.runs import RunDirectory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an SC-GRPO run and its plain baseline, and the report of the first."""
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "reach", beside=["../reach-uniform"])
    make_run(root / "reach-uniform", "uniform", beside=["../reach"])
    write_report(root / "reach")
    return root


def test_the_page_needs_nothing_from_outside(runs: Path) -> None:
    text = (runs / "reach" / "report.html").read_text()
    page = Page(text)
    assert "http:" not in text
    assert "https:" not in text
    assert not {tag for tag, _, _ in page.attributes} & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert all(value.startswith("#") for value in [*page.values("href"), *page.values("src")])
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "@import" not in text


def test_ids_are_unique_and_every_reference_has_its_target(runs: Path) -> None:
    text = (runs / "reach" / "report.html").read_text()
    ids = Page(text).values("id")
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert targets
    assert targets <= set(ids)


def test_the_numbers_on_the_page_are_the_runs(runs: Path) -> None:
    words = Page((runs / "reach" / "report.html").read_text()).words
    assert "0.214 [0.183, 0.245]" in words
    assert "0.684 [0.653, 0.715]" in words
    assert "0.641 [0.610, 0.672]" in words  # of the run beside it
    changes = "2 were solved more often after training than before, 1 less often, 1 as often."
    assert f"sc_grpo on reach: of 4 problems, {changes}" in words
    assert "sc_grpo 60 18 s 0.25 s 1.25 0.04 s 18 s" in words
    assert "sc_grpo 0.214 → 0.684" in words
    assert "scgrpo train --config reach" in words
    assert "9 rollouts recorded: 4 solved, 4 failed, 1 not gradable, 8 scored under a demonstration." in words


def test_titles_carry_the_literal_numbers_of_every_token(runs: Path) -> None:
    titles = Page((runs / "reach" / "report.html").read_text()).values("title")
    row = max((r for r in group_rows(0, True) if r.solved and r.token_kl), key=shift)
    kl, f = row.token_kl[3], row.credit_weights[3]
    student, teacher = row.student_logps[3], row.teacher_logps[3]
    expected = (
        f"token 3: ␣5 (id 103); D {kl:.4g} nats; f {f:.4g}; log-prob student {student:.4g}, teacher {teacher:.4g}"
    )
    assert expected in titles
    assert "token 14: tool (id 114); tool output, not trained" in titles


def test_numbers_are_readable_without_hovering(runs: Path) -> None:
    text = (runs / "reach" / "report.html").read_text()
    row = max((r for r in group_rows(0, True) if r.solved and r.token_kl), key=shift)
    cells = "".join(
        f'<td class="n">{number(v[3], 4)}</td>'
        for v in (row.token_kl, row.credit_weights, row.student_logps, row.teacher_logps)
    )
    assert f"<code>␣5</code></td>{cells}</tr>" in text


def test_model_text_stays_text(runs: Path) -> None:
    text = (runs / "reach" / "report.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in text
    assert "␣&amp;amp;" in text  # the completion's own "&amp;" is not an ampersand
    assert "\u202e" not in text
    assert "⟨U+202E⟩evil" in text
    assert "<b>this</b>" not in text


def test_names_of_runs_and_tasks_are_text_too(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "<img src=x>$\\frac$")
    run.write_config({"recipe": NASTY, "train": {"credit": "<i>$x_1$"}, "task": {"name": NASTY}})
    run.log_metrics(1, {"reward": 0.5}, time_s=1.0)
    run.log_eval({**eval_record(0, "before", 0.2, 0.5, [1]), "task": NASTY})
    text = write_report(run.path).read_text()
    page = Page(text)
    assert not {tag for tag, _, _ in page.attributes} & {"script", "img", "i"}
    assert "&lt;i&gt;$x_1$" in text
    assert write_png(run.path).stat().st_size > 0


def test_the_uniform_run_says_that_nothing_was_weighted(runs: Path) -> None:
    page = Page(write_report(runs / "reach-uniform", out=runs / "uniform.html").read_text())
    assert "No recorded rollout was scored under a demonstration, so there is no credit to divide." in page.words
    assert "token_kl, D (Fig. 9): no rollout was weighted by its D here; credit: sc_grpo" in page.words
    assert "No demonstration: this rollout has the weight 1 on every token." in page.words
    assert "verification: error the verifier crashed on <b>this</b>" in page.words
    assert any(title.endswith("not scored, weight 1") for title in page.values("title"))


def test_a_run_is_shown_once_however_it_is_named(runs: Path) -> None:
    main, others, _ = load_views(runs / "reach", [runs / "reach-uniform", runs / "reach"])
    assert [view.label for view in (main, *others)] == ["sc_grpo", "uniform (GRPO)"]


def test_the_page_goes_where_it_is_asked_to_and_is_the_same_each_time(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert write_report(runs / "reach", out=out) == out
    assert out.read_text() == (runs / "reach" / "report.html").read_text()


def test_a_run_given_as_a_dot_has_its_name(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs / "reach")
    assert "<h1>reach</h1>" in write_report(Path("."), out=runs / "dot.html").read_text()


def test_png_is_a_png(runs: Path) -> None:
    out = write_png(runs / "reach")
    assert out == runs / "reach" / "curves.png"
    assert out.read_bytes().startswith(b"\x89PNG\r\n")


def test_charts_hold_the_data(runs: Path) -> None:
    main, others, _ = load_views(runs / "reach", [])
    charts = {c.key: c for f in build_figures(main, others, read_recorded(main)) for c in f.charts}
    avg = charts["avg_at_k-reach-8"].lines[0]
    assert avg.steps == [0, 20, 40, 60]
    assert avg.values == [0.214, 0.4, 0.5, 0.684]
    assert avg.low[0] == pytest.approx(0.183)
    assert [line.name for line in charts["reward"].lines] == ["sc_grpo", "uniform (GRPO)"]
    assert [line.name for line in charts["token_kl"].lines] == [
        "max",
        "p95",
        "p90",
        "threshold c",
        "p50 (band: p25 to p75)",
    ]
    assert charts["token_kl"].log
    assert charts["routes"].lines[1].values == [0.1] * 60


def test_the_page_counts_every_step_and_shows_the_ends(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    for step in range(0, 60, 10):
        run.write_rollouts(step, [rollout_row(step, scored=10 <= step <= 40)])
    words = Page(write_report(run.path).read_text()).words
    assert re.findall(r"Step \d+", words) == ["Step 10", "Step 40"]
    assert "recorded at steps 0, 10, 20, 30, 40, 50." in words
    assert "Solved rollouts 4 rollouts, 72 tokens" in words


def test_a_long_completion_is_cut_in_the_middle_and_says_so(tmp_path: Path) -> None:
    num = 1000
    lists: dict[str, Any] = {
        name: [0.5] * num for name in ("token_kl", "credit_weights", "student_logps", "teacher_logps")
    }
    row = rollout_row(tokens=[" a"] * num, token_ids=[1] * num, is_special=[False] * num, mask=[True] * num, **lists)
    card = build_sections({0: [row]})[0].cards[0]
    assert [card.cells[599].position, card.cells[600].position, len(card.cells)] == [599, 700, 900]
    run = RunDirectory.create(tmp_path / "run")
    run.write_rollouts(0, [row])
    assert "… 100 tokens not shown …" in Page(write_report(run.path).read_text()).words


def test_result_rows_take_the_last_record_of_a_step(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.log_eval(eval_record(0, "before", 0.2, 0.5, [1]))
    run.log_eval(eval_record(9, "after", 0.3, 0.6, [2]))
    run.log_eval(eval_record(9, "after", 0.4, 0.7, [3]))
    main, _, _ = load_views(run.path, [])
    (row,) = result_rows([main])
    assert (row.avg_before, row.avg_after) == ("0.200 [0.169, 0.231]", "0.400 [0.369, 0.431]")
    assert cost_rows([main])[0].ratio == "–"


def test_success_has_columns_where_scores_are_partial(tmp_path: Path) -> None:
    """WebShop: a mean score of .4 with nothing bought as wanted is not 40 % of success."""
    run = RunDirectory.create(tmp_path / "run")
    none = {"value": 0.0, "low": 0.0, "high": 0.25}
    run.log_eval(eval_record(0, "before", 0.2, 0.5, success_rate=none))
    run.log_eval(eval_record(9, "after", 0.4, 0.7, success_rate={**none, "value": 0.125}))
    (row,) = result_rows(load_views(run.path, [])[:1])
    assert (row.success_before, row.success_after) == ("0.000 [0.000, 0.250]", "0.125 [0.000, 0.250]")
    assert "success after" in Page(write_report(run.path).read_text()).words

    binary = RunDirectory.create(tmp_path / "binary")
    binary.log_eval(eval_record(0, "before", 0.2, 0.5, success_rate={**none, "value": 0.2}))
    (row,) = result_rows(load_views(binary.path, [])[:1])
    assert row.success_before == ""
    assert "success after" not in Page(write_report(binary.path).read_text()).words


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_library_names_the_extra(package: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"scgrpo\[report\]"):
        write_report(runs / "reach", out=runs / "never.html")


def test_importing_the_report_loads_nothing_heavy() -> None:
    code = "import sys, json, scgrpo.report; print(json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"torch", "transformers", "trl", "datasets", "matplotlib", "jinja2", "pyarrow", "numpy"}


def test_writing_a_report_loads_no_torch(runs: Path) -> None:
    code = "import sys; from pathlib import Path; from scgrpo.report import write_report as w; w(Path(sys.argv[1]))"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(runs / "reach")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
