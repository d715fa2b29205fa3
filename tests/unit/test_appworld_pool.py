"""The pool of AppWorld's servers in large processes, with many servers, and while it is closed; with a stub for the
engine."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from appworld_stub import act, make_root

from scgrpo.errors import VerifierError
from scgrpo.tasks import Status
from scgrpo.tasks.appworld import AppWorldTask
from scgrpo.tasks.appworld.inside import confinement
from scgrpo.tasks.appworld.places import Places
from scgrpo.tasks.appworld.server import Server, ServerSettings
from scgrpo.tasks.appworld.servers import ServerPool

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or confinement.landlock_abi() < 1, reason="the kernel has no Landlock"
)
# More than select() can tell.
MANY = 1100


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("appworld")
    for parent in (folder, folder.parent):
        parent.chmod(0o755)
    return make_root(folder)


@contextlib.contextmanager
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * MANY:
        pytest.skip("this process may not open as many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * MANY, hard))
    first = os.open(os.devnull, os.O_RDONLY)
    opened = [first, *(os.dup(first) for _ in range(MANY))]
    try:
        yield
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_with_many_files_open(root: Path) -> None:
    task = AppWorldTask(root=str(root), num_servers=1)
    try:
        with many_descriptors():
            (verdict,) = task.verify([act("finish a_1")[0]], [{"task_id": "a_1"}])
        assert (verdict.status, verdict.score) == (Status.GRADED, 1.0), verdict.detail
    finally:
        task.close()


def test_a_world_that_has_died_is_not_waited_for(root: Path) -> None:
    """As one that the kernel ends for want of memory, between two requests."""
    task = AppWorldTask(root=str(root), num_servers=1, code_timeout_s=600)
    try:
        for _ in range(2):
            world = task.environment({"task_id": "a_1"})
            os.kill(json.loads(world.step(act("who")[0]).observation)["pid"], signal.SIGKILL)
            assert world.step(act("print x")[0]).done
            verdict = world.verdict()
            assert verdict.status is Status.ERROR, "not a timeout"
            assert verdict.detail.startswith("a_1: AppWorld's server broke off at /execute")
        (verdict,) = task.verify([act("finish a_1")[0]], [{"task_id": "a_1"}])
        assert (verdict.status, verdict.score) == (Status.GRADED, 1.0), verdict.detail
    finally:
        task.close()


def test_no_world_is_of_the_judges_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    settings = ServerSettings(Places(tmp_path), tmp_path)
    worlds = {Server(settings, number, "world")._settings(0, 0)["uid"] for number in range(64)}
    judge = Server(settings, 0, "judge")._settings(0, 0)["uid"]
    assert judge not in worlds
    assert len(worlds) == 15, "the next process's numbers are left alone"


def test_no_judge_is_started_after_the_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ServerPool(Places(root), 1)

    def closed_meanwhile(*_: Any) -> dict[str, Any]:
        pool.close()
        raise VerifierError("The judge broke off.", "")

    monkeypatch.setattr(pool, "_judged", closed_meanwhile)
    with pytest.raises(VerifierError, match="is closed"):
        pool.judge("a_1", pool.servers[0])
    assert not pool._judge.running
