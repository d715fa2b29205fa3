"""Tables: methods with their results and costs, every run, every contrast."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from scgrpo.report.compare.contrasts import POOLED, Contrast, Family
from scgrpo.report.compare.outcomes import Outcome, OutcomeKey
from scgrpo.report.compare.ranking import rates_text, tuning_text
from scgrpo.report.compare.study import Testbed, lack
from scgrpo.report.compare.words import p_text, sentence
from scgrpo.report.text import NOTHING, duration, estimate, number
from scgrpo.runs.results import Compute, RunResult
from scgrpo.stats import t_interval

_OUTCOMES: tuple[OutcomeKey, ...] = ("final", "area_steps", "area_tokens")
_COSTS: dict[str, Callable[[Compute], float]] = {
    "sampled": lambda c: c.tokens_sampled,
    "student": lambda c: c.student_forward_tokens,
    "teacher": lambda c: c.teacher_forward_tokens,
    "seconds": lambda c: c.seconds,
}


@dataclass(frozen=True)
class MethodRow:
    """A method on a testbed, as text. Costs are means per run, beside them the ratio to the reference."""

    method: str
    is_reference: bool
    runs: str
    rate: str
    tuning: str
    final: str
    area_steps: str
    area_tokens: str
    sampled: str
    student: str
    teacher: str
    seconds: str


@dataclass(frozen=True)
class ContrastRow:
    """A contrast, as text."""

    method: str
    difference: str
    p: str
    corrected: str
    verdict: str
    rates: str
    pairs: str


def method_rows(testbed: Testbed, outcomes: Sequence[Outcome], reference: str) -> list[MethodRow]:
    """One per method, in the order of the testbed."""
    by_key = {outcome.key: outcome for outcome in outcomes}
    base = _costs(testbed, reference)
    rows = []
    for method in testbed.methods:
        rates, done, costs = testbed.rates(method), testbed.done(method), _costs(testbed, method)
        failed = len(testbed.failed(method))
        means = {key: _mean(by_key.get(key), list(done.values())) for key in _OUTCOMES}
        rows.append(
            MethodRow(
                method=method,
                is_reference=method == reference,
                runs=f"{len(done)}, {failed} failed" if failed else str(len(done)),
                rate=rates_text(rates.used),
                tuning=tuning_text(rates),
                **means,
                **{name: _cost(name, costs, base) for name in _COSTS},
            )
        )
    return rows


def contrast_rows(family: Family) -> list[ContrastRow]:
    """In the order of the methods; never by size."""
    likeness = {"tuned": "tuned alike", "same_rate": "same, not tuned", "unlike": "not alike †"}
    rows = []
    for c in family.contrasts:
        d = c.difference
        failed = f", {sum(c.failed)} failed" if any(c.failed) else ""
        rows.append(
            ContrastRow(
                method=c.method,
                difference=_signed(d.value, d.low, d.high),
                p=p_text(d.p),
                corrected=p_text(c.corrected),
                verdict=c.verdict if c.num_pairs else "no pair",
                rates=likeness[c.likeness],
                pairs=f"{c.num_pairs}{failed}",
            )
        )
    return rows


def contrasts_csv(families: Iterable[Family], margin: float) -> str:
    """One line per contrast; empty where there is no number."""
    return _csv([_contrast_record(c, margin) for family in families for c in family.contrasts])


def runs_csv(testbeds: Sequence[Testbed], outcomes: Sequence[Sequence[Outcome]]) -> str:
    """One line per run, failed ones too."""
    return _csv(
        [
            _run_record(run, its)
            for testbed, its in zip(testbeds, outcomes, strict=True)
            for method in testbed.methods
            for _, run in sorted(testbed.runs[method].items())
        ]
    )


def _contrast_record(c: Contrast, margin: float) -> dict[str, Any]:
    return {
        "outcome": c.outcome,
        "testbed": c.testbed or POOLED,
        "method": c.method,
        "reference": c.reference,
        "difference": c.difference.value,
        "low": c.difference.low,
        "high": c.difference.high,
        "p": c.difference.p,
        "p_holm": c.corrected,
        "family_size": c.family,
        "verdict": c.verdict,
        "learning_rates": c.likeness,
        "testbeds": c.num_testbeds,
        "bases": c.num_bases,
        "pairs": c.num_pairs,
        "problems": c.num_problems,
        "failed_method": c.failed[0],
        "failed_reference": c.failed[1],
        "missing_pairs": "; ".join(c.missing),
        "sentence": sentence(c, margin),
    }


def _run_record(run: RunResult, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    problem = lack(run)
    values = {outcome.key: outcome.of_run(run) for outcome in outcomes} if problem is None else {}
    last = run.curve[-1] if run.curve else None
    compute = run.compute
    return {
        "testbed": run.testbed,
        "base": run.base,
        "method": run.method,
        "seed": run.seed,
        "learning_rate": run.learning_rate,
        "tuned": rates_text(run.tuned),
        "status": "done" if problem is None else "failed",
        "error": problem or "",
        "steps": last.step if last else None,
        "k": last.k if last else None,
        **{key: values.get(key) for key in _OUTCOMES},
        "pass_at_k": last.pass_at_k if last else None,
        **{name: cost(compute) if compute else None for name, cost in _named_costs().items()},
        "path": run.path,
    }


def _named_costs() -> dict[str, Callable[[Compute], float]]:
    names = ("tokens_sampled", "student_forward_tokens", "teacher_forward_tokens", "seconds")
    return dict(zip(names, _COSTS.values(), strict=True))


def _csv(records: Sequence[dict[str, Any]]) -> str:
    file = io.StringIO()
    if records:
        writer = csv.DictWriter(file, records[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows([{name: _cell(value) for name, value in record.items()} for record in records])
    return file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    # A spreadsheet would run a text that starts so.
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _mean(outcome: Outcome | None, runs: Sequence[RunResult]) -> str:
    """Mean over runs with its t interval."""
    values = [outcome.of_run(run) for run in runs] if outcome else []
    mean, low, high = t_interval(np.array([v for v in values if math.isfinite(v)]))
    return estimate({k: None if math.isnan(v) else v for k, v in (("value", mean), ("low", low), ("high", high))})


def _costs(testbed: Testbed, method: str) -> dict[str, float]:
    """Mean costs over the runs that ended and were measured; {} without any."""
    measured = (
        [run.compute for run in testbed.done(method).values() if run.compute is not None]
        if (method in testbed.methods)
        else []
    )
    return {name: fmean(cost(c) for c in measured) for name, cost in _COSTS.items()} if measured else {}


def _cost(name: str, costs: dict[str, float], base: dict[str, float]) -> str:
    if name not in costs:
        return NOTHING
    value = costs[name]
    text = duration(value) if name == "seconds" else _amount(value)
    return f"{text} (×{value / base[name]:.2f})" if base.get(name) else text


def _amount(tokens: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{number(tokens / size)} {unit}"
    return number(float(tokens))


def _signed(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return NOTHING
    return f"{value:+.3f}" + ("" if math.isnan(low) else f" [{low:+.3f}, {high:+.3f}]")
