"""These tests need verl, which pins other versions than the rest: `.ci/verl` builds its environment and runs them."""

from __future__ import annotations

import signal
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # last: other folders have a conftest, too

from toy import Inputs, make_inputs


def has_verl() -> bool:
    try:
        version("verl")
    except PackageNotFoundError:
        return False
    return True


if has_verl():  # tests that are told to stop end what they started
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not has_verl():
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="verl is not installed: run .ci/verl"))


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """The toy task's model, rows and reward function."""
    return make_inputs(tmp_path_factory.mktemp("toy"))
