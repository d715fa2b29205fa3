"""What was run and what came out: the tables at the head and the foot of the page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scgrpo.report.text import NOTHING, duration, estimate, number
from scgrpo.report.view import RunView

_TRAIN_FACTS = {
    "credit": "credit method",
    "max_steps": "optimizer steps",
    "num_generations": "rollouts per prompt, G",
    "learning_rate": "learning rate",
    "temperature": "temperature",
    "max_completion_length": "longest completion, tokens",
    "loss_type": "loss",
    "teacher_template": "teacher prompt",
    "teacher_weights": "teacher weights",
    "credit_quantile": "quantile of the threshold c",
    "seed": "seed",
}


@dataclass(frozen=True)
class ResultRow:
    """Before and after of one run on one benchmark, as text.

    Attributes:
        success_before, success_after: share of completions that are solved; "" where that is what Avg@k says.
    """

    run: str
    task: str
    k: int
    avg_before: str
    avg_after: str
    pass_before: str
    pass_after: str
    success_before: str
    success_after: str
    num_problems: str
    ungraded: str
    cut_off: str


@dataclass(frozen=True)
class CostRow:
    """What a run cost, as text."""

    run: str
    steps: str
    train_time: str
    step_time: str
    ratio: str
    teacher_time: str
    eval_time: str


def result_rows(views: Sequence[RunView]) -> list[ResultRow]:
    """One row per benchmark and run, runs of a benchmark together."""
    benchmarks = list(dict.fromkeys(b for view in views for b in view.benchmarks()))
    rows = []
    for benchmark in benchmarks:
        for view in views:
            before, after = view.before_after(benchmark)
            if before is None and after is None:
                continue
            first, last = before or {}, after or {}
            latest = after or before or {}
            partial = any(map(has_partial_scores, (first, last)))
            rows.append(
                ResultRow(
                    run=view.label,
                    task=benchmark[0],
                    k=benchmark[1],
                    avg_before=estimate(first.get("avg_at_k")),
                    avg_after=estimate(last.get("avg_at_k")),
                    pass_before=estimate(first.get("pass_at_k")),
                    pass_after=estimate(last.get("pass_at_k")),
                    success_before=estimate(first.get("success_rate")) if partial else "",
                    success_after=estimate(last.get("success_rate")) if partial else "",
                    num_problems=number(latest.get("num_problems")),
                    ungraded=percent(latest.get("error_frac")),
                    cut_off=percent(latest.get("truncated_frac")),
                )
            )
    return rows


def has_partial_scores(evaluation: Mapping[str, Any]) -> bool:
    """Whether scores lie between 0 and 1, so that Avg@k, their mean, is not the share of solved completions."""
    solved, score = ((evaluation.get(name) or {}).get("value") for name in ("success_rate", "avg_at_k"))
    return solved is not None and score is not None and not math.isclose(solved, score, abs_tol=1e-9)


def changed_problems(view: RunView) -> list[str]:
    """Per benchmark, how many problems were solved more often, less often, as often."""
    sentences = []
    for benchmark in view.benchmarks():
        rates = [_solve_rates(record or {}) for record in view.before_after(benchmark)]
        common = rates[0].keys() & rates[1].keys()
        if common:
            better = sum(rates[1][p] > rates[0][p] for p in common)
            worse = sum(rates[1][p] < rates[0][p] for p in common)
            sentences.append(
                f"{view.label} on {benchmark[0]}: of {len(common)} problems, {better} were solved more often after "
                f"training than before, {worse} less often, {len(common) - better - worse} as often."
            )
    return sentences


def cost_rows(views: Sequence[RunView]) -> list[CostRow]:
    """Steps and seconds of each run; `ratio` is the median step over that of the run with uniform credit."""
    medians = [view.median("step_time") for view in views]
    plain = (m for view, m in zip(views, medians, strict=True) if view.train.get("credit") == "uniform")
    base = next(plain, None)
    rows = []
    for view, median in zip(views, medians, strict=True):
        times = [t for t in view.series("time_s")[1] if math.isfinite(t)]
        evals = [e["seconds"] for e in view.evals if isinstance(e.get("seconds"), int | float)]
        rows.append(
            CostRow(
                run=view.label,
                steps=number(int(view.metrics[-1]["step"])) if view.metrics else NOTHING,
                train_time=duration(max(times, default=None)),
                step_time=duration(median),
                ratio=f"{median / base:.2f}" if median and base else NOTHING,
                teacher_time=duration(view.median("credit/teacher_pass_s")),
                eval_time=duration(sum(evals)) if evals else NOTHING,
            )
        )
    return rows


def highlights(view: RunView) -> list[tuple[str, str]]:
    """The settings one asks for first, as (name, value)."""
    config = view.config
    facts = [("recipe", config.get("recipe"))]
    for name, key in (("model", "name_or_path"), ("task", "name")):
        part = config.get(name)
        facts.append((name, part.get(key) if isinstance(part, dict) else None))
    facts += [(text, view.train.get(key)) for key, text in _TRAIN_FACTS.items()]
    return [(name, number(value)) for name, value in facts if value is not None]


def starts(view: RunView) -> list[dict[str, Any]]:
    """Every start in `provenance.json`, its mappings as text."""
    shown = []
    for start in view.run.provenance().get("starts") or []:
        shown.append(
            {
                "time": start.get("time", ""),
                "command": " ".join(start.get("command") or []),
                "facts": [
                    (name.replace("_", " "), _flat(start[name]))
                    for name in ("seeds", "packages", "git", "python", "platform", "hardware")
                    if start.get(name)
                ],
            }
        )
    return shown


def config_text(view: RunView) -> str:
    """The resolved configuration as indented JSON."""
    return json.dumps(view.config, indent=2, ensure_ascii=False) if view.config else ""


def percent(fraction: Any) -> str:
    """A fraction as a percentage."""
    return NOTHING if fraction is None else f"{number(100 * float(fraction))} %"


def _solve_rates(record: dict[str, Any]) -> dict[str, float]:
    problems = record.get("per_problem") or []
    return {str(p["problem_id"]): p["num_solved"] / p["n"] for p in problems if p.get("n")}


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return number(value) if isinstance(value, bool) else str(value)
