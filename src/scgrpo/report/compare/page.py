"""The comparison: `index.html`, `contrasts.csv`, `runs.csv`, `curves.png`, `forest.png`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scgrpo.errors import RunError
from scgrpo.report.charts import Chart, Forest, Shape
from scgrpo.report.compare import tables
from scgrpo.report.compare.charts import Axis, forests, learning_charts
from scgrpo.report.compare.contrasts import Family, build_families
from scgrpo.report.compare.outcomes import TITLES, Outcome, outcomes_of
from scgrpo.report.compare.ranking import rank, rate_warnings
from scgrpo.report.compare.sources import read_sources
from scgrpo.report.compare.study import Options, Testbed, gather, lack
from scgrpo.report.compare.words import hopeless, sentence
from scgrpo.report.curves import draw_png, pictures
from scgrpo.report.rendering import render
from scgrpo.runs.files import replace_text

_FEW = 6  # sentences that are shown without a click


@dataclass(frozen=True)
class Written:
    """What was written, and the contrasts on Avg@k at the end for a terminal."""

    page: Path
    families: list[Family]


def write_comparison(sources: Sequence[Path], out: Path | None = None, options: Options | None = None) -> Written:
    """Compare the methods of sweeps, or of runs.

    Args:
        sources: folders of sweeps, their `results.jsonl`, or run directories.
        out: folder to write to; default `compare` in the first source.
        options: reference, methods and the like.

    Raises:
        RunError: nothing to read, damaged, or `out` cannot be written.
        ConfigError: a method that is not there, or runs that cannot be paired.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    options = options or Options()
    results, notes = read_sources([Path(source) for source in sources])
    testbeds, left_out = gather(results, options)
    outcomes = [outcomes_of(testbed) for testbed in testbeds]
    families = build_families(testbeds, outcomes, options)
    study = _Study(testbeds, outcomes, families, options, [*notes, *left_out])
    first = Path(sources[0])
    folder = (first if first.is_dir() else first.parent) / "compare" if out is None else Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"Cannot create {folder}: {error.strerror}.", "Choose a folder you may write to.") from error
    _write(study, folder)
    return Written(folder / "index.html", [family for family in families if family.outcome == "final"])


@dataclass(frozen=True)
class _Study:
    testbeds: list[Testbed]
    outcomes: list[list[Outcome]]
    families: list[Family]
    options: Options
    notes: list[str]

    def charts(self, testbed: Testbed) -> list[Chart]:
        axes: tuple[Axis, ...] = ("step", "tokens")
        return [chart for axis in axes for chart in learning_charts(testbed, self.options.reference, axis)]

    def forests(self) -> list[Forest]:
        return forests([family for family in self.families if family.outcome == "final"], self.options.margin)


def _write(study: _Study, folder: Path) -> None:
    replace_text(folder / "index.html", render("compare.html.j2", _content(study)))
    replace_text(folder / "contrasts.csv", tables.contrasts_csv(study.families, study.options.margin))
    replace_text(folder / "runs.csv", tables.runs_csv(study.testbeds, study.outcomes))
    curves = [chart for testbed in study.testbeds for chart in study.charts(testbed)]
    pngs: dict[str, Sequence[Shape]] = {"curves.png": curves, "forest.png": study.forests()}
    for name, charts in pngs.items():
        if charts:
            draw_png(charts, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier comparison


def _content(study: _Study) -> dict[str, Any]:
    testbeds, options = study.testbeds, study.options
    orders = [rank(testbed) for testbed in testbeds]
    return {
        "options": options,
        "counts": _counts(testbeds),
        "notes": study.notes,
        "groups": [_group(study, family) for family in study.families],
        "titles": TITLES,
        "forests": pictures(study.forests(), "t"),
        "curves": [
            (testbed.name, pictures(study.charts(testbed), f"c{index}-")) for index, testbed in enumerate(testbeds)
        ],
        "methods": [_methods(study, index) for index in range(len(testbeds))],
        "rankings": [ranking for found, _ in orders for ranking in found],
        "unranked": [(testbed.name, reasons) for testbed, (_, reasons) in zip(testbeds, orders, strict=True)],
        "failures": _failures(testbeds),
        "missing": _missing(study.families),
    }


def _group(study: _Study, family: Family) -> dict[str, Any]:
    """A family: its table and its sentences, those that show something first."""
    told = [(c.verdict != "not shown", sentence(c, study.options.margin)) for c in family.contrasts]
    limits = [hopeless(c) for c in family.contrasts if c.is_hopeless]
    all_hopeless = limits and len(limits) == len(family.contrasts)
    return {
        "limit": limits[0] if all_hopeless else "" if any(shown for shown, _ in told) else "Nothing is shown here.",
        "outcome": family.outcome,
        "place": family.testbed if family.testbed is not None else "Pooled over testbeds",
        "reference": family.reference,
        "rows": tables.contrast_rows(family),
        "shown": [text for shown, text in told if shown],
        "not_shown": [text for shown, text in told if not shown],
        "few": len(told) <= _FEW,
    }


def _methods(study: _Study, index: int) -> dict[str, Any]:
    testbed, outcomes = study.testbeds[index], study.outcomes[index]
    ends = {outcome.key: outcome.until for outcome in outcomes}
    return {
        "testbed": testbed.name,
        "rows": tables.method_rows(testbed, outcomes, study.options.reference),
        "warnings": [*rate_warnings(testbed), *_unequal(testbed)],
        "until_steps": ends.get("area_steps"),
        "until_tokens": ends.get("area_tokens"),
    }


def _unequal(testbed: Testbed) -> list[str]:
    """What differs between runs that are compared as equals."""
    lasts = [run.curve[-1] for method in testbed.methods for run in testbed.done(method).values()]
    found = []
    for name, values in (("steps", {p.step for p in lasts}), ("completions per problem, k", {p.k for p in lasts})):
        if len(values) > 1:
            found.append(f"Runs differ in {name}: {min(values)} to {max(values)}.")
    return found


def _counts(testbeds: Sequence[Testbed]) -> list[tuple[str, str]]:
    runs = [run for testbed in testbeds for its in testbed.runs.values() for run in its.values()]
    failed = sum(lack(run) is not None for run in runs)
    return [
        ("testbeds", str(len(testbeds))),
        ("methods", str(len({run.method for run in runs}))),
        ("bases", str(len({(run.testbed, run.base) for run in runs}))),
        ("seeds", str(len({run.seed for run in runs}))),
        ("runs", f"{len(runs)}, {failed} failed"),
    ]


def _failures(testbeds: Sequence[Testbed]) -> list[str]:
    return [
        f"{run.method} on {run.testbed}, base {run.base}, seed {run.seed}: {lack(run)}"
        for testbed in testbeds
        for method in testbed.methods
        for run in testbed.failed(method)
    ]


def _missing(families: Sequence[Family]) -> list[tuple[str, list[str]]]:
    """Pairs that a contrast of any outcome lacks, by testbed and the two methods."""
    found: dict[str, list[str]] = {}
    for family in families:
        if family.testbed is None:
            continue
        for c in family.contrasts:
            texts = found.setdefault(f"{c.method} against {c.reference} on {c.testbed}", [])
            texts += [text for text in c.missing if text not in texts]
    return [(name, texts) for name, texts in found.items() if texts]
