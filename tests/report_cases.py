"""Synthetic runs for tests of reports, and a page's parts as a reader of HTML sees them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

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


def eval_record(
    step: int, label: str, value: float, passed: float, rates: Sequence[int] = (1, 2), **changes: Any
) -> dict[str, Any]:
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
        **changes,
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
    metrics |= {"timing/sampling_s": 0.12, "timing/scoring_s": 0.04 if credit else 0.0, "timing/recording_s": 0.01}
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
