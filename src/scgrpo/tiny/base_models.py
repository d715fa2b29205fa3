"""Base models of the testbeds, made when they are first asked for and kept in a cache."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from scgrpo.errors import ConfigError
from scgrpo.tiny.build import build
from scgrpo.tiny.documents import Documents
from scgrpo.tiny.recipe import Recipe
from scgrpo.tiny.testbeds import get_testbed

PREFIX = "testbed:"


def base_model(name: str, seed: int = 0, *, progress: Callable[[str], None] = print) -> Path:
    """Folder of a testbed's base model: an ordinary Hugging Face checkpoint.

    The first call trains it (about a minute on one core); later ones, in other processes too, find it in the cache
    (`cache_folder`). Processes that ask at the same time wait for the one that builds. A build that misses the bands
    of its recipe is kept and says so in `build.json`, and to `progress`.

    Raises:
        ConfigError: unknown testbed.
    """
    recipe = get_testbed(name).recipe
    folder = cache_folder() / f"{name}-{seed}-{recipe_key(recipe, seed)}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():  # built while this process waited
            return folder
        progress(f"training base model {name!r} with seed {seed}; it will be kept in {folder}")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as scratch:
            unfinished = Path(scratch) / "model"
            progress(str(build(recipe, unfinished, seed=seed, num_samples=2, progress=progress)))
            unfinished.rename(folder)  # whole or not at all
    return folder


def cache_folder() -> Path:
    """`$SCGRPO_CACHE`, or `~/.cache/scgrpo`."""
    given = os.environ.get("SCGRPO_CACHE")
    return (Path(given) if given else Path.home() / ".cache" / "scgrpo") / "testbeds"


def recipe_key(recipe: Recipe, seed: int) -> str:
    """Changes with everything that decides the weights: recipe, seed, documents (hence tasks), libraries."""
    documents = Documents(recipe, seed)
    sample = [documents.batch(8, schooling=index % 2 == 0) for index in range(20)]
    parts = (recipe, recipe.vocabulary.words, sample, seed, version("torch"), version("transformers"))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def parse_reference(reference: str) -> tuple[str, int]:
    """Name and seed of `testbed:NAME` (seed 0) or `testbed:NAME:SEED`.

    Raises:
        ConfigError: the seed is not a number.
    """
    name, _, seed = reference.removeprefix(PREFIX).partition(":")
    if seed and not seed.isdecimal():
        raise ConfigError(f"{seed!r} is not a seed.", f"Write {PREFIX}NAME:SEED, for example {PREFIX}{name}:0.")
    return name, int(seed or 0)
