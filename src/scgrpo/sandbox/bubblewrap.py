"""The same workers inside bubblewrap: own namespaces, and a file system of only what runs may read."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig

from scgrpo.errors import SandboxError
from scgrpo.sandbox.worker import HERE, Launch
from scgrpo.sandbox.zygote import Zygote


def find() -> str | None:
    """Path of the program, if it is installed."""
    return shutil.which("bwrap")


def open_wrapped(num_workers: int, missing: tuple[str, ...] = ()) -> Zygote:
    """A `Zygote` whose workers run inside bubblewrap; `missing` as in `Launch`.

    Raises:
        SandboxError: it is not installed, or may not make namespaces here (as in most containers).
    """
    program = find()
    if program is None:
        raise SandboxError("bubblewrap is not installed.", "Install the package that has `bwrap`, or use 'zygote'.")
    launch = Launch((program, *_options()), view="mounts", missing=missing)
    return Zygote(num_workers, launch, name="bubblewrap")


def _options() -> list[str]:
    options = [
        "--unshare-all",
        "--unshare-user",
        "--as-pid-1",
        "--new-session",
        "--cap-drop",
        "ALL",
        "--uid",
        "65534",
        "--gid",
        "65534",
    ]
    options += ["--proc", "/proc", "--tmpfs", "/tmp"]
    for device in ("null", "zero", "random", "urandom"):
        options += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for path in ("/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache"):
        options += ["--ro-bind-try", path, path]
    for path in ("/lib", "/lib64"):
        if os.path.islink(path):
            options += ["--symlink", os.readlink(path), path]
        else:
            options += ["--ro-bind-try", path, path]
    options += ["--ro-bind", _prefix(), _prefix(), "--ro-bind", str(HERE), str(HERE)]
    for hidden in _packages():
        options += ["--tmpfs", hidden]
    options += ["--remount-ro", "/", "--chdir", "/", "--"]
    return options


def _prefix() -> str:
    """The folder of the Python installation; of one in /usr only its program, as its library is bound already."""
    prefix = os.path.realpath(sys.base_prefix)
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable) if prefix == "/usr" else prefix


def _packages() -> list[str]:
    """Folders of installed packages inside the standard library's."""
    library = os.path.realpath(sysconfig.get_paths()["stdlib"])
    return [path for path in (os.path.join(library, "site-packages"), "/usr/lib/python3") if os.path.isdir(path)]
