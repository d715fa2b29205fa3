"""The folder of a sweep: what is done, under which settings, and that one process at a time works on it.

sweep.json        the study and the settings of every combination, when it was last started
models.json       SHA-256 of the weights of models that were made for it
results.jsonl     one line per run that ended (`scgrpo.runs.results`)
superseded.jsonl  lines that no longer count: other settings, or a learning rate that tuning has left behind
runs/             run directories
cache/            evaluations before training
workers/          what the worker processes printed
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from scgrpo.cli.sweep.plan import Cell, Plan
from scgrpo.errors import RunError
from scgrpo.runs import files
from scgrpo.runs.results import FILE_NAME, RunKey, RunResult, append_result, read_results, write_results
from scgrpo.runs.schema import SCHEMA_VERSION


class SweepDirectory:
    """Results of a sweep on disk, and the same by key in `results`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[RunKey, RunResult] = {}
        if self._results_path.exists():
            self.results = {result.key: result for result in read_results(self._results_path)}

    @property
    def _results_path(self) -> Path:
        return self.path / FILE_NAME

    def locked(self) -> AbstractContextManager[None]:
        """Inside, no other process works on this sweep: `scgrpo.runs.files.locked`."""
        return files.locked(self.path)

    def remember(self, study: Mapping[str, Any], plan: Plan) -> None:
        """Write down what this start is about."""
        record = {"schema_version": SCHEMA_VERSION, "study": study, "settings": plan.settings}
        files.replace_text(self.path / "sweep.json", files.to_json(record, indent=1, default=str) + "\n")

    def check_models(self, fingerprints: Mapping[str, str]) -> None:
        """Write down the starting models that were made on demand, by name.

        Raises:
            RunError: one of them is not what earlier runs of this sweep started from (another kind of CPU or library
                version makes other weights): their results would not compare.
        """
        path = self.path / "models.json"
        before = files.read_json(path).get("sha256", {})
        others = sorted(name for name, value in fingerprints.items() if before.get(name, value) != value)
        if others:
            raise RunError(
                f"{', '.join(others)} came out with other weights than earlier runs in {self.path} started from.",
                "Go on where those were made, or start anew with another --out.",
            )
        record = {"schema_version": SCHEMA_VERSION, "sha256": {**before, **fingerprints}}
        files.replace_text(path, files.to_json(record, indent=1) + "\n")

    def changed(self, plan: Plan) -> dict[RunKey, list[str]]:
        """Finished runs of the plan that were made with other settings, with the names of these.

        Where `sweep.json` is not there any more, only the method's own settings can tell.
        """
        before = files.read_json(self.path / "sweep.json").get("settings", {})
        found = {}
        for key, result in self.results.items():
            cell = str(Cell(result.stage, result.testbed, result.base, result.method))
            now = plan.settings.get(cell)
            if now is None:
                continue
            method = plan.study.methods[result.method]
            then, now = (before[cell], _as_json(now)) if cell in before else (result.settings, _as_json(method))
            names = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
            if names:
                found[key] = names
        return found

    def add(self, result: RunResult) -> None:
        """A run has ended."""
        append_result(self._results_path, result)
        self.results[result.key] = result

    def supersede(self, keys: Iterable[RunKey]) -> int:
        """Move results out of the way; returns their number."""
        gone = [self.results.pop(key) for key in list(keys)]
        for result in gone:
            append_result(self.path / "superseded.jsonl", result)
        if gone:
            write_results(self._results_path, self.results.values())
        return len(gone)

    def forget_failures(self) -> int:
        """Take failed runs for not done, so that they run again; returns their number."""
        return self.supersede([key for key, result in self.results.items() if result.status == "failed"])

    def follow_tuning(self, plan: Plan) -> list[str]:
        """Bring final results in line with what tuning has chosen: those under a rate it has left behind no longer
        count, the others name all rates tried. Tells what it did, in words."""
        told: list[str] = []
        changes: dict[RunKey, RunResult] = {}
        for group in plan.groups() if plan.study.tune else ():
            choice = plan.choice(group, self.results)
            if choice is None:
                continue
            rate = min(choice.rates) if choice.rate is None else choice.rate
            final = [result for result in self.results.values() if result.stage == "final"]
            of_group = [result for result in final if (result.testbed, result.method) == group]
            left = [result.key for result in of_group if result.learning_rate != rate]
            if left:
                told.append(f"{'/'.join(group)}: {len(left)} final runs under another learning rate no longer count")
                self.supersede(left)
            kept = [result for result in of_group if result.learning_rate == rate]
            changes |= {r.key: replace(r, tuned=list(choice.rates)) for r in kept if r.tuned != list(choice.rates)}
        if changes:
            self.results |= changes
            write_results(self._results_path, self.results.values())
        return told


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they read when they were written and read again."""
    return dict(json.loads(files.to_json(settings, default=str)))
