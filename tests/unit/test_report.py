"""The report: made from a synthetic run, checked as HTML and number by number."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from scgrpo.errors import MissingExtraError
from scgrpo.report import write_png, write_report
from scgrpo.report.charts import build_charts
from scgrpo.report.heatmap import build_sections, shift
from scgrpo.report.summary import cost_rows, result_rows
from scgrpo.report.text import number
from scgrpo.report.view import load_views
from scgrpo.runs import RolloutRow, RunDirectory

NASTY = '<script>alert("x")</script>'
SOLVED = [
    ["<think>", "\n", "start", " 5", ":", " add", " 3", " ->", " 8", "\n", "double", " 8", " ->", " 16", "\n"],
    ["answer", " 16", "<eos>"],
]
FAILED = [
    ["<think>", "\n", "start", " 5", ":", " double", " 5", " ->", " 11", "\n", NASTY, " &amp;", "\u202eevil", "\n"],
    ["tool", " said", " 11"],
    ["<eos>"],
]


def rollout_row(step: int = 0, group: int = 0, rollout: int = 0, **changes: Any) -> RolloutRow:
    """A scored rollout of literal numbers; tokens are spread over its kinds."""
    rng = random.Random(f"{step} {group} {rollout}")
    solved = changes.pop("solved", rollout % 2 == 0)
    parts = SOLVED if solved else FAILED
    tokens = [token for part in parts for token in part]
    mask = [part is not FAILED[1] for part in parts for _ in part]
    scored = changes.pop("scored", True)
    kl = [round(rng.lognormvariate(-4, 1.8), 6) for _ in tokens]
    logps = [round(-rng.expovariate(1.2), 4) for _ in tokens]
    row: dict[str, Any] = {
        "step": step,
        "group": group,
        "rollout": rollout,
        "problem_id": f"reach/{group}",
        "prompt": "<system>Write a program.<user>from 5 to 16 modulo 31",
        "completion": "".join(tokens),
        "tokens": tokens,
        "token_ids": list(range(100, 100 + len(tokens))),
        "is_special": [token in ("<think>", "<eos>") for token in tokens],
        "mask": mask,
        "rewards": {"reach": None if solved is None else float(solved)},
        "solved": solved,
        "status": "graded" if solved is not None else "error",
        "detail": "" if solved is not None else "the verifier crashed on <b>this</b>",
        "route": "partial" if scored else "fallback",
        "demonstration": (0 if rollout == 2 else 2) if scored else None,
        "demonstration_text": "start 5: add 3 -> 8\n" + NASTY if scored else None,
        "teacher_prompt": "<system>A verified solution: ..." if scored else None,
        "demonstration_truncated": False,
        "advantage": 0.9354 if solved else -0.9354,
        "token_kl": kl if scored else None,
        "credit_weights": [
            d / (d + 0.03) if scored and m else float(not scored) for d, m in zip(kl, mask, strict=True)
        ],
        "student_logps": logps if scored else None,
        "teacher_logps": [round(x / 2, 4) for x in logps] if scored else None,
    }
    return RolloutRow(**{**row, **changes})


def eval_record(step: int, label: str, value: float, passed: float, rates: Sequence[int]) -> dict[str, Any]:
    problems = [
        {"problem_id": f"p{i}", "n": 8, "num_solved": n, "mean_score": n / 8, "num_errors": 0}
        for i, n in enumerate(rates)
    ]
    return {
        "step": step,
        "label": label,
        "task": "reach",
        "k": 8,
        "num_problems": len(rates),
        "temperature": 0.6,
        "top_p": 0.95,
        "max_new_tokens": 48,
        "avg_at_k": {"value": value, "low": value - 0.031, "high": value + 0.031},
        "pass_at_k": {"value": passed, "low": passed - 0.04, "high": passed + 0.04},
        "error_frac": 0.0125,
        "truncated_frac": 0.0,
        "seconds": 4.5,
        "tokens_per_s": 2100.0,
        "per_problem": problems,
    }


def step_metrics(step: int, gain: float, credit: bool) -> dict[str, float]:
    rng = random.Random(step)
    progress = 1 - math.exp(-step / 40)
    metrics = {
        "reward": 0.21 + gain * progress + rng.gauss(0, 0.05),
        "entropy": 1.1 - 0.7 * progress,
        "completions/mean_length": 24 + rng.gauss(0, 1),
        "step_time": 0.25 if credit else 0.2,
        "credit/route_partial_frac": 0.7 + rng.gauss(0, 0.05),
        "credit/route_none_solved_frac": 0.1,
        "credit/route_fallback_frac": 0.2 + rng.gauss(0, 0.05),
    }
    if credit:
        for name, value in {"p25": 1e-5, "p50": 0.002, "p75": 0.04, "p90": 0.13, "p95": 0.3, "max": 3.0}.items():
            metrics[f"credit/token_kl_{name}"] = value * math.exp(rng.gauss(0, 0.2))
        metrics |= {
            "credit/threshold": 0.04 * math.exp(rng.gauss(0, 0.2)),
            "credit/weight_mean": 0.25,
            "credit/weight_mean_solved": 0.22,
            "credit/weight_mean_failed": 0.31,
            "credit/teacher_pass_s": 0.04,
        }
    return metrics


def make_run(path: Path, credit: str = "sc_grpo", beside: Sequence[str] = (), steps: int = 60) -> RunDirectory:
    """A run as `scgrpo train` leaves it."""
    scored = credit == "sc_grpo"
    run = RunDirectory.create(path)
    train = {"credit": credit, "max_steps": steps, "num_generations": 8, "learning_rate": 1e-6, "seed": 3}
    run.write_config(
        {
            "recipe": "reach",
            "train": train,
            "task": {"name": "reach"},
            "model": {"name_or_path": "tiny"},
            "beside": list(beside),
        }
    )
    run.write_provenance(["scgrpo", "train", "--config", "reach"], {"seed": 3})
    run.log_eval(eval_record(0, "before", 0.214, 0.61, [1, 2, 3, 4]))
    for step in range(1, steps + 1):
        run.log_metrics(step, step_metrics(step, 0.5 if scored else 0.4, scored), time_s=0.3 * step)
        if step % 20 == 0 and step < steps:
            run.log_eval(eval_record(step, "during", 0.3 + step / 200, 0.7, [2, 2, 3, 4]))
    run.log_eval(eval_record(steps, "after", 0.684 if scored else 0.641, 0.83, [5, 6, 1, 4]))
    for step in (0, 20, 40):
        run.write_rollouts(step, group_rows(step, scored))
    return run


def group_rows(step: int, scored: bool) -> list[RolloutRow]:
    rows = [rollout_row(step, group, rollout, scored=scored) for group in (0, 1) for rollout in range(4)]
    return [*rows, rollout_row(step, 1, 4, solved=None, scored=False, route="fallback")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an SC-GRPO run and its plain baseline, and the report of the first."""
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "reach", beside=["../reach-uniform"])
    make_run(root / "reach-uniform", "uniform", beside=["../reach"])
    write_report(root / "reach")
    return root


class Page(HTMLParser):
    """Collects what the page is made of, and checks that every element is closed in order."""

    VOID = frozenset({"meta", "br", "wbr", "link", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.attributes.append((tag, "", ""))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else, near {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


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
    assert "No recorded rollout was scored under a demonstration: every token has the weight 1." in page.words
    assert "No data for the curve “token_kl, D”." in page.words
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
    charts = {chart.key: chart for chart in build_charts(main, others).drawn}
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
