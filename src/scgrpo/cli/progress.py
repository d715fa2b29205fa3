"""What a person sees while a run goes on: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

_PLAIN_LINES = 10  # per run, when not a terminal


class ProgressDisplay(TrainerCallback):
    """One run's progress: step, reward, threshold, mean weight, seconds left."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout, highlight=False)
        self.title = title
        self._progress: Progress | None = None
        self._bar = TaskID(0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
            )
            self._bar = self._progress.add_task(self.title, total=state.max_steps, numbers="")
            self._progress.start()
        else:
            self.console.print(f"{self.title}: {state.max_steps} steps")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "reward" not in logs:
            return
        numbers = _numbers(logs)
        if self._progress is not None:
            self._progress.update(self._bar, completed=state.global_step, numbers=numbers)
        elif state.global_step % max(1, state.max_steps // _PLAIN_LINES) == 0:
            self.console.print(f"{self.title}: step {state.global_step}/{state.max_steps}  {numbers}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back, also after an error."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _numbers(logs: dict[str, Any]) -> str:
    shown = {
        "reward": logs.get("reward"),
        "weight": logs.get("credit/weight_mean"),
        "c": logs.get("credit/threshold"),
        "s/step": logs.get("step_time"),
    }
    return "  ".join(f"{name} {value:.3g}" for name, value in shown.items() if isinstance(value, (int, float)))
