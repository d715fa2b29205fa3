"""AppWorld's environment server, supervised and confined: `python serve.py SETTINGS` with JSON settings.

Runs in AppWorld's own virtual environment; standard library, and AppWorld. Three processes:

    supervisor    waits for the end of our process (its stdin ends) or of the next one, and then ends all there are
    template      has the engine imported, and is confined; at every line on its control pipe it kills the world
                  there is and forks a new one, which takes milliseconds where importing takes seconds
    world         AppWorld's own HTTP application on a socket that our process has opened on the loopback interface

So an episode never meets what the code of another one has left in its process. In the role `judge` the world is not
played in: it runs a task's tests on the state that another process has written, and it alone can read them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import confinement

_PARENT_CHECK_MS = 2000
_SYSTEM = ("/usr", "/lib", "/lib64", "/etc/localtime", "/etc/mime.types", "/etc/ld.so.cache", "/dev/urandom")
# All that a player's process needs of a task; its tests and solution are beside it.
_PLAYABLE = ("specs.json", "dbs")


def main() -> int:
    settings = json.loads(sys.argv[1])
    confinement.adopt_orphans()
    template = os.fork()
    if template == 0:
        try:
            _template(settings)
        finally:
            os._exit(1)
    return _supervise(template, settings)


def _supervise(template: int, settings: dict[str, Any]) -> int:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # the report pipe and the others end with the template
    os.close(settings["socket_fd"])
    os.close(settings["control_fd"])
    watched = select.poll()
    ended = os.pidfd_open(template)
    watched.register(0, select.POLLIN | select.POLLHUP)
    watched.register(ended, select.POLLIN)
    seen: set[int] = set()
    while not seen and os.getppid() == settings["parent"]:
        seen = {descriptor for descriptor, _ in watched.poll(_PARENT_CHECK_MS)}
    _kill_children(_children())
    # Who ends us says a word; where the pipe just ends, nobody is left to remove the folders.
    if not seen or (0 in seen and not os.read(0, 1)):
        _remove(Path(settings["folder"]), Path(settings["shared"]))
    return 0


def _remove(folder: Path, shared: Path) -> None:
    """Remove our folder, and the pool's where it was the last."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        if not any(path.is_dir() for path in shared.iterdir()):
            shutil.rmtree(shared, ignore_errors=True)


def _children() -> int:
    """A descriptor that lists this process's children each time it is read; the confined cannot open it any more."""
    return os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY)


def _kill_children(listing: int) -> None:
    """End all descendants: those whose parents end become our children."""
    while children := [int(child) for child in os.pread(listing, 2**16, 0).split()]:
        for child in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)


def _template(settings: dict[str, Any]) -> None:
    """Confine, import, and fork a world at every line of the control pipe."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with open(os.devnull) as null:
        os.dup2(null.fileno(), 0)
    server = socket.socket(fileno=settings["socket_fd"])
    children = _children()
    confinement.adopt_orphans()
    try:
        reached = _confined(settings)
        _prepare(Path(settings["folder"]), settings["data"])
        application, versions = _application(settings)
    except Exception as error:
        _send(report, {"ready": False, "detail": f"{type(error).__name__}: {error}"})
        raise
    _send(report, {"ready": True, "confinement": reached, "versions": versions})
    with os.fdopen(settings["control_fd"], "r") as control:
        for _ in control:
            _kill_children(children)
            _refuse_waiting(server)
            world = os.fork()
            if world == 0:
                report.close()
                control.close()
                os.close(children)
                _world(application, server)
            _send(report, {"world": world})
            _refuse_after(world, server, control)


def _send(report: Any, message: dict[str, Any]) -> None:
    report.write(json.dumps(message) + "\n")
    report.flush()


def _confined(settings: dict[str, Any]) -> dict[str, str]:
    folder, data = settings["folder"], Path(settings["data"])
    if not settings["confine"]:
        confinement.limit(settings["memory_mb"])
        confinement.die_with_parent()
        return {"files": "not confined", "network": "not confined", "identity": "the trainer's user"}
    judges = settings["role"] == "judge"
    # The judge quotes the lines of a failed test, and of ours that called it.
    shown = [str(data), settings["shared"], str(Path(__file__).parent)] if judges else _playable(data)
    readable = [*_SYSTEM, sys.prefix, sys.base_prefix, *shown]
    must_read = [sys.executable, os.__file__, str(data / "datasets"), folder]
    reached = confinement.confine(
        readable=readable,
        writable=folder,
        must_read=must_read,
        uid=settings["uid"],
        gid=settings["gid"],
        memory_mb=settings["memory_mb"],
    )
    confinement.die_with_parent()  # a change of user would have undone it
    return reached


def _prepare(folder: Path, data: str) -> None:
    """The engine's root: outputs of our own, and a link to the data."""
    os.umask(0o027)  # the judge is in the same group
    for name in ("experiments/outputs", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "data").symlink_to(data)


