"""A process that waits for another for ever fails its test, and neither is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from launching import launch

pytestmark = pytest.mark.distributed
WORKER = str(Path(__file__).parent / "_hanging_worker.py")


def check_none_is_left(folder: Path) -> None:
    processes = [int(file.read_text()) for file in folder.glob("pid-*")]
    assert len(processes) == 2
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_a_hang_ends_by_the_time_limit_of_the_launch(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"2 process\(es\) still wait"):
        launch(2, [WORKER, str(tmp_path), "3000"], patience=40)
    check_none_is_left(tmp_path)


def test_a_hang_ends_by_the_time_limit_of_the_process_group_with_the_place_it_waits_at(tmp_path: Path) -> None:
    result = launch(2, [WORKER, str(tmp_path), "5"])
    assert result.returncode != 0
    assert "all_reduce" in result.stderr
    check_none_is_left(tmp_path)
