"""`scgrpo appworld setup | check`: AppWorld's virtual environment, our small world, and whether they work."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scgrpo.tasks.appworld import AppWorldTask
from scgrpo.tasks.appworld.environment import AppWorldEnvironment
from scgrpo.tasks.appworld.install import LICENCE_NOTE, PACKAGE, build_mini_world, install, what_is_missing
from scgrpo.tasks.appworld.places import find
from scgrpo.tasks.appworld.prompts import action_of
from scgrpo.tasks.base import Completion, Row, Verdict

_NUM_CALLS = 20


def appworld_command(argv: Sequence[str]) -> int:
    """Set AppWorld up, or play one of its tasks right and wrong."""
    parser = argparse.ArgumentParser(prog="scgrpo appworld", description="The benchmark AppWorld.")
    commands = parser.add_subparsers(dest="command", required=True)
    setup = commands.add_parser("setup", help=f"install {PACKAGE} in a virtual environment of its own")
    check = commands.add_parser("check", help="start a server, play a task right and wrong, print times")
    for command in (setup, check):
        command.add_argument(
            "--root", type=Path, help="folder for all of it (default: $SCGRPO_APPWORLD_ROOT, or a cache)"
        )
    setup.add_argument("--mini", action="store_true", help="build a small world of our own too; needs no download")
    setup.add_argument("--python", default=sys.executable, help="interpreter for the virtual environment")
    check.add_argument("--mini", action="store_true", help="in the small world")
    check.add_argument("--unconfined", action="store_true", help="run the server unconfined")
    args = parser.parse_args(argv)
    return _setup(args) if args.command == "setup" else _check(args)


def _setup(args: argparse.Namespace) -> int:
    places = find(args.root)
    install(places, args.python)
    if args.mini:
        build_mini_world(places)
        print("Try it: scgrpo appworld check --mini" + (f" --root {args.root}" if args.root else ""))
    if missing := what_is_missing(places):
        print(missing)
    print(f"\n{LICENCE_NOTE}")
    return 0


def _check(args: argparse.Namespace) -> int:
    task = AppWorldTask(
        root=str(args.root) if args.root else None, mini=args.mini, num_servers=1, confine=not args.unconfined
    )
    try:
        canned = task.canned()
        started = time.perf_counter()
        task.pool.release(task.pool.lease(1.0))
        print(f"started a server in {time.perf_counter() - started:.1f} s")
        for name, value in {**task.pool.facts["versions"], **task.pool.facts["confinement"]}.items():
            print(f"  {name:10s} {value}")
        for split in ("train", "eval"):
            print(f"{task.sets[split]}: {len(task.rows(split))} tasks")
        ok = True
        for wanted, completions in ((True, canned.right), (False, canned.wrong)):
            for completion in completions:
                verdict = _played(task, canned.row, completion)
                ok &= (verdict.score >= task.success_threshold) == wanted and verdict.status == "graded"
                print(f"{'right' if wanted else 'wrong'} solution: {verdict.score:g} ({verdict.detail})")
        _print_times(task, canned.row)
    finally:
        task.close()
    print("all as it should be" if ok else "NOT as it should be")
    return 0 if ok else 1


def _played(task: AppWorldTask, row: Row, completion: Completion) -> Verdict:
    return task.verify([completion], [row])[0]


def _print_times(task: AppWorldTask, row: Row) -> None:
    environment = AppWorldEnvironment(row["task_id"], task.pool, task.settings)
    times: list[float] = []
    for call in range(_NUM_CALLS + 1):
        started = time.perf_counter()
        environment.step(action_of(f"print({call})"))
        times.append(1e3 * (time.perf_counter() - started))
    started = time.perf_counter()
    environment.verdict()
    judged = 1e3 * (time.perf_counter() - started)
    print(
        f"first step (with the world) {times[0]:.0f} ms, median step {statistics.median(times[1:]):.0f} ms", end=", "
    )
    print(f"tests {judged:.0f} ms")
