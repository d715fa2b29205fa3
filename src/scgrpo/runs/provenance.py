"""Where a run came from: versions, revision, hardware, command, seeds. Never the environment variables."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PACKAGES = (
    *("scgrpo", "torch", "transformers", "trl", "accelerate", "datasets", "tokenizers", "safetensors", "peft"),
    *("numpy", "pyarrow", "jinja2", "matplotlib", "math-verify", "vllm", "verl", "deepspeed", "bitsandbytes"),
)
# A secret by the name of its setting ("hub_token", not "eos_token"), or by its own look.
_SECRET_NAME = re.compile(
    r"((^|[_-])(hub|api|auth|access|bearer|hf|secret)[_-](token|key)|^token|password|passwd|secret|credentials?)$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(r"\b(hf_|sk-|ghp_|github_pat_)[A-Za-z0-9_-]{16,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
HIDDEN = "<hidden>"


def describe_start(command: Sequence[str], seeds: Mapping[str, int]) -> dict[str, Any]:
    """One start of a run: what was called, with which versions, on what."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": hide_secret_arguments(command),
        "seeds": dict(seeds),
        "packages": _versions(),
        "git": {"package": _revision(Path(__file__).parent), "working_directory": _revision(Path.cwd())},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": _hardware(),
    }


def hide_secret_arguments(command: Sequence[str]) -> list[str]:
    """The command line with the values of `--hub_token` and the like left out."""
    shown: list[str] = []
    for argument in command:
        name, equals, value = argument.partition("=")
        previous = shown[-1] if shown else ""
        if previous.startswith("-") and "=" not in previous and not argument.startswith("-"):
            shown.append(hide_secrets({previous.lstrip("-"): argument})[previous.lstrip("-")])
        elif equals and argument.startswith("-"):
            shown.append(f"{name}={hide_secrets({name.lstrip('-'): value})[name.lstrip('-')]}")
        else:
            shown.append(_SECRET_VALUE.sub(HIDDEN, argument))
    return shown


def hide_secrets(settings: Any) -> Any:
    """A copy of nested settings in which values that are secrets by name or by look read `<hidden>`."""
    if isinstance(settings, Mapping):
        return {
            key: HIDDEN if isinstance(value, str) and value and _SECRET_NAME.search(str(key)) else hide_secrets(value)
            for key, value in settings.items()
        }
    if isinstance(settings, list | tuple):
        return [hide_secrets(item) for item in settings]
    return _SECRET_VALUE.sub(HIDDEN, settings) if isinstance(settings, str) else settings


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _revision(folder: Path) -> dict[str, Any] | None:
    """Commit of the git checkout that tracks `folder`, and whether tracked files differ from it."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A package installed inside some other project's folder is not of that project's revision.
    if not git("ls-files", "--", "."):
        return None
    revision = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "modified": bool(changes)} if revision else None


def _hardware() -> dict[str, Any]:
    hardware: dict[str, Any] = {"machine": platform.machine(), "cpus": _num_cpus(), "memory_gib": _memory_gib()}
    # A run that trains has loaded torch; one that does not need not load it to say it has no accelerator.
    torch = sys.modules.get("torch")
    if torch is not None:
        hardware["torch_threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            hardware["accelerators"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return hardware


def _num_cpus() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
