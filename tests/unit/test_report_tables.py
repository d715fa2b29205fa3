"""The paper's tables: its numbers, and the places of our runs in them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from report_cases import NASTY, Page, eval_record

from scgrpo.errors import RunError
from scgrpo.report import paper, write_report, write_tables
from scgrpo.report.tables import PAPER_SETTINGS, Cell, ablation_row, build_tables, main_row, tables_csv
from scgrpo.report.view import RunView, load_views_apart
from scgrpo.runs import RunDirectory


def make(
    path: Path, label: str = "sc_grpo", tasks: tuple[str, ...] = ("reach",), model: str = "tiny", **train: Any
) -> Path:
    run = RunDirectory.create(path)
    settings = {"credit": label if label in ("sc_grpo", "uniform") else "uniform", **train}
    run.write_config({"label": label, "train": settings, "model": {"name_or_path": model}, "task": {"name": "reach"}})
    for task in tasks:
        run.log_eval(eval_record(0, "before", 0.2, 0.5, task=task))
        run.log_eval(eval_record(9, "after", 0.4, 0.75, task=task))
    return path


def view(path: Path) -> RunView:
    return load_views_apart([path])[0]


def test_the_papers_means_are_the_means_of_its_columns() -> None:
    for name, scores in paper.MAIN.items():
        assert len(scores) == len(paper.BENCHMARKS) + 1
        if scores[-1] is not None:
            for end in (0, 1):
                mean = sum(score[end] for score in scores[:-1] if score) / len(paper.BENCHMARKS)
                assert scores[-1][end] == pytest.approx(mean, abs=0.011), name


def test_the_papers_tables_agree_on_the_full_method() -> None:
    lcb = paper.BENCHMARKS.index("LCB v6")
    full = paper.MAIN["SC-GRPO"][lcb]
    assert full is not None
    assert full[0] == paper.ABLATIONS[paper.FULL_METHOD] == max(paper.ABLATIONS.values())
    assert paper.ADDITIVE_LOSS[1] < full[0]


def test_the_papers_settings_are_the_trainers_defaults() -> None:
    from scgrpo import SCGRPOConfig

    config = SCGRPOConfig("out", report_to="none", use_cpu=True, bf16=False)
    assert {name: getattr(config, name) for name in PAPER_SETTINGS} == PAPER_SETTINGS


@pytest.mark.parametrize(
    ("label", "train", "main", "ablation"),
    [
        ("sc_grpo", {}, "SC-GRPO", "full method"),
        ("sc_grpo", {"method": "sc_grpo"}, "SC-GRPO", "full method"),
        ("sc_grpo", {"credit_anneal_steps": 0, "epsilon_high": 0.2}, "SC-GRPO", "full method"),
        ("sc_grpo", {"credit_floor": 0.01}, "SC-GRPO", "full method"),
        ("sc_grpo", {"credit_alpha": 0.0}, None, "partial-solve only"),
        ("sc_grpo", {"credit_alpha": 0.2}, None, "alpha = 0.2"),
        ("sc_grpo", {"credit_quantile": 0.5}, None, "c = p50 of D"),
        ("sc_grpo", {"credit_fixed_threshold": 1e-4}, None, "fixed c = 1e-4"),
        ("sc_grpo", {"credit_alpha": 0.2, "credit_quantile": 0.5}, None, None),
        ("sc_grpo", {"credit_mix": 0.5}, None, None),
        ("sc_grpo", {"loss_type": "dapo"}, None, None),
        ("dapo+sc_grpo", {"method": "dapo", "credit": "sc_grpo"}, None, None),
        ("uniform", {}, "GRPO", None),
        ("grpo", {"method": "grpo"}, "GRPO", None),
        ("uniform", {"credit_alpha": 0.3}, "GRPO", None),
        ("uniform", {"loss_type": "dapo"}, None, None),
        ("dr_grpo", {"method": "dr_grpo", "scale_rewards": "none"}, None, None),
        ("dapo", {"method": "dapo", "loss_type": "dapo"}, "DAPO", None),
        ("reinforce++", {"method": "reinforce++", "credit": "reinforce++"}, "REINFORCE++", None),
        ("rlsd", {"credit": "rlsd"}, None, None),
        ("opsd", {"method": "opsd", "distill_coef": 1.0}, "OPSD", None),
        ("sc_grpo", {"distill_coef": 0.1}, None, None),
        ("uniform", {"distill_coef": 0.0, "distill_start_coef": 0.03}, None, None),
    ],
)
def test_a_run_has_the_row_of_its_settings(
    tmp_path: Path, label: str, train: dict[str, Any], main: str | None, ablation: str | None
) -> None:
    run = view(make(tmp_path / "run", label, **train))
    assert (main_row(run), ablation_row(run)) == (main, ablation)


def test_rows_and_columns(tmp_path: Path) -> None:
    paths = [
        make(tmp_path / "a", "sc_grpo", ("reach", "AIME_2024")),
        make(tmp_path / "b", "uniform"),
        make(tmp_path / "c", "sc_grpo", credit_mix=0.5),
        make(tmp_path / "d", "sc_grpo", credit_alpha=0.2, credit_floor=0.01),
    ]
    main, loss, ablations, rest = build_tables(load_views_apart(paths))
    assert main.columns == [*paper.BENCHMARKS, "mean", "reach"]
    told, ours = main.rows["SC-GRPO"]
    assert told.cells["AIME24"].text == "51.67 / 80.00"
    assert (told.model, ours.model) == ("Qwen3-8B", "tiny")
    assert ours.cells["AIME24"].text == "40.00 / 75.00"
    assert ours.cells["reach"].intervals == ["[36.9, 43.1]", "[71.0, 79.0]"]
    assert "AIME25" not in ours.cells
    assert [e.name for e in main.rows["GRPO"]] == ["GRPO", "uniform (GRPO), b"]
    assert [len(entries) for entries in main.rows.values()] == [3, 2, 1, 1, 1, 2]
    starts = main.rows["Qwen3-8B"][1:]
    assert [entry.cells["reach"].text for entry in starts] == ["20.00 / 50.00"] * 2, "once with AIME24, once without"
    assert [e.name for e in loss.rows["SC-GRPO"]] == ["SC-GRPO", "sc_grpo, a"]
    assert next(iter(loss.rows.values()))[0].cells["LCB v6"].text == "34.35 to 39.11"
    (_, ablated) = ablations.rows["alpha = 0.2"]
    assert ablated.cells["reach"].text == "40.00"
    assert ablated.note == "credit_alpha = 0.2, credit_floor = 0.01"
    (other,) = rest.rows["sc_grpo, c"]
    assert (other.name, other.note) == ("sc_grpo, c", "credit_mix = 0.5")


def test_the_additive_loss_has_its_row_and_says_which(tmp_path: Path) -> None:
    settings = {"method": "grpo_kl", "distill_coef": 0.1, "distill_divergence": "reverse", "distill_start_coef": 0.0}
    main, loss, _ = build_tables([view(make(tmp_path / "run", "grpo_kl", **settings))])
    told, ours = next(iter(loss.rows.values()))
    assert told.cells["LCB v6"].span
    assert ours.note == "distill_coef = 0.1, distill_divergence = reverse"
    assert ours.cells["reach"].text == "40.00"
    assert [len(entries) for entries in main.rows.values()] == [2, 1, 1, 1, 1, 1]


def test_the_mean_needs_all_five(tmp_path: Path) -> None:
    main = build_tables([view(make(tmp_path / "all", tasks=paper.BENCHMARKS))])[0]
    assert main.columns == [*paper.BENCHMARKS, "mean"]
    ours = main.rows["SC-GRPO"][1]
    assert ours.cells["mean"].text == "40.00 / 75.00"
    assert ours.cells["mean"].intervals == [], "an interval of the mean is not known"


def test_cells() -> None:
    assert Cell((50.0, 40.0, 60.0), (75.0, None, None), k=4).text == "50.00 / 75.00 (k = 4)"
    assert Cell((50.0, 40.0, 60.0), (75.0, None, None)).intervals == ["[40.0, 60.0]"]
    assert Cell((None, None, None)).text == "–"


def test_the_papers_k_counts_where_there_are_several(tmp_path: Path) -> None:
    path = make(tmp_path / "run")
    RunDirectory(path).log_eval(eval_record(9, "after", 0.9, 0.9, k=16))
    assert build_tables([view(path)])[0].rows["SC-GRPO"][1].cells["reach"].text == "40.00 / 75.00"


def test_a_run_that_was_not_evaluated_says_so(tmp_path: Path) -> None:
    main = build_tables([view(make(tmp_path / "run", tasks=()))])[0]
    assert main.rows["SC-GRPO"][1].note == "no evaluation after training"
    assert len(main.rows["Qwen3-8B"]) == 1


def test_csv_holds_every_cell(tmp_path: Path) -> None:
    tables = build_tables([view(make(tmp_path / "run"))])
    lines = list(csv.DictReader(io.StringIO(tables_csv(tables))))
    assert len(lines) == sum(len(e.cells) for t in tables for entries in t.rows.values() for e in entries)
    (own,) = [x for x in lines if x["table"] == "1" and x["run"] == "sc_grpo, run"]
    assert (own["row"], own["model"], own["column"], own["k"]) == ("SC-GRPO", "tiny", "reach", "8")
    assert (own["avg"], own["avg_low"], own["avg_high"], own["pass"]) == ("40.00", "36.90", "43.10", "75.00")
    told = next(x for x in lines if x["source"] == "paper" and x["row"] == "OPSD" and x["column"] == "WebShop")
    assert (told["avg"], told["pass"], told["avg_low"], told["run"]) == ("10.38", "21.60", "", "")


def test_the_page_says_whose_numbers_they_are(tmp_path: Path) -> None:
    runs = [make(tmp_path / "a", model="tiny"), make(tmp_path / "b", "uniform", tasks=(NASTY,), model="<i>own</i>")]
    page, sheet = write_tables(runs, tmp_path / "tables.html")
    text = page.read_text()
    words = Page(text).words
    assert "The paper: Qwen3-8B. Our runs start from: tiny, <i>own</i>." in words
    assert "only lines of the same model in the same column compare" in words
    assert "sc_grpo, a tiny" in words
    assert "<script" not in text
    assert "http" not in text
    assert sheet == tmp_path / "tables.csv"
    with pytest.raises(RunError, match="no run directory"):
        write_tables([tmp_path / "gone"], tmp_path / "t.html")


def test_a_runs_own_page_has_the_tables(tmp_path: Path) -> None:
    text = write_report(make(tmp_path / "run")).read_text()
    assert "Table 3. Ablations of SC-GRPO, Avg@8" in Page(text).words
    assert "sc_grpo, run" in text
