"""The paper's tables with our runs in their places: rows by a run's settings, columns by what it was evaluated on."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scgrpo.report import paper
from scgrpo.report.text import number
from scgrpo.report.view import RunView

Bounds = tuple[float | None, float | None, float | None]  # value, low, high; percent

# What a run is trained with where its configuration does not say, and what the paper's method is.
PAPER_SETTINGS: dict[str, Any] = {
    "loss_type": "grpo",
    "importance_sampling_level": "token",
    "scale_rewards": "group",
    "beta": 0.0,
    "epsilon": 0.2,
    "dynamic_sampling_max_rounds": 0,
    "overlong_frac": 0.0,
    "credit_quantile": 0.75,
    "credit_fixed_threshold": None,
    "credit_alpha": 0.1,
    "credit_normalize": "none",
    "credit_weight_sign": "both",
    "credit_demonstrations": "uniform",
    "credit_routes": "partial",
    "credit_mix": 1.0,
    "credit_anneal_steps": None,
    "teacher_weights": "current",
    "divergence": "exact",
    "divergence_direction": "forward",
}
# These say how the threshold is found, not what is ablated: a run keeps its row, and says what it has.
_NOTED: dict[str, Any] = {"credit_floor": 1e-4, "credit_scope": "generation_batch"}
# Table 3 by the one setting that differs.
_ABLATIONS: dict[tuple[str, Any], str] = {
    ("credit_alpha", 0.0): "partial-solve only",
    ("credit_routes", "mixed"): "weights on 1 ≤ n_c ≤ 7",
    ("credit_routes", "all_solved"): "all-correct groups only",
    ("credit_routes", "all"): "all groups",
    ("credit_fixed_threshold", 1e-4): "fixed c = 1e-4",
    ("credit_quantile", 0.5): "c = p50 of D",
    ("credit_alpha", 0.2): "alpha = 0.2",
}
# What tells variants of a distillation loss apart, where there is one.
_DISTILLATION = (
    "distill_coef",
    "distill_start_coef",
    "distill_warmup_steps",
    "distill_divergence",
    "distill_context",
)
_ADDITIVE = "additive loss: forward, reverse or both, beta 0.1 or 0.03 → 0.1"
_COLUMNS = {
    "aime24": "AIME24",
    "aime2024": "AIME24",
    "aime25": "AIME25",
    "aime2025": "AIME25",
    "lcbv6": "LCB v6",
    "livecodebenchv6": "LCB v6",
    "appworld": "AppWorld",
    "webshop": "WebShop",
}


@dataclass(frozen=True)
class Cell:
    """Avg@k and Pass@k in percent. `span`: avg is a range over variants of a method, not a value and its interval."""

    avg: Bounds
    passed: Bounds | None = None
    k: int = paper.K
    span: bool = False

    @property
    def text(self) -> str:
        if self.span:
            return f"{self.avg[1]:.2f} to {self.avg[2]:.2f}"
        values = [self.avg] if self.passed is None else [self.avg, self.passed]
        text = " / ".join("–" if value is None else f"{value:.2f}" for value, _, _ in values)
        return text if self.k == paper.K else f"{text} (k = {self.k})"

    @property
    def intervals(self) -> list[str]:
        """95 % intervals of Avg and of Pass, as far as they are known."""
        known = [b for b in (self.avg, self.passed) if b is not None and b[1] is not None and b[2] is not None]
        return [] if self.span else [f"[{low:.1f}, {high:.1f}]" for _, low, high in known]


@dataclass(frozen=True)
class Entry:
    """A line of a table: the paper's (`ours` false), or a run's. `note`: what else one has to know of it."""

    name: str
    model: str
    cells: Mapping[str, Cell]
    ours: bool = False
    note: str = ""


@dataclass
class Table:
    """A table of the paper. `rows`: by the paper's name, its own line and then ours; `number` 0: runs beside it."""

    number: int
    title: str
    columns: list[str]
    rows: dict[str, list[Entry]] = field(default_factory=dict)


