"""The HTML report of a run: one file, no network, no script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scgrpo.report import summary
from scgrpo.report.charts import build_charts
from scgrpo.report.curves import chart_figure
from scgrpo.report.heatmap import LEVELS, build_sections, is_scored
from scgrpo.report.rendering import render
from scgrpo.report.shares import credit_shares
from scgrpo.report.view import RunView, load_views
from scgrpo.runs import RolloutRow
from scgrpo.runs.files import replace_text

_MOST_STEPS_READ = 20


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


def _content(main: RunView, others: list[RunView], notes: list[str]) -> dict[str, Any]:
    views = [main, *others]
    charts = build_charts(main, others)
    steps = _steps_read(main)
    rollouts: dict[int, list[RolloutRow]] = {}
    shares = credit_shares(_walk(main, steps, rollouts))
    missing = [f"No data for the curve “{title}”." for title in charts.missing]
    if not steps:
        missing.append("No rollouts were recorded: no token heatmap, and no account of where the credit went.")
    elif not shares:
        missing.append("No recorded rollout was scored under a demonstration: every token has the weight 1.")
    return {
        "main": main,
        "others": others,
        "notes": notes,
        "missing": missing,
        "highlights": summary.highlights(main),
        "results": summary.result_rows(views),
        "changed": [sentence for view in views for sentence in summary.changed_problems(view)],
        "costs": summary.cost_rows(views),
        "figures": [chart_figure(chart, f"f{index}") for index, chart in enumerate(charts.drawn)],
        "sections": build_sections(rollouts),
        "levels": range(LEVELS),
        "shares": shares,
        "shares_steps": steps,
        "starts": summary.starts(main),
        "config": summary.config_text(main),
        "files": _files(main),
    }


def _steps_read(view: RunView) -> list[int]:
    """Recorded steps; of many, some spread evenly, the first and the last among them."""
    steps = view.run.rollout_steps()
    if len(steps) > _MOST_STEPS_READ:
        last = len(steps) - 1
        steps = [steps[round(i * last / (_MOST_STEPS_READ - 1))] for i in range(_MOST_STEPS_READ)]
    return steps


def _walk(view: RunView, steps: list[int], ends: dict[int, list[RolloutRow]]) -> Iterator[RolloutRow]:
    """Every rollout of these steps, one step in memory at a time. `ends` keeps the first and the last step, of all
    and of those with scored rollouts."""
    scored: list[int] = []
    for step in steps:
        rows = ends[step] = view.run.rollouts(step)
        yield from rows
        if any(map(is_scored, rows)):
            scored = [*scored[:1], step]
        for passed in set(ends) - {steps[0], steps[-1], *scored}:
            del ends[passed]


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
