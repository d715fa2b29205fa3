"""The HTML report of a run: one file, no network, no script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scgrpo.report import paper, summary
from scgrpo.report.curves import pictures
from scgrpo.report.figures import build_figures
from scgrpo.report.heatmap import LEVELS, build_sections
from scgrpo.report.recorded import read_recorded
from scgrpo.report.rendering import render
from scgrpo.report.tables import build_tables, model_name, tables_csv
from scgrpo.report.timing import baseline, paper_rows, time_rows
from scgrpo.report.view import RunView, load_views, load_views_apart
from scgrpo.runs.files import replace_text


def write_report(run: Path, *, beside: Sequence[Path] = (), out: Path | None = None) -> Path:
    """Write the report of a run as one self-contained HTML page.

    What a run lacks (rollouts, evaluations, weights) is said on the page; it is written all the same.

    Args:
        run: run directory.
        beside: further run directories to compare with; those the run's configuration lists under `beside` are
            added if they exist.
        out: where to; default `report.html` in the run directory.

    Returns:
        The file written.

    Raises:
        RunError: not a run, damaged beyond a cut last line, or written by a newer version.
        MissingExtraError: jinja2, matplotlib or pyarrow is not installed.
    """
    main, others, notes = load_views(Path(run), [Path(path) for path in beside])
    page = render("report.html.j2", _content(main, others, notes))
    out = main.run.report_path if out is None else Path(out)
    replace_text(out, page)
    return out


def write_tables(runs: Sequence[Path], out: Path) -> list[Path]:
    """Write the paper's tables 1 to 3 with these runs in their places, as HTML and, beside it, as CSV.

    Args:
        runs: run directories. Each stands in the row of its method and settings, in the columns of the tasks it was
            evaluated on after training; runs that fit no row have a table of their own.
        out: the HTML file; the CSV has its name with `.csv`.

    Returns:
        The files written.

    Raises:
        RunError: not a run, or damaged.
        MissingExtraError: jinja2 is not installed.
    """
    views = load_views_apart([Path(run) for run in runs])
    tables = build_tables(views)
    content = {
        "tables": tables,
        "models": list(dict.fromkeys(map(model_name, views))),
        "paper_model": paper.MODEL,
        "notes": [f"{view.folder}: {note}" for view in views for note in view.run.notes],
    }
    page, sheet = Path(out), Path(out).with_suffix(".csv")
    replace_text(page, render("tables_page.html.j2", content))
    replace_text(sheet, tables_csv(tables))
    return [page, sheet]


def _content(main: RunView, others: list[RunView], notes: list[str]) -> dict[str, Any]:
    views = [main, *others]
    recorded = read_recorded(main)
    figures = build_figures(main, others, recorded)
    return {
        "main": main,
        "others": others,
        "notes": notes,
        "highlights": summary.highlights(main),
        "results": summary.result_rows(views),
        "changed": [sentence for view in views for sentence in summary.changed_problems(view)],
        "costs": summary.cost_rows(views),
        "times": time_rows(views),
        "paper_times": paper_rows(),
        "plain": getattr(baseline(views), "label", ""),
        "figures": {figure.key: figure for figure in figures},
        "pictures": {figure.key: pictures(figure.charts, figure.key) for figure in figures},
        "sections": build_sections(recorded.ends),
        "levels": range(LEVELS),
        "shares": recorded.shares,
        "shares_steps": recorded.steps,
        "tables": build_tables(views),
        "models": list(dict.fromkeys(map(model_name, views))),
        "paper_model": paper.MODEL,
        "starts": summary.starts(main),
        "config": summary.config_text(main),
        "files": _files(main),
    }


def _files(view: RunView) -> list[tuple[str, str]]:
    run = view.run
    counts = {
        "config.resolved.json": "every setting, as resolved",
        "provenance.json": "command, seeds, versions, hardware of every start",
        "metrics.jsonl": f"{len(view.metrics)} logged steps",
        "evals.jsonl": f"{len(view.evals)} evaluations",
        "rollouts/": f"{len(run.rollout_steps())} recorded steps, Parquet",
        "checkpoints/": "the trainer's checkpoints",
        "model/": "the trained model",
    }
    return [(name, text) for name, text in counts.items() if (run.path / name).exists()]
