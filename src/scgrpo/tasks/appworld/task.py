"""The task `appworld`: requests of a person, to be met by writing code against the APIs of nine apps.

Rows come from the data that AppWorld's own command downloads, and so do the tests; nothing of them is in this
package. With `mini: true` they come from a small world of our own (inside/mini_world.py).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from scgrpo.errors import ConfigError, DataError
from scgrpo.tasks.appworld import prompts
from scgrpo.tasks.appworld.environment import AppWorldEnvironment, EpisodeSettings, Reward, check_settings
from scgrpo.tasks.appworld.places import Places, find
from scgrpo.tasks.appworld.servers import ServerPool
from scgrpo.tasks.base import Canned, Message, Row, Split
from scgrpo.tasks.environment import EnvironmentTask, Prompting


class AppWorldTask(EnvironmentTask):
    """Everyday requests, carried out by code over the APIs of nine simulated apps.

    Columns: `problem_id` and `task_id` (both the benchmark's id), `prompt`.

    Args:
        root: folder with AppWorld's virtual environment and data (`scgrpo appworld setup`); None: the default one.
        mini: the small world of our own instead of the benchmark's data.
        train_set, eval_set: the benchmark's sets for the two splits: train, dev, test_normal, test_challenge.
        num_servers: worlds that exist at the same time, each in processes of its own; other rollouts wait.
        max_turns: actions per rollout.
        prompting: `concat`: a rollout is one conversation; `per_step`: each turn has a prompt with the end of what
            was done so far (`prompts.step_prompt`).
        reward: `success`: 1 if all tests of the task pass, else 0; `score`: the share of them that pass.
        max_observation_chars: of what a step shows.
        code_timeout_s: the engine's limit for the code of one step.
        confine: run the servers confined (Linux with Landlock). They run what the model writes.
        memory_mb: address space of each server process.

    Raises:
        ConfigError: a setting out of range.
    """

    name = "appworld"
    needs = "scgrpo appworld setup, its data"
    template = "agent"
    success_threshold = 1.0

    def __init__(
        self,
        root: str | None = None,
        mini: bool = False,
        train_set: str = "train",
        eval_set: str = "dev",
        num_servers: int = 4,
        max_turns: int = 50,
        prompting: Prompting = "concat",
        reward: Reward = "success",
        max_observation_chars: int = prompts.MAX_OBSERVATION_CHARS,
        code_timeout_s: int = 60,
        confine: bool = True,
        memory_mb: int = 4096,
    ) -> None:
        if num_servers < 1 or max_turns < 1 or memory_mb < 1:
            raise ConfigError(
                f"num_servers={num_servers}, max_turns={max_turns}, memory_mb={memory_mb}: nothing can be played.",
                "Each must be at least 1.",
            )
        if train_set == eval_set:
            raise ConfigError(f"train_set and eval_set are both {train_set!r}.", "Evaluate on other tasks: dev.")
        self.places = find(root, mini=mini)
        self.sets: dict[Split, str] = {"train": train_set, "eval": eval_set}
        if prompting not in get_args(Prompting):
            raise ConfigError(f"Unknown prompting {prompting!r}.", f"Choose {' or '.join(get_args(Prompting))}.")
        self.max_turns, self.prompting = max_turns, prompting
        self.max_parallel: int | None = num_servers
        self.settings = EpisodeSettings(reward, max_observation_chars, code_timeout_s)
        check_settings(self.settings)
        self._confine, self._memory_mb = confine, memory_mb
        self._pool: ServerPool | None = None
        self._lock = threading.Lock()

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        """The tasks of a set, in the benchmark's order.

        Raises:
            ConfigError: unknown split.
            DataError: AppWorld is not set up, or its data are malformed.
        """
        if split not in self.sets:
            raise ConfigError(f"Unknown split {split!r}.", "Use 'train' or 'eval'.")
        return [self._row(task_id) for task_id in task_ids(self.places, self.sets[split])[:limit]]

    def _row(self, task_id: str) -> Row:
        path = self.places.data / "tasks" / task_id / "specs.json"
        try:
            prompt = prompts.first_prompt(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"Task {task_id!r} is not as AppWorld writes it: {error!r}.", f"Look at {path}."
            ) from error
        return {"problem_id": task_id, "prompt": prompt, "task_id": task_id}

    def environment(self, row: Mapping[str, Any]) -> AppWorldEnvironment:
        return AppWorldEnvironment(row["task_id"], self.pool, self.settings)

    @property
    def pool(self) -> ServerPool:
        """The servers; made when they are first needed.

        Raises:
            DataError: AppWorld is not set up.
        """
        with self._lock:
            if self._pool is None:
                self._pool = ServerPool(
                    self.places, self.max_parallel or 1, confine=self._confine, memory_mb=self._memory_mb
                )
            return self._pool

    def step_prompt(
        self, row: Mapping[str, Any], history: Sequence[tuple[str, str]], observation: str
    ) -> list[Message]:
        """The messages of one step where each step is a prompt of its own (`prompts.step_prompt`)."""
        return prompts.step_prompt(row["prompt"], history, observation)

    def canned(self) -> Canned:
        """The first training task whose data have a solution, solved and not solved.

        Raises:
            DataError: none of them has one.
        """
        for task_id in task_ids(self.places, self.sets["train"]):
            path = self.places.data / "tasks" / task_id / "ground_truth" / "compiled_solution.py"
            if path.exists():
                solution = prompts.action_of(f"{path.read_text()}\nsolution(apis, requester)")
                wrong = (prompts.action_of('apis.supervisor.complete_task(answer="no idea", status="fail")'), "Done.")
                return Canned(self._row(task_id), right=(solution,), wrong=wrong)
        raise DataError(
            f"No task of {self.sets['train']!r} in {self.places.data} comes with a solution.", "Use train_set: train."
        )

    def close(self) -> None:
        """End the servers."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()


def task_ids(places: Places, name: str) -> list[str]:
    """Ids of the tasks of a set, in its order, as AppWorld's `load_task_ids` reads them.

    Raises:
        DataError: AppWorld is not set up; no such set; it is empty or names a task twice.
    """
    places.check()
    folder = places.data / "datasets"
    path = folder / f"{name}.txt"
    if not path.is_file() or Path(name).name != name:
        known = ", ".join(sorted(file.stem for file in folder.glob("*.txt"))) or "none"
        raise DataError(f"AppWorld's data have no set {name!r}.", f"Known: {known}.")
    # What follows a colon is a tag.
    ids = [line.strip().split(":")[0] for line in path.read_text().splitlines() if line.strip()]
    if not ids or len(set(ids)) < len(ids):
        raise DataError(f"{path} is empty or names a task twice.", "Download the data again.")
    return ids
