"""Runs `python -m verl.trainer.main_ppo` on a CPU: real Ray, FSDP2 over gloo, TransferQueue, a toy rollout engine.

A run is a process of its own with a Ray of its own. Every process it starts carries its mark in the environment,
so that `stop` finds and ends them all, and only them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from toy import Inputs

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src"
MARK = "SCGRPO_TEST_RUN"
LONG = 900  # seconds to wait for what should take one minute: a busy machine is far slower than a quiet one

ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "VERL_ENGINE_DEVICE": "cuda",  # the FSDP engines are registered for this device
    "VERL_ENGINE_VENDOR": "nvidia",
    "VERL_DISABLE_FLASH_ATTN_CE": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HYDRA_FULL_ERROR": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_enable_worker_prestart": "0",  # idle workers would take the cores from those that work
    "RAY_prestart_worker_first_driver": "0",
    "DRIVER_FORKS": "1",  # read by driver.py alone
}


def settings(inputs: Inputs, folder: Path, mode: str = "sync", workers: int = 2, steps: int = 2) -> dict[str, Any]:
    """The overrides of the smallest whole run: 4 prompts of 4 rollouts a step, one rollout server."""
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    return {
        "algorithm.adv_estimator": "grpo",
        "trainer.v1.trainer_mode": mode,
        "trainer.device": "cpu",
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": workers,
        "trainer.logger": "[console,file]",
        "trainer.total_training_steps": steps,
        "trainer.val_before_train": False,
        "trainer.resume_mode": "disable",
        "trainer.default_local_dir": folder / "checkpoints",
        "data.train_files": inputs.train,
        "data.val_files": inputs.val,
        "data.train_batch_size": 4,
        "data.max_prompt_length": 64,
        "data.max_response_length": 24,
        "data.shuffle": False,
        "data.dataloader_num_workers": 0,
        "reward.custom_reward_function.path": inputs.reward,
        "reward.num_workers": 1,
        "actor_rollout_ref.model.path": inputs.model,
        "actor_rollout_ref.model.use_remove_padding": True,
        "actor_rollout_ref.model.enable_gradient_checkpointing": False,
        "+actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
        f"{actor}.strategy": "fsdp2",
        f"{actor}.fsdp_config.strategy": "fsdp2",
        f"{actor}.fsdp_config.use_torch_compile": False,
        f"{actor}.fsdp_config.model_dtype": "fp32",
        f"+{actor}.fsdp_config.mixed_precision.param_dtype": "fp32",
        f"{actor}.use_torch_compile": False,
        f"{actor}.ppo_mini_batch_size": 4,
        f"{actor}.use_dynamic_bsz": False,
        f"{actor}.ppo_micro_batch_size_per_gpu": 4,
        f"{actor}.optim.lr": 1e-3,
        f"{rollout}.name": "hf_cpu",
        f"{rollout}.n": 4,
        f"{rollout}.tensor_model_parallel_size": workers,  # so many workers share one server
        f"{rollout}.log_prob_micro_batch_size_per_gpu": 4,
        f"{rollout}.calculate_log_probs": True,
        f"{rollout}.agent.num_workers": 1,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "ray_kwargs.ray_init.num_cpus": 16,
        "+ray_kwargs.ray_init.num_gpus": workers,
        "+ray_kwargs.ray_init.include_dashboard": False,
        "+ray_kwargs.ray_init.object_store_memory": 200_000_000,
    }


def plugin() -> list[str]:
    """What verl must import for `trainer_mode=scgrpo`: nothing where scgrpo is installed, as it is then found."""
    found = any(point.name == "scgrpo" for point in entry_points(group="verl.plugins"))
    return [] if found else ["scgrpo.integrations.verl.plugin"]


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    def text(value: Any) -> str:
        return "null" if value is None else f"'{value}'" if isinstance(value, Path) else str(value)

    return [f"{name}={text(value)}" for name, value in values.items()]


# How verl is started: as users do; or with workers forked from the driver, which saves half of the time.
COMMAND = (sys.executable, "-m", "verl.trainer.main_ppo")
FORKING = (sys.executable, str(HERE / "driver.py"))


@dataclass
class Run:
    """A started run. `output` may be read while it goes on."""

    folder: Path
    process: subprocess.Popen
    mark: str
    ray_folder: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text(errors="replace")

    @property
    def metrics(self) -> list[dict[str, float]]:
        """What verl's file logger wrote, one entry per step."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["data"] for line in lines]

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def wait(self, timeout: float) -> int:
        """The exit code. Raises TimeoutError, with the end of the output, for a run that does not end."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"no end after {self.seconds:.0f} s:\n{self.output[-6000:]}") from None

    def wait_for(self, text: str, timeout: float) -> None:
        """Until the output holds `text`."""
        self._until(lambda: text in self.output, repr(text), timeout)

    def wait_for_file(self, path: Path, timeout: float) -> None:
        """Until the file is there."""
        self._until(path.exists, str(path), timeout)

    def _until(self, condition: Callable[[], bool], what: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None:
                raise RuntimeError(f"ended with {self.process.returncode} before {what}:\n{self.output[-6000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} after {self.seconds:.0f} s:\n{self.output[-6000:]}")
            time.sleep(0.2)

    def processes(self, title: str = "") -> list[int]:
        """This run's processes whose command line holds `title` (Ray names an actor's process `ray::Class`)."""
        return [pid for pid, command in _marked(self.mark) if title in command]

    def parent(self, pid: int) -> int:
        """Of an actor's process: its node's raylet."""
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])

    def kill(self, title: str) -> int:
        """SIGKILL the first process with that title."""
        pids = self.processes(title)
        if not pids:
            raise RuntimeError(f"no process {title!r}; there are {[c[:60] for _, c in _marked(self.mark)]}")
        os.kill(pids[0], signal.SIGKILL)
        return pids[0]

    def stop(self) -> None:
        """End whatever is left of the run."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        deadline = time.monotonic() + 30
        while (left := self.processes()) and time.monotonic() < deadline:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.2)
        self.process.wait(10)
        shutil.rmtree(self.ray_folder, ignore_errors=True)


def _marked(mark: str) -> Iterator[tuple[int, str]]:
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if command:  # a zombie has none
                    yield int(entry.name), command
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue


@contextmanager
def started(
    folder: Path,
    overrides: Sequence[str],
    modules: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] = FORKING,
) -> Iterator[Run]:
    """Start a run, and end everything it started on the way out.

    `modules` are imported by every process that imports verl, after the CPU platform; default: the plug-in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    ray_folder = Path(tempfile.mkdtemp(prefix="scgrpo-ray-"))  # short: sockets live there
    paths = [str(HERE), str(SOURCE), os.environ.get("PYTHONPATH", "")]
    variables = {
        **os.environ,
        **ENVIRONMENT,
        "VERL_USE_EXTERNAL_MODULES": ",".join(["cpu_platform", *(plugin() if modules is None else modules)]),
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "RAY_TMPDIR": str(ray_folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex,  # or Ray writes one to the home folder
        MARK: mark,
        **(environment or {}),
    }
    variables.pop("RAY_ADDRESS", None)
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [*command, *overrides],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    run = Run(folder, process, mark, ray_folder)
    try:
        yield run
    finally:
        run.stop()
