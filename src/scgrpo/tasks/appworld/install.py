"""Makes AppWorld's virtual environment, and our small world. What needs a download beyond packages is the user's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from scgrpo.errors import ConfigError, VerifierError
from scgrpo.tasks.appworld.places import INSIDE, Places, download_command

PACKAGE = "appworld==0.1.3.post1"
# It pins most of what it needs; what it leaves open is kept to what was tried here.
CONSTRAINTS = ("ipython<10", "orjson<4", "munch<5")
LICENCE_NOTE = """\
AppWorld's code is under Apache-2.0. Its apps, APIs, tests and task data are under Apache-2.0 with one requirement
more: any public redistribution, also of derivatives, must be in encrypted form. So do not publish them, nor
transcripts that quote them (rollouts and reports of runs do), as plain text or pictures. They carry a canary string
for that reason.
Training on them is not redistribution."""

_COMPILE = """\
import compileall, importlib.util
compileall.compile_dir(importlib.util.find_spec("appworld").submodule_search_locations[0], quiet=2)
"""
Progress = Callable[[str], None]


def install(places: Places, python: str = sys.executable, *, progress: Progress = print) -> None:
    """A virtual environment with AppWorld in `root/venv`, its apps unpacked. One that is whole is left as it is.

    Args:
        python: the interpreter to make it from, 3.11 or newer.

    Raises:
        ConfigError: not Linux.
        VerifierError: a step failed; its output is part of the message.
    """
    if not sys.platform.startswith("linux"):
        raise ConfigError("AppWorld's servers can be run on Linux only.", "Set it up there, or in a container.")
    venv, done = places.root / "venv", places.root / "venv" / "scgrpo-installed"
    if done.exists() and done.read_text() == PACKAGE:
        progress(f"{PACKAGE} is installed in {venv}.")
        return
    places.root.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(venv, ignore_errors=True)
    constraints = places.root / "constraints.txt"
    constraints.write_text("\n".join(CONSTRAINTS) + "\n")
    progress(f"Making {venv} and installing {PACKAGE} (230 MB) ...")
    _run([python, "-m", "venv", str(venv)], places.root)
    _run([str(places.python), "-m", "pip", "install", "-q", "-c", str(constraints), PACKAGE], places.root)
    progress("Unpacking its apps ...")
    _run([str(venv / "bin" / "appworld"), "install"], places.root)
    # The servers may not write the compiled files, and would compile the apps at each start.
    _run([str(places.python), "-c", _COMPILE], places.root)
    done.write_text(PACKAGE)


def build_mini_world(places: Places, *, progress: Progress = print) -> None:
    """Our small world in `root/mini/data`; what is there is replaced.

    Raises:
        DataError: AppWorld is not installed.
        VerifierError: the engine failed.
    """
    mini = Places(places.root, mini=True)
    progress(f"Building the small world in {mini.data} ...")
    mini.data.parent.mkdir(exist_ok=True)
    _run([str(places.python), str(INSIDE / "mini_world.py"), str(mini.data)], mini.data.parent)


def what_is_missing(places: Places) -> str:
    """What the user has to do for the benchmark itself; empty if nothing."""
    if (places.root / "data" / "datasets").is_dir():
        return ""
    return f"The benchmark's data are not here. They are downloaded by:\n  {download_command(places.root)}"


def _run(command: Sequence[str], folder: Path) -> None:
    """A step of the installation, with its own HOME: AppWorld unpacks its tests there."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "HOME": str(home), "APPWORLD_ROOT": str(folder), "APPWORLD_CACHE": str(home)}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "XDG_CACHE_HOME": _cache_home()}
    environment.pop("PYTHONPATH", None)
    previous = os.umask(0o022)  # the servers run as other users where they can
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise VerifierError(f"{command[0]} cannot be started: {error}.", "Give another --python.") from error
    finally:
        os.umask(previous)
        shutil.rmtree(home, ignore_errors=True)
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-1500:]
        raise VerifierError(f"{' '.join(command[:5])} failed (exit code {done.returncode}).", f"It said: {said}")


def _cache_home() -> str:
    return os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
