"""AppWorld's servers with a stub for the engine: whatever happens in one, the others and the pool go on.

The supervisor, the template and the confinement are the real ones.
"""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from appworld_stub import act, make_root

from scgrpo.errors import ConfigError, DataError, VerifierError
from scgrpo.tasks import Status
from scgrpo.tasks.appworld import AppWorldTask, environment, server
from scgrpo.tasks.appworld.inside import confinement
from scgrpo.tasks.appworld.places import Places
from scgrpo.tasks.appworld.servers import ServerPool

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or confinement.landlock_abi() < 1, reason="the kernel has no Landlock"
)
LIMIT_S = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("appworld")
    for parent in (folder, folder.parent):  # as a user's folder is: others can come through
        parent.chmod(0o755)
    return make_root(folder)


@pytest.fixture(scope="module")
def task(root: Path) -> Iterator[AppWorldTask]:
    task = AppWorldTask(root=str(root), num_servers=2, code_timeout_s=LIMIT_S)
    yield task
    task.close()


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_GRACE_S", 0.0)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def opened(task: AppWorldTask, task_id: str = "a_1") -> environment.AppWorldEnvironment:
    return task.environment({"task_id": task_id})


def said(task: AppWorldTask, *commands: str) -> list[str]:
    """What a world answers to commands."""
    world = opened(task)
    answers = [world.step(action).observation for action in act(*commands)]
    world.close()
    return answers


def process_of(task: AppWorldTask) -> dict[str, int]:
    return json.loads(said(task, "who")[0])


@pytest.mark.parametrize(("answer", "score", "detail"), [("a_1", 1.0, "2 of 2"), ("other", 0.0, "1 of 2")])
def test_an_episode_ends_with_the_verdict_of_its_tests(
    task: AppWorldTask, answer: str, score: float, detail: str
) -> None:
    world = opened(task)
    assert world.step(act("print hello there")[0]) == ("hello there", False)
    assert world.step(act(f"finish {answer}")[0]).done
    assert world.step(act("print more")[0]).done
    verdict = world.verdict()
    assert (verdict.status, verdict.score) == (Status.GRADED, score)
    assert detail in verdict.detail
    assert world.verdict() is verdict


def test_a_share_of_the_tests_can_be_the_score(root: Path) -> None:
    task = AppWorldTask(root=str(root), num_servers=1, reward="score")
    try:
        (verdict,) = task.verify([act("finish other")[0]], [{"task_id": "a_1"}])
        assert (verdict.status, verdict.score) == (Status.GRADED, 0.5)
    finally:
        task.close()


def test_a_rollout_that_was_cut_off_is_graded_as_it_stands(task: AppWorldTask) -> None:
    world = opened(task)
    world.step("no code at all")
    verdict = world.verdict()
    assert (verdict.status, verdict.score) == (Status.GRADED, 0.0)


@pytest.mark.parametrize(
    ("command", "status", "detail"),
    [
        ("hang", Status.TIMEOUT, "did not answer /execute within 3 s"),
        ("endless", Status.TIMEOUT, "did not answer /execute within 3 s"),
        ("die", Status.ERROR, "the end is near"),
        ("status 500", Status.ERROR, "status 500: Internal Server Error"),
        ("garbage", Status.ERROR, "is not one of its own"),
    ],
)
def test_a_broken_world_costs_its_own_rollout_only(
    task: AppWorldTask, command: str, status: Status, detail: str
) -> None:
    other, broken = opened(task, "a_2"), opened(task)
    assert other.step(act("print before")[0]).observation == "before"
    broken.step(act("print before")[0])
    assert broken.step(act(command)[0]).done
    verdict = broken.verdict()
    assert verdict.status is status
    assert verdict.detail.startswith("a_1: ")
    assert detail in verdict.detail
    assert other.step(act("finish a_2")[0]).done
    assert other.verdict().score == 1.0
    assert task.verify([act("finish a_1")[0]], [{"task_id": "a_1"}])[0].score == 1.0