def build_tables(views: Sequence[RunView]) -> list[Table]:
    """Tables 1 to 3, and one of the runs that have no place in them, if there are any."""
    columns = dict.fromkeys(_column(task) for view in views for task, _ in view.benchmarks())
    main, loss, ablations = _paper_tables([column for column in columns if column not in _paper_columns()])
    main.rows[paper.MODEL] += _starts(views)
    rest = Table(0, "Runs that are none of these rows", main.columns)
    for view in views:
        places = ((main, main_row(view)), (loss, loss_row(view)), (ablations, ablation_row(view)))
        found = [(table, row) for table, row in places if row is not None]
        for table, row in found:
            table.rows[row].append(_entry(view, both=table is main))
        if not found:
            rest.rows[view.label] = [_entry(view, both=True)]
    return [main, loss, ablations, *([rest] if rest.rows else [])]


def _paper_tables(own_columns: list[str]) -> tuple[Table, Table, Table]:
    """The paper's numbers alone, with columns for ours."""
    main = Table(1, "Main results, Avg@8 / Pass@8", [*_paper_columns(), *own_columns])
    for name, scores in paper.MAIN.items():
        told = {c: Cell(_exact(s[0]), _exact(s[1])) for c, s in zip(_paper_columns(), scores, strict=True) if s}
        main.rows[name] = [Entry(name, paper.MODEL, told)]

    def on_lcb(number: int, title: str, cells: dict[str, Cell]) -> Table:
        rows = {name: [Entry(name, paper.MODEL, {"LCB v6": cell})] for name, cell in cells.items()}
        return Table(number, title, ["LCB v6", *own_columns], rows)

    ablations = {name: Cell(_exact(avg)) for name, avg in paper.ABLATIONS.items()}
    variants = {_ADDITIVE: Cell((None, *paper.ADDITIVE_LOSS), span=True), "SC-GRPO": ablations[paper.FULL_METHOD]}
    loss = on_lcb(2, "KL as an additive loss instead of a weight, Avg@8", variants)
    return main, loss, on_lcb(3, "Ablations of SC-GRPO, Avg@8", ablations)


def main_row(view: RunView) -> str | None:
    """Row of Table 1 that a run belongs to, None if to none."""
    label, train = view.config.get("label"), view.train
    if label in ("dapo", "reinforce++", "opsd"):
        return str(label).upper()
    if train.get("method") not in (None, "grpo", "sc_grpo") or differences(view):
        return None
    return {"uniform": "GRPO", "sc_grpo": "SC-GRPO"}.get(str(train.get("credit")))


def loss_row(view: RunView) -> str | None:
    """Row of Table 2 that a run belongs to, None if to none."""
    if view.config.get("label") == "grpo_kl":
        return _ADDITIVE
    return "SC-GRPO" if main_row(view) == "SC-GRPO" else None


def ablation_row(view: RunView) -> str | None:
    """Row of Table 3 that a run belongs to: SC-GRPO as it is, or with exactly one setting changed."""
    if view.train.get("credit") != "sc_grpo" or view.train.get("method") not in (None, "grpo", "sc_grpo"):
        return None
    changed = differences(view)
    if not changed:
        return paper.FULL_METHOD
    return _ABLATIONS.get(next(iter(changed.items()))) if len(changed) == 1 else None


def differences(view: RunView) -> dict[str, Any]:
    """Settings in which a run is not the paper's method; those of the credit only where it has one."""
    uniform = view.train.get("credit") == "uniform"
    names = [name for name in PAPER_SETTINGS if not (uniform and name.startswith(("credit_", "teacher_", "diverg")))]
    changed = {name: view.train.get(name, PAPER_SETTINGS[name]) for name in names}
    changed = {name: value for name, value in changed.items() if value != PAPER_SETTINGS[name]}
    if changed.get("credit_anneal_steps") == 0:
        del changed["credit_anneal_steps"]
    high = view.train.get("epsilon_high")
    if high not in (None, PAPER_SETTINGS["epsilon"]):
        changed["epsilon_high"] = high
    if view.train.get("distill_coef") or view.train.get("distill_start_coef"):
        changed |= {name: view.train[name] for name in _DISTILLATION if view.train.get(name)}
    return changed


