"""An evaluation on the terminal: a table for people, plain lines for everything else."""

from __future__ import annotations

import sys

from scgrpo.evaluation import EvalResult
from scgrpo.evaluation.metrics import Estimate

_MOST_FAILURES = 5


def show(result: EvalResult) -> None:
    """Print the estimates, and what else there is to know of them."""
    if sys.stdout.isatty():
        _print_table(result)
    else:
        for label, e in estimates(result):
            print(f"{label:8s} {e.value:.4f}  95 % interval [{e.low:.4f}, {e.high:.4f}]  {e.num_problems} problems")
    for line in remarks(result):
        print(line)


def estimates(result: EvalResult) -> list[tuple[str, Estimate]]:
    """Those to show, by name."""
    passes = {**result.pass_at, result.k: result.pass_at_k}
    return [
        (f"Avg@{result.num_samples}", result.avg_at_k),
        ("success", result.success_rate),
        *((f"Pass@{k}", passes[k]) for k in sorted(passes) if k > 1 or len(passes) == 1),
    ]


def remarks(result: EvalResult) -> list[str]:
    """Errors, lengths, speed; and estimates that lack problems."""
    lines = [
        f"ungraded {result.error_frac:.2%} ({result.num_errors} errors, {result.num_timeouts} timeouts), "
        f"cut off {result.truncated_frac:.2%}, {result.mean_completion_tokens:.0f} tokens on average, "
        f"{result.max_completion_tokens} at most, {result.tokens_per_s:.0f} tokens/s, {result.seconds:.1f} s"
    ]
    for k, estimate in result.pass_at.items():
        missing = result.num_problems - estimate.num_problems
        if missing:
            lines.append(f"Pass@{k} is without {missing} problem(s) that have fewer than {k} graded completions")
    for failure in result.failures[:_MOST_FAILURES]:
        lines.append(
            f"{failure.status}: problem {failure.problem_id}, completion {failure.sample}: {failure.detail[:200]}"
        )
    more = result.num_errors + result.num_timeouts - _MOST_FAILURES
    if more > 0:
        lines.append(f"... and {more} more without a grade")
    return lines


def _print_table(result: EvalResult) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, title=f"{result.task}, {result.num_problems} problems", title_justify="left")
    table.add_column("")
    for name in ("value", "95 % interval", "problems"):
        table.add_column(name, justify="right")
    for label, e in estimates(result):
        table.add_row(label, f"{e.value:.4f}", rf"\[{e.low:.4f}, {e.high:.4f}]", str(e.num_problems))
    Console(highlight=False).print(table)
