"""`scgrpo sandbox check`: what this machine gives, attacks on it, and how fast it is."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

from scgrpo.sandbox import Probe, Sandbox, open_sandbox, probe
from scgrpo.sandbox.escapes import Finding, run_corpus, secret_environment
from scgrpo.sandbox.opening import BACKENDS
from scgrpo.sandbox.timing import measure

_VERDICTS = {True: "held", False: "ESCAPED", None: "NO ANSWER"}


def sandbox_command(argv: Sequence[str]) -> int:
    """Exit codes of `check`: 0 all attacks were held, 1 something got out or gave no answer."""
    args = _parser().parse_args(argv)
    if args.backend != "remote":
        _show_probe(probe())
    with (
        secret_environment(),
        open_sandbox(
            args.backend, num_workers=args.num_workers, allow_insecure=args.allow_insecure, url=args.url
        ) as sandbox,
    ):
        print(f"checked: {sandbox.level}")
        failed = False if args.no_attacks else _attack(sandbox)
        if args.bench:
            _bench(sandbox, args.num_runs, args.num_workers)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scgrpo sandbox", description="The sandbox that runs untrusted code.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="probe the machine, run the escape corpus, print a table")
    check.add_argument("--backend", choices=BACKENDS, default="auto")
    check.add_argument("--url", help="of the remote runner")
    check.add_argument("--num_workers", type=int, default=2)
    check.add_argument("--allow_insecure", action="store_true", help="attack even a machine that holds nothing")
    check.add_argument("--no_attacks", action="store_true", help="only the probe, and --bench")
    check.add_argument("--bench", action="store_true", help="measure latency and throughput of trivial runs")
    check.add_argument("--num_runs", type=int, default=300, help="of --bench")
    return parser


def _show_probe(found: Probe) -> None:
    print(found.system)
    print(f"zygote: {found.level} ({'; '.join(found.notes)})")
    print(f"bubblewrap: {found.bubblewrap or found.bubblewrap_note}")


def _attack(sandbox: Sandbox) -> bool:
    findings: list[Finding] = []
    for finding in run_corpus(sandbox):
        findings.append(finding)
        if finding.held is not True:
            print(f"{_VERDICTS[finding.held]}: {finding.name}: {finding.seen}", flush=True)
    rows = [[item.group, item.name, item.expected, item.seen[:50], _VERDICTS[item.held]] for item in findings]
    _show_table(["group", "attack", "expected", "seen", "verdict"], rows)
    counts = Counter(_VERDICTS[item.held] for item in findings)
    print(f"{len(findings)} attacks: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return counts["held"] < len(findings)


def _bench(sandbox: Sandbox, num_runs: int, num_workers: int) -> None:
    rows = []
    for item in measure(sandbox, num_runs):
        values = (item.minimum_ms, item.p10_ms, item.median_ms, item.p95_ms, item.cpu_ms)
        times = ["" if value is None else f"{value:.1f}" for value in values]
        rows.append([item.what, *times, "" if item.per_second is None else f"{item.per_second:.0f}"])
    _show_table(["", "min ms", "p10 ms", "median ms", "p95 ms", "CPU ms", f"runs/s, {num_workers} workers"], rows)


def _show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:
        for row in (columns, *rows):
            print("\t".join(row))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=150)
    table = Table(box=None)
    for name in columns:
        table.add_column(name)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
