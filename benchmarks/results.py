"""Tables of ratios: printed, and kept as JSON with what is needed to repeat them."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.measure import Floor, Work, ratios

PACKAGES = ("torch", "triton", "transformers", "trl", "liger-kernel", "accelerate", "scgrpo")


@dataclass(frozen=True)
class Row:
    """One candidate; None where nothing was timed.

    Attributes:
        ratio, ratio_low, ratio_high: median and range of the ratio to the table's base in the same repetition.
        best: ratio of the fastest repetitions of both, which neighbours on the machine disturbed least.
    """

    name: str
    median_s: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    best: float | None = None
    floor_ratio: float | None = None
    peak_mib: float | None = None
    value: float | None = None


@dataclass(frozen=True)
class Target:
    """`measured` (of medians) should not exceed `limit`; `best` is the same of the fastest repetitions."""

    what: str
    measured: float
    limit: float
    best: float | None = None

    @property
    def verdict(self) -> str:
        if self.measured <= self.limit:
            return "met"
        return "met at best" if self.best is not None and self.best <= self.limit else "MISSED"


@dataclass
class Table:
    """One comparison.

    Attributes:
        base: the candidate others are divided by. value: what the `value` column holds, if anything.
        targets: shown all at once at the end of a run.
    """

    case: str
    title: str
    base: str
    rows: list[Row]
    value: str = ""
    notes: list[str] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    def __getitem__(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def require(self, what: str, measured: float, limit: float) -> None:
        """Note a target for something that is not a time."""
        self.targets.append(Target(what, measured, limit))

    def require_time(self, what: str, limit: float, formula: Callable[[Callable[[str], float]], float]) -> None:
        """Note a target for `formula` of candidates' times in units of the base's."""

        def ratio(name: str) -> float:
            return self[name].ratio or float("nan")

        def best(name: str) -> float:
            return self[name].best or float("nan")

        self.targets.append(Target(what, formula(ratio), limit, formula(best)))


def timed_rows(
    seconds: Mapping[str, list[float]],
    base: str,
    *,
    floor_s: float | None = None,
    peak: Mapping[str, int | None] | None = None,
) -> list[Row]:
    """Rows of interleaved candidates. `floor_s`: roofline of the work that all of them share."""
    rows = []
    for name, values in seconds.items():
        median, low, high = ratios(values, seconds[base])
        bytes_ = (peak or {}).get(name)
        middle = statistics.median(values)
        rows.append(
            Row(
                name,
                middle,
                median,
                low,
                high,
                min(values) / min(seconds[base]),
                None if floor_s is None else min(values) / floor_s,
                None if bytes_ is None else bytes_ / 2**20,
            )
        )
    return rows


def show(table: Table, console: Console) -> None:
    """Print it."""
    console.print(f"\n{table.case}: {table.title}", highlight=False)
    out = RichTable()
    columns = {
        "": lambda r: r.name,
        "seconds": lambda r: _text(r.median_s, "{:.4f}"),
        "ratio": lambda r: _text(r.ratio, "{:.3f}"),
        "range": lambda r: "" if r.ratio_low is None else f"{r.ratio_low:.2f} to {r.ratio_high:.2f}",
        "best": lambda r: _text(r.best, "{:.3f}"),
        "/ floor": lambda r: _text(r.floor_ratio, "{:.2f}"),
        "peak MiB": lambda r: _text(r.peak_mib, "{:,.0f}"),
        table.value or "value": lambda r: _text(r.value, "{:.3g}"),
    }
    used = {name: get for name, get in columns.items() if any(get(row) for row in table.rows)}
    for name in used:
        out.add_column(name, justify="right" if name else "left", no_wrap=True)
    for row in table.rows:
        out.add_row(*(get(row) for get in used.values()))
    console.print(out)
    for note in table.notes:
        console.print(f"  {note}", highlight=False)


def show_targets(tables: list[Table], console: Console) -> None:
    """Print every target with what was measured."""
    found = [(table.case, target) for table in tables for target in table.targets]
    if not found:
        return
    console.print("\ntargets")
    out = RichTable()
    for column in ("case", "what", "measured", "best", "limit", ""):
        out.add_column(column, justify="right" if column in ("measured", "best", "limit") else "left")
    for case, target in found:
        numbers = (_text(value, "{:.3g}") for value in (target.measured, target.best, target.limit))
        out.add_row(case, target.what, *numbers, target.verdict)
    console.print(out)


def save(path: Path, tables: list[Table], floor: Floor, about: Mapping[str, Any]) -> None:
    """Write everything as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {**about, "floor": asdict(floor), "versions": _versions(), "tables": [asdict(t) for t in tables]}
    path.write_text(json.dumps(record, indent=1) + "\n")


def device_name(device: torch.device) -> str:
    """As the vendor calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def head_work(tokens: int, hidden: int, words: int, itemsize: int, sides: int = 2) -> Work:
    """Products of `sides` models with the output head, whose weights are read once."""
    return Work(2.0 * sides * tokens * hidden * words, itemsize * (words * hidden + sides * tokens * hidden))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _text(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
