"""The evaluation directory: every completion with its verdict as it is graded, so that nothing is sampled twice."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scgrpo.errors import RunError
from scgrpo.evaluation.results import Sample
from scgrpo.runs import files
from scgrpo.runs.provenance import describe_start, hide_secrets
from scgrpo.runs.schema import SCHEMA_VERSION
from scgrpo.tasks.base import Status, Verdict

SETTINGS, COMPLETIONS, RESULT = "settings.json", "completions.jsonl", "result.json"


class EvalDirectory:
    """The files of one evaluation (docs/evaluation.md). Pass it to `evaluate`, again after an interruption.

    Attributes:
        path: the folder; made with its parents.
        about: what else decides the numbers, by name: options of the task, the model's name, ... JSON values. With
            other ones the folder is refused.
        num_kept: completions in the folder.
        notes: damage found and worked around while reading, in words.
    """

    def __init__(self, path: Path | str, about: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.about = dict(about or {})
        self.num_kept = 0
        self.notes: list[str] = []

    @contextlib.contextmanager
    def opened(self, settings: Mapping[str, Any]) -> Iterator[dict[tuple[int, int], Sample]]:
        """Begin or continue: gives what was graded before, by row and sample. No other process works on the folder
        meanwhile.

        Args:
            settings: all that decides the numbers, by name, besides `about`.

        Raises:
            RunError: the folder holds something else, or an evaluation with other settings (they are named); another
                process works on it; it cannot be written.
        """
        if self.path.is_dir() and not (self.path / SETTINGS).exists():
            others = [file.name for file in self.path.iterdir() if file.name != files.LOCK]
            if others:
                raise RunError(
                    f"{self.path} is not empty and holds no evaluation (but {sorted(others)[0]}, for example).",
                    "Choose another --out; nothing was changed.",
                )
        with files.locked(self.path):
            self._start(json.loads(files.to_json({**settings, **self.about}, default=str)))
            files.mend_last_line(self.path / COMPLETIONS)
            known = self._read()
            self.num_kept = len(known)
            yield known

    def append(self, samples: Sequence[Sample]) -> None:
        """Keep graded completions, one line each.

        Raises:
            RunError: they cannot be written (a full disk); what was written before is kept.
        """
        try:
            files.append_lines(self.path / COMPLETIONS, [_line(sample) for sample in samples])
        except OSError as error:
            raise RunError(
                f"Cannot write {self.path / COMPLETIONS}: {error.strerror or error}. "
                f"{self.num_kept} graded completions are kept in it.",
                "Make room, and start the same command again: it goes on where it stopped.",
            ) from error
        self.num_kept += len(samples)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write the numbers, as `--json` has them, with the settings they were made with."""
        settings = files.read_json(self.path / SETTINGS)["settings"]
        text = files.to_json({"schema_version": SCHEMA_VERSION, **record, "settings": settings}, indent=2)
        files.replace_text(self.path / RESULT, text + "\n")

    def _start(self, settings: dict[str, Any]) -> None:
        path = self.path / SETTINGS
        before = files.read_json(path)
        known = before.get("settings", settings)
        if different := differences(known, settings):
            raise RunError(
                f"{self.path} holds an evaluation with other settings: {'; '.join(different)}.",
                "Choose another --out, or the same settings.",
            )
        starts = [*before.get("starts", []), describe_start(sys.argv, {"seed": settings.get("seed", 0)})]
        record = {"schema_version": SCHEMA_VERSION, "settings": known, "starts": hide_secrets(starts)}
        files.replace_text(path, files.to_json(record, indent=2, default=str) + "\n")

    def _read(self) -> dict[tuple[int, int], Sample]:
        path = self.path / COMPLETIONS
        read = files.read_json_lines(path)
        if read.damage:
            self.notes.append(read.damage)
        samples = []
        for number, record in enumerate(read.records, start=1):
            try:
                samples.append(_sample(record))
            except (KeyError, TypeError, ValueError) as error:
                raise RunError(
                    f"{path}, line {number} is not a completion: {error!r}.", "It was damaged; delete it."
                ) from error
        return {sample.key: sample for sample in reversed(samples)}  # the first line of one counts


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings that are not the same, in words; a missing one is like None."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name} was {_short(before.get(name))}, is {_short(now.get(name))}" for name in names]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _line(sample: Sample) -> str:
    record = {
        "schema_version": SCHEMA_VERSION,
        "step": 0,
        "row": sample.row,
        "sample": sample.sample,
        "problem_id": sample.problem_id,
        "score": sample.verdict.score,
        "status": str(sample.verdict.status),
        "detail": sample.verdict.detail,
        "num_tokens": sample.num_tokens,
        "truncated": sample.truncated,
        "sampling_s": sample.sampling_s,
        "grading_s": sample.grading_s,
        "completion": sample.completion,
    }
    return files.to_json(record, default=str)


def _sample(record: Mapping[str, Any]) -> Sample:
    score = math.nan if record["score"] is None else float(record["score"])
    return Sample(
        row=int(record["row"]),
        sample=int(record["sample"]),
        problem_id=record["problem_id"],
        completion=record["completion"],
        verdict=Verdict(score, Status(record["status"]), record["detail"]),
        num_tokens=int(record["num_tokens"]),
        truncated=bool(record["truncated"]),
        sampling_s=float(record["sampling_s"]),
        grading_s=float(record["grading_s"]),
    )