def tables_csv(tables: Sequence[Table]) -> str:
    """All cells, a line each. Scores in percent."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    bounds = [f"{name}{end}" for name in ("avg", "pass") for end in ("", "_low", "_high")]
    writer.writerow(["table", "row", "source", "run", "model", "note", "column", "k", *bounds])
    for table in tables:
        for row, entries in table.rows.items():
            for entry in entries:
                for column, cell in entry.cells.items():
                    values = [*cell.avg, *(cell.passed or (None, None, None))]
                    numbers = ["" if value is None else f"{value:.2f}" for value in values]
                    source = ("run", entry.name) if entry.ours else ("paper", "")
                    number = table.number or "none"
                    writer.writerow([number, row, *source, entry.model, entry.note, column, cell.k, *numbers])
    return out.getvalue()


def model_name(view: RunView) -> str:
    """What a run started from."""
    model = view.config.get("model")
    return str((model if isinstance(model, dict) else {}).get("name_or_path") or "unknown model")


def _paper_columns() -> list[str]:
    return [*paper.BENCHMARKS, paper.MEAN]


def _starts(views: Sequence[RunView]) -> Iterator[Entry]:
    """Models before training; runs with the same evaluation before training share a line."""
    seen = []
    for view in views:
        cells = _cells(view, 0, both=True)
        if cells and (model_name(view), cells) not in seen:
            seen.append((model_name(view), cells))
            yield Entry("before training", model_name(view), cells, ours=True)


def _entry(view: RunView, *, both: bool) -> Entry:
    cells = _cells(view, 1, both=both)
    changed = differences(view) | {
        name: view.train[name] for name, value in _NOTED.items() if view.train.get(name, value) != value
    }
    facts = [f"{name} = {number(value)}" for name, value in changed.items()] if view.train.get("credit") else []
    facts += [] if cells else ["no evaluation after training"]
    name = view.label if view.label.endswith(view.folder) else f"{view.label}, {view.folder}"
    return Entry(name, model_name(view), cells, ours=True, note=", ".join(facts))


def _cells(view: RunView, end: int, *, both: bool) -> dict[str, Cell]:
    """Scores before (`end` 0) or after (1) training; of several k on one task, the paper's counts."""
    cells: dict[str, Cell] = {}
    for benchmark in sorted(view.benchmarks(), key=lambda b: b[1] == paper.K):
        record = view.before_after(benchmark)[end]
        if record is not None and (avg := _percent(record.get("avg_at_k"))) is not None:
            passed = _percent(record.get("pass_at_k")) if both else None
            cells[_column(benchmark[0])] = Cell(avg, passed, benchmark[1])
    if all(name in cells for name in paper.BENCHMARKS):
        own = [cells[name] for name in paper.BENCHMARKS]
        cells[paper.MEAN] = Cell(_mean([c.avg for c in own]), _mean([c.passed for c in own]) if both else None)
    return cells


def _column(task: str) -> str:
    return _COLUMNS.get(re.sub(r"[^a-z0-9]", "", task.lower()), task)


def _percent(estimate: Any) -> Bounds | None:
    if not isinstance(estimate, dict) or estimate.get("value") is None:
        return None
    value, low, high = (None if estimate.get(x) is None else 100 * estimate[x] for x in ("value", "low", "high"))
    return value, low, high


def _exact(value: float) -> Bounds:
    return value, None, None


def _mean(bounds: Sequence[Bounds | None]) -> Bounds:
    values = [b[0] for b in bounds if b is not None and b[0] is not None]
    return (sum(values) / len(values) if len(values) == len(bounds) else None), None, None
