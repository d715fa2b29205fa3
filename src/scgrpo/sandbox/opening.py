"""Which back-end, and whether it is safe enough."""

from __future__ import annotations

from dataclasses import dataclass

from scgrpo.errors import SandboxError
from scgrpo.sandbox.base import Sandbox


@dataclass(frozen=True)
class Probe:
    """What this machine gives. `level`: the safest level the embedded back-end reaches here, with `reasons`."""

    level: str
    reasons: tuple[str, ...]


def probe() -> Probe:
    """Ask the kernel."""
    raise SandboxError("Not built yet.")


def open_sandbox(
    backend: str = "auto", *, num_workers: int = 2, allow_insecure: bool = False, url: str | None = None
) -> Sandbox:
    """Open a sandbox.

    Args:
        backend: "zygote" (embedded, no dependencies), "bubblewrap", "remote" (needs `url`), or "auto": the safest of
            the local ones that this machine allows.
        num_workers: processes that run programs at the same time.
        allow_insecure: run even where the kernel gives no isolation. Your explicit word; logged as a warning.
        url: of the remote runner.

    Raises:
        ConfigError: an unknown back-end or a number out of range.
        SandboxError: no safe level can be reached; the remedy says what would help.
    """
    raise SandboxError("Not built yet.")
