"""`RunDirectory`: writing and reading one run."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from scgrpo.errors import RunError
from scgrpo.runs import files
from scgrpo.runs.provenance import describe_start, hide_secrets
from scgrpo.runs.rollouts import read_rollouts, write_rollouts
from scgrpo.runs.schema import SCHEMA_VERSION, RolloutRow

OnExists = Literal["error", "resume", "overwrite"]

_log = logging.getLogger(__name__)
_ROLLOUTS = re.compile(r"step-(\d{6,})\.parquet")
_RESERVED = ("schema_version", "step", "time_s")


class RunDirectory:
    """The files of one run (docs/runs.md). Get one with `RunDirectory.create` (to write) or `.open` (to read).

    One process writes; any number may read meanwhile.

    Attributes:
        path: the folder.
        notes: damage found and worked around while reading, in words. Also logged as warnings.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self._mended: set[Path] = set()

    # --- which folder ---

    @classmethod
    def create(cls, path: Path | str, *, on_exists: OnExists = "error") -> RunDirectory:
        """A folder to write a run into.

        Args:
            path: made with its parents; an existing empty folder is fine.
            on_exists: what to do when the folder is in use. `resume` goes on in it; `overwrite` deletes the files
                a run writes, and nothing else, from a folder that holds a run.

        Raises:
            RunError: the folder is in use (`error`), or holds something else than a run of a known version.
        """
        run = cls(Path(path))
        if on_exists not in ("error", "resume", "overwrite"):
            raise RunError(f"on_exists is {on_exists!r}.", "Choose error, resume or overwrite.")
        if run.path.exists() and not run.path.is_dir():
            raise RunError(f"{run.path} is a file.", "Choose another name for the run.")
        if run.path.is_dir() and any(run.path.iterdir()):
            run._take_over(on_exists)
        try:
            run._rollouts_dir.mkdir(parents=True, exist_ok=True)
            run.checkpoints_dir.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(
                f"Cannot create {run.path}: {error.strerror}.", "Choose a folder you may write to."
            ) from error
        if not run._provenance_path.exists():
            run._replace_json(run._provenance_path, {"starts": []})
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """An existing run, for reading.

        Raises:
            RunError: there is no run.
        """
        run = cls(Path(path))
        if not run.path.is_dir():
            raise RunError(f"There is no run directory {run.path}.", "Give the folder that `scgrpo train` printed.")
        written = (run._config_path, run._provenance_path, run._metrics_path, run._evals_path)
        if not any(file.exists() for file in written):
            raise RunError(
                f"{run.path} holds no run: none of {', '.join(file.name for file in written)} is in it.",
                "Give the folder that `scgrpo train` printed.",
            )
        return run

    def _take_over(self, on_exists: OnExists) -> None:
        if on_exists == "error":
            raise RunError(
                f"{self.path} exists and is not empty.",
                "Resume that run (on_existing: resume), choose another name, or replace it (on_existing: overwrite).",
            )
        # The marker: nobody else writes a provenance.json with a schema version.
        if not files.read_json(self._provenance_path):
            raise RunError(
                f"{self.path} is not empty and does not look like a run (it has no provenance.json).",
                "Choose another name; nothing was changed.",
            )
        if on_exists == "overwrite":
            self._delete_run_files()

    def _delete_run_files(self) -> None:
        for folder in (self.checkpoints_dir, self.start_model_dir, self.model_dir):
            if folder.is_symlink():
                folder.unlink()
            elif folder.is_dir():
                shutil.rmtree(folder)
        for step in self.rollout_steps():
            self._rollout_path(step).unlink()
        # The marker goes last: an interrupted overwrite can be repeated.
        paths = (self._metrics_path, self._evals_path, self.report_path, self.png_path, self._config_path)
        for path in (*paths, self._provenance_path):
            path.unlink(missing_ok=True)

    # --- where things are ---

    @property
    def checkpoints_dir(self) -> Path:
        """For the host's checkpoints."""
        return self.path / "checkpoints"

    @property
    def start_model_dir(self) -> Path:
        """For the model that training starts from, where the run made it itself."""
        return self.path / "start_model"

    @property
    def model_dir(self) -> Path:
        """For the trained model."""
        return self.path / "model"

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"

    @property
    def png_path(self) -> Path:
        return self.path / "curves.png"

    @property
    def _config_path(self) -> Path:
        return self.path / "config.resolved.json"

    @property
    def _provenance_path(self) -> Path:
        return self.path / "provenance.json"

    @property
    def _metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _evals_path(self) -> Path:
        return self.path / "evals.jsonl"

    @property
    def _rollouts_dir(self) -> Path:
        return self.path / "rollouts"

    def _rollout_path(self, step: int) -> Path:
        return self._rollouts_dir / f"step-{step:06d}.parquet"

    # --- writing ---

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Replace `config.resolved.json`. Values JSON has no form for are written as their text; secrets
        (`hub_token` and the like) as `<hidden>`."""
        self._replace_json(self._config_path, hide_secrets(config))

    def write_provenance(self, command: Sequence[str], seeds: Mapping[str, int]) -> None:
        """Add this start to `provenance.json`: command (without secrets), every seed by name, versions, hardware."""
        starts = self.provenance().get("starts", [])
        self._replace_json(self._provenance_path, {"starts": [*starts, describe_start(command, seeds)]})

    def log_metrics(self, step: int, metrics: Mapping[str, float], time_s: float) -> None:
        """Append one line to `metrics.jsonl`. A value that is not finite is written as null.

        Args:
            step: optimizer steps done.
            metrics: by name; `schema_version`, `step` and `time_s` are taken.
            time_s: seconds since training started.

        Raises:
            RunError: a name that is taken.
        """
        taken = [name for name in metrics if name in _RESERVED]
        if taken:
            raise RunError(
                f"A metric cannot be called {taken[0]!r}: the record has its own.", "Give it another name."
            )
        numbers = {name: float(value) for name, value in metrics.items()}
        self._append(self._metrics_path, {"step": int(step), "time_s": float(time_s), **numbers})

    def log_eval(self, record: Mapping[str, Any]) -> None:
        """Append one evaluation to `evals.jsonl` (fields: docs/runs.md).

        Raises:
            RunError: it has no integer `step`, or something JSON has no form for.
        """
        if not isinstance(record.get("step"), int):
            raise RunError(f"This evaluation has the step {record.get('step')!r}.", "Give the optimizer steps done.")
        self._append(self._evals_path, record)

    def write_rollouts(self, step: int, rows: Sequence[RolloutRow]) -> None:
        """Write the sampled rollouts of a step, replacing those of an earlier try at the same step.

        Raises:
            MissingExtraError: pyarrow is not installed.
        """
        self._rollouts_dir.mkdir(exist_ok=True)
        write_rollouts(self._rollout_path(step), rows)

    def truncate_after(self, step: int) -> None:
        """Drop metrics, evaluations and rollouts of later steps: what a run resumed from `step` writes again."""
        for path in (self._metrics_path, self._evals_path):
            read = files.read_json_lines(path)
            kept = [line for line, record in zip(read.lines, read.records, strict=True) if record["step"] <= step]
            if read.damage or len(kept) < len(read.lines):
                files.write_lines(path, kept)
        for later in self.rollout_steps():
            if later > step:
                self._rollout_path(later).unlink()

    # --- reading ---

    def config(self) -> dict[str, Any]:
        """`config.resolved.json`; {} when there is none."""
        return files.read_json(self._config_path)

    def provenance(self) -> dict[str, Any]:
        """`provenance.json`; {} when there is none."""
        return files.read_json(self._provenance_path)

    def metrics(self) -> list[dict[str, Any]]:
        """Records of `metrics.jsonl` in file order; a value that was not finite is None.

        Raises:
            RunError: a line other than the last is damaged, or written by a newer version.
        """
        return self._read(self._metrics_path)

    def evals(self) -> list[dict[str, Any]]:
        """Records of `evals.jsonl` in file order; errors as for `metrics`."""
        return self._read(self._evals_path)

    def rollout_steps(self) -> list[int]:
        """Steps with recorded rollouts, ascending."""
        if not self._rollouts_dir.is_dir():
            return []
        matches = (_ROLLOUTS.fullmatch(file.name) for file in self._rollouts_dir.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def rollouts(self, step: int) -> list[RolloutRow]:
        """Rollouts of a recorded step.

        Raises:
            RunError: none were recorded at this step, or the file is damaged or of a newer version.
            MissingExtraError: pyarrow is not installed.
        """
        if step not in self.rollout_steps():
            raise RunError(f"No rollouts of step {step} in {self.path}.", f"Recorded steps: {self.rollout_steps()}.")
        return read_rollouts(self._rollout_path(step))

    # --- plumbing ---

    def _append(self, path: Path, record: Mapping[str, Any]) -> None:
        if path not in self._mended:  # once: afterwards every line in it is ours
            files.mend_last_line(path)
            self._mended.add(path)
        files.append_line(path, files.to_json(_versioned(record)))

    def _replace_json(self, path: Path, record: Mapping[str, Any]) -> None:
        files.replace_text(path, files.to_json(_versioned(record), indent=2, default=str) + "\n")

    def _read(self, path: Path) -> list[dict[str, Any]]:
        read = files.read_json_lines(path)
        if read.damage and read.damage not in self.notes:
            self.notes.append(read.damage)
            _log.warning("%s", f"{path.parent}: {read.damage}")
        return read.records


def _versioned(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION} | {k: v for k, v in record.items() if k != "schema_version"}
