"""Which back-end, and whether it is safe enough."""

from __future__ import annotations

import logging
import platform
import sys
from dataclasses import dataclass

from scgrpo.errors import ConfigError, SandboxError
from scgrpo.sandbox import bubblewrap
from scgrpo.sandbox.base import Sandbox
from scgrpo.sandbox.remote import Remote
from scgrpo.sandbox.worker import Launch
from scgrpo.sandbox.zygote import Zygote

BACKENDS = ("auto", "zygote", "bubblewrap", "remote")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """What this machine gives.

    Attributes:
        level: what the embedded back-end reaches here; "none": nothing that is safe.
        notes: what was found on the way to it.
        bubblewrap: the level with that back-end; "" where it cannot be used, and `bubblewrap_note` says why.
        system: kernel and architecture.
    """

    level: str
    notes: tuple[str, ...]
    bubblewrap: str
    bubblewrap_note: str
    system: str

    @property
    def safe(self) -> bool:
        return self.level != "none" or self.bubblewrap != ""


def probe() -> Probe:
    """Start one worker of each local back-end, which confines a process and tries to break out of it."""
    level = "none"
    notes: tuple[str, ...]
    try:
        with open_sandbox("zygote", num_workers=1) as sandbox:
            assert isinstance(sandbox, Zygote)
            level, notes = sandbox.level, tuple(sandbox.notes)
    except SandboxError as error:
        notes = (error.problem,)
    wrapped, why = "", ""
    try:
        with open_sandbox("bubblewrap", num_workers=1) as sandbox:
            wrapped = sandbox.level
    except SandboxError as error:
        why = error.problem
    return Probe(level, notes, wrapped, why, f"{platform.system()} {platform.release()}, {platform.machine()}")


def open_sandbox(
    backend: str = "auto", *, num_workers: int = 2, allow_insecure: bool = False, url: str | None = None
) -> Sandbox:
    """Open a sandbox.

    Args:
        backend: "zygote" (embedded, no dependencies), "bubblewrap", "remote" (needs `url`), or "auto": the embedded
            one; where the kernel lacks Landlock, bubblewrap if it works, else the embedded one without any files.
        num_workers: processes that run programs at the same time.
        allow_insecure: run even where the kernel gives no isolation. Your explicit word; logged as a warning.
        url: of the remote runner, up to and with `/run_code` (SandboxFusion) or `/execute` (Piston).

    Raises:
        ConfigError: an unknown back-end or a number out of range.
        SandboxError: no safe level can be reached; the remedy says what would help.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"There is no sandbox back-end {backend!r}.", f"Take one of: {', '.join(BACKENDS)}.")
    if (backend == "remote") != (url is not None):
        raise ConfigError("The remote back-end, and only that one, needs a url.", "Give backend='remote' and url.")
    if url is not None:
        return Remote(url, num_workers)
    if sys.platform != "linux":
        raise SandboxError(
            f"There is no local sandbox on {platform.system()}.",
            "Use Linux, or backend='remote' with a runner's url.",
        )
    if backend == "bubblewrap":
        return bubblewrap.open_wrapped(num_workers)
    sandbox = Zygote(num_workers, Launch(insecure=allow_insecure))
    if backend == "auto" and sandbox.level != "landlock+seccomp" and bubblewrap.find() is not None:
        try:
            wrapped = bubblewrap.open_wrapped(num_workers)
        except SandboxError as error:
            _log.info("bubblewrap is installed and does not work here: %s", error.problem)
        else:
            sandbox.close()
            return wrapped
    if sandbox.level == "seccomp":
        _log.warning("The kernel has no Landlock: code runs in the sandbox without opening any file.")
    if sandbox.level == "none":
        _log.warning(
            "Untrusted code runs WITHOUT a sandbox, as allow_insecure=True asks: %s", "; ".join(sandbox.notes)
        )
    return sandbox
