"""Where AppWorld is: its virtual environment, its data, and our small world."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from scgrpo.errors import MissingDataError

VARIABLE = "SCGRPO_APPWORLD_ROOT"
INSIDE = Path(__file__).parent / "inside"


@dataclass(frozen=True)
class Places:
    """The folders below one root.

    Attributes:
        root: `$SCGRPO_APPWORLD_ROOT`, or `appworld` in the cache folder.
        mini: the data are those of the small world, in `mini/data`, not the benchmark's, in `data`.
    """

    root: Path
    mini: bool = False

    @property
    def python(self) -> Path:
        return self.root / "venv" / "bin" / "python"

    @property
    def data(self) -> Path:
        return self.root / "mini" / "data" if self.mini else self.root / "data"

    def check(self) -> None:
        """Raises MissingDataError where something is missing, with the command that makes it."""
        option = "" if self.root == default_root() else f" --root {self.root}"
        if not self.python.exists():
            raise MissingDataError(
                f"There is no virtual environment of AppWorld in {self.root}.", f"Run: scgrpo appworld setup{option}"
            )
        if not (self.data / "datasets").is_dir():
            remedy = f"scgrpo appworld setup --mini{option}" if self.mini else download_command(self.root)
            raise MissingDataError(f"There are no AppWorld data in {self.data}.", f"Run: {remedy}")


def find(root: str | Path | None = None, *, mini: bool = False) -> Places:
    """The places below a root; None: the default one."""
    return Places(Path(root).expanduser().resolve() if root is not None else default_root(), mini)


def default_root() -> Path:
    """`$SCGRPO_APPWORLD_ROOT`, or `appworld` in `$SCGRPO_CACHE` or in the user's cache folder."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser().resolve()
    cache = os.environ.get("SCGRPO_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "scgrpo").expanduser().resolve() / "appworld"


def download_command(root: Path) -> str:
    """The command with which AppWorld downloads the benchmark's data."""
    return f"{root / 'venv' / 'bin' / 'appworld'} download data --root {root}"