def _playable(data: Path) -> list[str]:
    """What a player's process may read of the data: not the tests and solutions."""
    tasks = [str(path / name) for path in (data / "tasks").iterdir() for name in _PLAYABLE]
    return [*(str(path) for path in data.iterdir() if path.name != "tasks"), *tasks]


def _application(settings: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    """AppWorld's application, with everything imported that an episode will need."""
    from importlib.metadata import version

    from appworld.apps import get_all_apps
    from appworld.serve.environment import app

    for name in get_all_apps():
        importlib.import_module(f"appworld.apps.{name}.models")
        importlib.import_module(f"appworld.apps.{name}.apis")
    _take_any_text()
    if settings["role"] == "judge":
        _add_judge(app)
    return app, {"appworld": version("appworld"), "python": sys.version.split()[0]}


def _take_any_text() -> None:
    """Let code print what UTF-8 does not hold (lone surrogates): the engine would fail, and the episode with it."""
    from appworld import AppWorld

    execute = AppWorld.execute
    AppWorld.execute = lambda world, code: execute(world, code).encode("utf-8", "backslashreplace").decode()
    # Its log of the episode, which nobody reads, and which would be written anew at each step.
    AppWorld._save_environment_io_log = lambda world: None


def _add_judge(app: Any) -> None:
    from appworld import evaluate_task
    from appworld.apps.model_lib import CachedDBHandler
    from fastapi import Body

    @app.post("/judge")
    async def judge(task_id: str = Body(...), outputs: str = Body(...)) -> dict[str, Any]:
        """The task's tests on the state that a world has saved below the folder `outputs`."""
        CachedDBHandler.reset()
        # The engine joins the name of an experiment to its own folder; a whole path stays what it is.
        tracker = evaluate_task(task_id, experiment_name=outputs, suppress_errors=True, save_report=False)
        return {"output": tracker.to_dict(stats_only=False)}


def _refuse_waiting(server: socket.socket) -> None:
    """Close connections that nobody has answered: they were meant for the world before."""
    server.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            server.accept()[0].close()


def _refuse_after(world: int, server: socket.socket, control: Any) -> None:
    """Until the next line on the control pipe: where the world ends before it, nobody shall wait for its answer."""
    ended = os.pidfd_open(world)
    watched = select.poll()
    watched.register(control, select.POLLIN | select.POLLHUP)
    watched.register(ended, select.POLLIN)
    while all(descriptor != control.fileno() for descriptor, _ in watched.poll()):
        _refuse_waiting(server)
        watched.register(server, select.POLLIN)
        with contextlib.suppress(KeyError):
            watched.unregister(ended)
    os.close(ended)


def _world(application: Any, server: socket.socket) -> None:
    """Serve until killed."""
    import uvicorn

    confinement.die_with_parent()
    confinement.keep_from_signalling()
    uvicorn.Server(uvicorn.Config(application, log_level="warning", lifespan="off")).run(sockets=[server])
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
