"""Wheels for a machine with PyTorch alone, for the GPU tests and benchmarks: `python -m benchmarks.wheels DIR`."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata

from packaging.requirements import Requirement

WANTED = ("trl", "transformers", "accelerate", "datasets", "jaxtyping", "rich", "pytest", "liger-kernel")
# PyTorch comes with the machine, and with it what it brings along.
PRESENT = re.compile(r"torch|triton|nvidia-.*|cuda-.*|setuptools|sympy|mpmath|networkx")


def closure(names: tuple[str, ...]) -> dict[str, str]:
    """name -> version of the installed distributions that `names` need, themselves included."""
    found: dict[str, str] = {}
    todo = list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found or PRESENT.fullmatch(name):
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            print(f"{name} is not installed here and is left out", file=sys.stderr)
            continue
        found[name] = distribution.version
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return found


def main() -> None:
    target = sys.argv[1]
    pins = [f"{name}=={version}" for name, version in sorted(closure(WANTED).items())]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", target, *pins], check=True)
    print(f"{len(pins)} wheels in {target}")


if __name__ == "__main__":
    main()
