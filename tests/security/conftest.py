"""Sandboxes for the tests here. Where a machine gives no safe one, they skip and say why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scgrpo.errors import SandboxError
from scgrpo.sandbox import Limits
from scgrpo.sandbox.bubblewrap import open_wrapped
from scgrpo.sandbox.escapes import Bait, bait, secret_environment
from scgrpo.sandbox.worker import Launch
from scgrpo.sandbox.zygote import Zygote

AMPLE = Limits(wall_s=60.0)  # a busy machine is slow; what must end earlier says so


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """The embedded back-end, with a secret in the environment it is opened from."""
    with secret_environment():
        try:
            sandbox = Zygote(2)
        except SandboxError as error:
            pytest.skip(f"no safe sandbox here: {error.problem}")
        with sandbox:
            yield sandbox


@pytest.fixture(scope="session")
def closed() -> Iterator[Zygote]:
    """The same as on a kernel without Landlock."""
    with secret_environment():
        try:
            sandbox = Zygote(1, Launch(missing=("landlock",)))
        except SandboxError as error:
            pytest.skip(f"no seccomp here: {error.problem}")
        with sandbox:
            yield sandbox


@pytest.fixture(scope="session")
def wrapped() -> Iterator[Zygote]:
    """Inside bubblewrap, and without Landlock: what it holds by itself."""
    with secret_environment():
        try:
            sandbox = open_wrapped(1, missing=("landlock",))
        except SandboxError as error:
            pytest.skip(f"bubblewrap cannot be used here: {error.problem}")
        with sandbox:
            yield sandbox


@pytest.fixture
def lure() -> Iterator[Bait]:
    with bait() as things:
        yield things


@pytest.fixture
def ample() -> Limits:
    return AMPLE
