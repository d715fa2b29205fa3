"""Importing the frameworks at their own cost, and no more."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Imports of a framework: no garbage collection meanwhile, and none of what they made later.

    torch, transformers and TRL make a million objects that live until the end. Collections while they do take a
    quarter of the import's time, and each later one would look at all of them again. Does nothing in a process that
    has loaded a framework before: what is garbage there by now would never be freed.
    """
    if not gc.isenabled() or "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