def test_an_answer_without_end_is_not_read_to_its_end(task: AppWorldTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scgrpo.tasks.appworld.client.MAX_ANSWER_BYTES", 1000)
    world = opened(task)
    world.step(act("print " + "x" * 1000)[0])
    assert world.verdict().status is Status.ERROR
    assert "more than 1000 bytes" in world.verdict().detail


def test_a_world_that_cannot_be_entered_is_tried_twice(task: AppWorldTask) -> None:
    verdicts = task.verify(
        [act("finish flaky_1")[0], act("finish broken_1")[0]], [{"task_id": "flaky_1"}, {"task_id": "broken_1"}]
    )
    assert verdicts[0].score == 1.0
    assert verdicts[1].status is Status.ERROR
    assert "cannot be entered" in verdicts[1].detail


def test_a_judge_that_fails_is_an_error(task: AppWorldTask) -> None:
    (verdict,) = task.verify([act("finish x")[0]], [{"task_id": "untested_1"}])
    assert verdict.status is Status.ERROR
    assert verdict.detail.startswith("untested_1: ")
    assert "no tests" in verdict.detail


def test_rollouts_of_one_task_have_worlds_of_their_own(task: AppWorldTask) -> None:
    def play(answer: str) -> tuple[int, float]:
        world = opened(task)
        pid = json.loads(world.step(act("who")[0]).observation)["pid"]
        time.sleep(0.5)
        world.step(act(f"finish {answer}")[0])
        return pid, world.verdict().score

    with ThreadPoolExecutor(8) as threads:
        played = list(threads.map(play, ["a_1", "other"] * 4))
    assert [score for _, score in played] == [1.0, 0.0] * 4
    assert len({pid for pid, _ in played}) == 8  # more than there are servers: each world is a fresh process


def test_a_rollout_waits_for_a_server_and_says_so_when_none_comes(root: Path) -> None:
    with_one = ServerPool(Places(root), 1)
    try:
        lease = with_one.lease(1.0)
        with pytest.raises(VerifierError, match=r"None of 1 AppWorld servers was free within 0.2 s.*num_servers"):
            with_one.lease(0.2)
        threading.Timer(0.5, with_one.release, [lease]).start()
        assert with_one.lease(60.0) is lease
    finally:
        with_one.close()
    with pytest.raises(VerifierError, match="closed"):
        with_one.lease(1.0)


def test_a_forgotten_episode_gives_its_server_back(root: Path) -> None:
    task = AppWorldTask(root=str(root), num_servers=1)
    try:
        opened(task).step(act("print x")[0])
        gc.collect()
        assert task.pool.lease(10.0).running
    finally:
        task.close()


def test_what_code_leaves_running_ends_with_its_episode(task: AppWorldTask) -> None:
    world = opened(task)
    server_folder = json.loads(world.step(act("environ")[0]).observation)["HOME"]
    left = int(world.step(act(f"leave {server_folder}/pid")[0]).observation)
    assert alive(left)
    world.close()
    assert wait_for(lambda: not alive(left))


def test_servers_see_none_of_our_variables(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    task = AppWorldTask(root=str(root), num_servers=1)
    try:
        seen = json.loads(said(task, "environ")[0])
    finally:
        task.close()
    assert "HF_TOKEN" not in seen
    assert set(seen) - {"LC_CTYPE", "PWD", "PYTHONPATH", "_", "SHLVL", "OLDPWD"} == set(
        server._environment(Path("x"))
    )


def test_servers_are_confined(task: AppWorldTask, root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    specs = root / "data" / "tasks" / "a_1" / "specs.json"
    answer = specs.parent / "ground_truth" / "answer"
    read, own, truth, trainer, written, run = said(
        task,
        f"read {specs}",
        "write experiments/outputs/note",
        f"read {answer}",
        f"read {secret}",
        f"write {tmp_path}/new",
        "run /bin/true",
    )
    assert read.startswith("done: ")
    assert own.startswith("done: ")
    for refusal in (truth, trainer, written, run):
        assert refusal.startswith("refused: PermissionError")
    assert task.pool.facts["confinement"]["files"].startswith("Landlock")


def test_servers_reach_no_port(task: AppWorldTask) -> None:
    said(task, "print x")
    if task.pool.facts["confinement"]["network"] == "not confined":
        pytest.skip("the kernel confines no network")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert said(task, f"connect {listener.getsockname()[1]}")[0].startswith("refused: ")


def test_servers_signal_nobody(task: AppWorldTask) -> None:
    if confinement.landlock_abi() < 6:
        pytest.skip("Landlock restricts signals from ABI 6 on")
    world = opened(task)
    template = json.loads(world.step(act("who")[0]).observation)["parent"]
    for pid in (template, os.getpid()):
        assert world.step(act(f"signal {pid}")[0]).observation.startswith("refused: PermissionError")
    world.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_servers_of_root_are_not_root_where_that_can_be(task: AppWorldTask) -> None:
    uid, identity = process_of(task)["uid"], task.pool.facts["confinement"]["identity"]
    assert identity == (f"user {uid}" if uid else "root without capabilities")


def test_servers_listen_on_the_loopback_interface_only(task: AppWorldTask) -> None:
    lease = task.pool.lease(60.0)
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    listening = [line[1] for line in lines if line[3] == "0A" and line[1].endswith(f":{lease.port:04X}")]
    task.pool.release(lease)
    assert listening == [f"0100007F:{lease.port:04X}"]


def test_nothing_is_left_of_a_closed_pool(root: Path) -> None:
    task = AppWorldTask(root=str(root), num_servers=2)
    world = opened(task)
    process = json.loads(world.step(act("who")[0]).observation)
    task.pool.judge("a_1", task.pool.servers[0])
    shared = task.pool.shared
    task.close()
    assert not shared.exists()
    assert wait_for(lambda: not alive(process["pid"]) and not alive(process["parent"]))
    assert world.step(act("print x")[0]).done
    assert world.verdict().status is Status.ERROR


def test_closing_ends_a_wait(root: Path) -> None:
    own = AppWorldTask(root=str(root), num_servers=1, code_timeout_s=300)
    world = opened(own)
    world.step(act("print x")[0])
    threading.Timer(1.0, own.close).start()
    started = time.monotonic()
    assert world.step(act("hang")[0]).done
    assert time.monotonic() - started < 200
    assert world.verdict().status is Status.ERROR


ORPHAN = """
import json, os, signal, sys
from appworld_stub import act
from scgrpo.tasks.appworld import AppWorldTask
task = AppWorldTask(root=sys.argv[1], num_servers=1)
world = task.environment({"task_id": "a_1"})
who = json.loads(world.step(act("who")[0]).observation)
print(json.dumps({**who, "folder": str(task.pool.servers[0].folder)}), flush=True)
os.kill(os.getpid(), getattr(signal, sys.argv[2]))
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_servers_end_with_us(root: Path, name: str) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ORPHAN), str(root), name],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == -getattr(signal, name), done.stderr
    seen = json.loads(done.stdout)
    assert wait_for(lambda: not alive(seen["pid"]) and not alive(seen["parent"]))
    assert wait_for(lambda: not Path(seen["folder"]).parent.exists())


@pytest.mark.parametrize(
    ("preamble", "message"),
    [
        (
            "import os, sys; print('engine out of order', file=sys.stderr, flush=True); os._exit(3)",
            r"its processes ended.*engine out of order",
        ),
        ("raise ImportError", r"could not start: ModuleNotFoundError: No module named 'appworld'"),
        ("import time; time.sleep(600)", r"it said nothing for 5 s"),
    ],
)
def test_an_engine_that_does_not_start_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preamble: str, message: str
) -> None:
    if "sleep" in preamble:
        monkeypatch.setattr(server, "_START_TIMEOUT_S", 5.0)
    monkeypatch.setattr(server, "_END_TIMEOUT_S", 1.0)
    pool = ServerPool(Places(make_root(tmp_path, preamble=preamble)), 1)
    try:
        with pytest.raises(VerifierError, match=re.compile(message, re.DOTALL)):
            pool.lease(1.0)
    finally:
        pool.close()


def test_a_kernel_that_cannot_confine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_END_TIMEOUT_S", 1.0)
    reply = json.dumps({"ready": False, "detail": "ConfinementError: no Landlock"})
    root = make_root(tmp_path)
    (root / "venv" / "bin" / "python").write_text(f"#!/bin/sh\necho '{reply}'\nexec sleep 600\n")
    pool = ServerPool(Places(root), 1)
    try:
        with pytest.raises(ConfigError, match=r"cannot be confined: .*no Landlock.*confine: false"):
            pool.lease(1.0)
    finally:
        pool.close()


def test_a_server_may_run_unconfined_if_the_user_says_so(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("words")
    task = AppWorldTask(root=str(root), num_servers=1, confine=False)
    try:
        assert said(task, f"read {tmp_path}/file") == ["done: words"]
        assert task.verify([act("finish a_1")[0]], [{"task_id": "a_1"}])[0].score == 1.0
    finally:
        task.close()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    options: dict[str, Any] = {"root": str(tmp_path)}
    with pytest.raises(DataError, match=r"no virtual environment.*scgrpo appworld setup --root"):
        AppWorldTask(**options).rows("train")
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").touch()
    with pytest.raises(DataError, match=r"no AppWorld data.*appworld download data --root"):
        AppWorldTask(**options).pool.lease(1.0)
    with pytest.raises(DataError, match=r"setup --mini"):
        AppWorldTask(**options, mini=True).rows("eval")
