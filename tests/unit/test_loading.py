"""Imports of the frameworks and the garbage collector. Each case runs in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

SETUP = "import gc, sys, types; from scgrpo.cli.loading import heavy_imports\n"


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", SETUP + code], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_no_collection_during_the_first_import_and_none_of_its_objects_later() -> None:
    code = "with heavy_imports(): print(gc.isenabled())\nprint(gc.isenabled(), gc.get_freeze_count() > 1000)"
    assert run(code).split() == ["False", "True", "True"]


def test_collections_go_on_after_a_failed_import() -> None:
    code = "try:\n  with heavy_imports(): import no_such_module\nexcept ImportError: print(gc.isenabled())"
    assert run(code) == "True"


@pytest.mark.parametrize("before", ["sys.modules['torch'] = types.ModuleType('torch')", "gc.disable()"])
def test_a_process_in_use_is_left_alone(before: str) -> None:
    code = f"{before}\nstate = gc.isenabled()\nwith heavy_imports(): print(gc.isenabled() == state)\n"
    assert run(code + "print(gc.get_freeze_count(), gc.isenabled() == state)").split() == ["True", "0", "True"]
