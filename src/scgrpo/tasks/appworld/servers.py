"""A pool of AppWorld servers: one world each, and one judge for all."""

from __future__ import annotations

import logging
import os
import queue
import shutil
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scgrpo.errors import ConfigError, VerifierError
from scgrpo.tasks.appworld.client import ServerTimeoutError
from scgrpo.tasks.appworld.places import Places
from scgrpo.tasks.appworld.server import Server, ServerSettings

logger = logging.getLogger(__name__)

# The engine's own name for a set of outputs; ours are told apart by their folders.
EXPERIMENT = "scgrpo"
_JUDGE_TIMEOUT_S = 120.0


class ServerPool:
    """Servers for `num_servers` worlds at a time, started when they are first needed, and a judge.

    A leased server is a world of its own process in which nothing has happened yet. The processes are gone when the
    pool is closed, at exit, and when this process is killed. Leases may come from several threads.

    Args:
        places: AppWorld's virtual environment and data.
        num_servers: worlds that exist at the same time. Each takes about 250 MB.
        confine, memory_mb: see `ServerSettings`.

    Raises:
        ConfigError: num_servers or memory_mb below 1.
        DataError: AppWorld is not set up.
    """

    def __init__(self, places: Places, num_servers: int, *, confine: bool = True, memory_mb: int = 4096) -> None:
        if num_servers < 1 or memory_mb < 1:
            raise ConfigError(
                f"num_servers={num_servers} and memory_mb={memory_mb} leave no server.", "Use at least 1 of each."
            )
        places.check()
        if not confine:
            logger.warning(
                "AppWorld's servers run what the model writes, and they are not confined (confine: false)."
            )
        self.shared = Path(tempfile.mkdtemp(prefix="scgrpo-appworld-"))
        self.shared.chmod(0o711)  # the servers' users find their own folders, and nobody lists them
        settings = ServerSettings(places, self.shared, confine, memory_mb)
        self._judge = Server(settings, 0, "judge")
        self._judging = threading.Lock()
        self.servers = [Server(settings, number, "world") for number in range(num_servers)]
        self._idle: queue.LifoQueue[Server] = queue.LifoQueue()  # those that were started come first
        for server in reversed(self.servers):
            self._idle.put(server)
        self._owner = os.getpid()
        self._closer = weakref.finalize(self, _close_all, [*self.servers, self._judge], self.shared, self._owner)

    def lease(self, timeout_s: float) -> Server:
        """An idle server with a fresh world; waits for one.

        Raises:
            VerifierError: the pool is closed or another process's; none is free in time; it cannot be started.
            ConfigError: this system cannot confine it.
        """
        self._check()
        try:
            server = self._idle.get(timeout=timeout_s)
        except queue.Empty:
            raise VerifierError(
                f"None of {len(self.servers)} AppWorld servers was free within {timeout_s:g} s.",
                "Close environments when they are over, or set more num_servers.",
            ) from None
        try:
            self._check()
            server.renew()
        except BaseException:
            server.kill()
            self._idle.put(server)
            raise
        return server

    def release(self, server: Server) -> None:
        """Take a server back, and end what still runs in its world."""
        if not self._closer.alive or os.getpid() != self._owner:
            return
        try:
            server.renew()
        except (VerifierError, ConfigError, OSError) as error:
            logger.warning("An AppWorld server could not be renewed: %s", error)
            server.kill()
        self._idle.put(server)

    def judge(self, task_id: str, server: Server) -> dict[str, Any]:
        """The task's tests on what the server's world has saved: `success`, `num_tests`, `passes`, `failures`.

        A judge that fails is replaced once.

        Raises:
            ServerTimeoutError, VerifierError: it failed again.
        """
        outputs = str(server.outputs / EXPERIMENT)
        with self._judging:
            self._check()
            try:
                return self._judged(task_id, outputs)
            except VerifierError as error:
                if isinstance(error, ServerTimeoutError):
                    self._judge.kill()
                    raise
                self._check()  # where the pool was closed meanwhile, no judge may be started after it
                logger.warning("AppWorld's judge failed at %s, and is replaced: %s", task_id, error.problem)
                self._judge.kill()
                return self._judged(task_id, outputs)

    def _judged(self, task_id: str, outputs: str) -> dict[str, Any]:
        if not self._judge.running:
            self._judge.renew()
        report = self._judge.call("judge", _JUDGE_TIMEOUT_S, task_id=task_id, outputs=outputs)
        if not isinstance(report, dict) or not isinstance(report.get("num_tests"), int):
            raise VerifierError(f"AppWorld's judge answered {report!r}.", "Look for its failure in the log.")
        return report

    @property
    def facts(self) -> dict[str, Any]:
        """Versions and confinement, of a server that was started."""
        return next((server.facts for server in self.servers if server.facts), {})

    def _check(self) -> None:
        if not self._closer.alive or os.getpid() != self._owner:
            raise VerifierError("This pool of AppWorld servers is closed, or another process's.", "Make a new one.")

    def close(self) -> None:
        """End all servers. Calling it twice is harmless."""
        if os.getpid() == self._owner:
            self._closer()


def _close_all(servers: Sequence[Server], shared: Path, owner: int) -> None:
    if os.getpid() != owner:  # a forked copy must not end its parent's servers
        return
    for server in servers:
        server.kill()
    shutil.rmtree(shared, ignore_errors=True)
