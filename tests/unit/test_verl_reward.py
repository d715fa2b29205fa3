"""verl's reward function: right, wrong, and everything that is neither."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from scgrpo.integrations.verl import verdicts
from scgrpo.integrations.verl.reward import compute_score
from scgrpo.tasks import get_task
from scgrpo.tasks.base import Canned, Row, Split, Task, Verdict
from scgrpo.tasks.environment import EnvironmentTask, Step
from scgrpo.tasks.registry import _FACTORIES, register_task

MADE: list[Task] = []
BLOCKED = threading.Event()


class Odd(Task):
    """What the completion asks for happens to the verifier."""

    name = "odd"
    success_threshold = 0.75

    def __init__(self, half: float = 0.5) -> None:
        self.half = half
        MADE.append(self)

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        return []

    def verify(self, completions: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        (said,) = completions
        if said == "crash":
            raise ConnectionError("no server")
        if said == "hang":
            BLOCKED.wait(600)
        if said == "slow":
            raise TimeoutError("the checker is slow")
        found = {"half": self.half, "nothing": math.nan, "endless": math.inf, "best": 1.0}
        return [Verdict(found[said], detail=rows[0]["problem_id"])]

    def canned(self) -> Canned:
        return Canned({}, (), ())


class Lonely(EnvironmentTask):
    """Breaks if two are graded at once."""

    name = "lonely"
    max_turns = 1
    inside = 0

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        return []

    def canned(self) -> Canned:
        return Canned({}, (), ())

    def environment(self, row: Mapping[str, Any]) -> Any:
        return self

    def step(self, action: str) -> Step:
        Lonely.inside += 1
        time.sleep(0.01)
        alone = Lonely.inside == 1
        Lonely.inside -= 1
        if not alone:
            raise RuntimeError("not alone")
        return Step("", done=True)

    def verdict(self) -> Verdict:
        return Verdict(1.0)


@pytest.fixture(autouse=True)
def own_tasks() -> Iterator[None]:
    MADE.clear()
    before = dict(_FACTORIES)
    register_task("odd", Odd)
    register_task("lonely", Lonely)
    verdicts._tasks.clear()
    yield
    for task in verdicts._tasks.values():
        task.close()
    verdicts._tasks.clear()
    _FACTORIES.clear()
    _FACTORIES.update(before)


def extra(task: str = "odd", row: Row | None = None, **options: Any) -> dict[str, Any]:
    own = {"problem_id": "p1"} if row is None else row
    return {"index": 0, "task": task, "task_options": json.dumps(options), "row": json.dumps(own)}


def test_what_verl_is_told() -> None:
    found = compute_score("odd", "best", "", extra(), reward_router_address=None)
    assert found == {
        "score": 1.0,
        "acc": 1.0,
        "acc_graded": 1.0,
        "graded": 1.0,
        "verdict": "graded",
        "detail": "p1",
        "problem_id": "p1",
    }
    half = compute_score("odd", "half", "", extra())
    assert (half["score"], half["acc"], half["acc_graded"]) == (0.5, 0.0, 0.0), "the task's threshold is 0.75"
    assert compute_score("odd", "half", "", extra(), success_threshold=0.5)["acc"] == 1.0


@pytest.mark.parametrize(
    ("said", "verdict", "says"),
    [
        ("crash", "error", "ConnectionError: no server"),
        ("slow", "timeout", "the checker is slow"),
        ("nothing", "error", "not a finite number"),
        ("endless", "error", "not a finite number"),
        ("no such word", "error", "KeyError"),
    ],
)
def test_broken_is_not_wrong(said: str, verdict: str, says: str) -> None:
    found = compute_score("odd", said, "", extra())
    assert (found["score"], found["acc"], found["acc_graded"], found["graded"]) == (0.0, 0.0, None, 0.0)
    assert found["verdict"] == verdict
    assert says in found["detail"]
    assert found.keys() == compute_score("odd", "best", "", extra()).keys()


def test_a_verifier_that_hangs() -> None:
    try:
        found = compute_score("odd", "hang", "", extra(), deadline_s=0.2)
        assert (found["verdict"], found["acc_graded"]) == ("timeout", None)
        assert "0.2 s" in found["detail"]
        assert compute_score("odd", "best", "", extra())["score"] == 1.0, "others are graded meanwhile"
    finally:
        BLOCKED.set()


@pytest.mark.parametrize(
    ("info", "says"),
    [
        (None, "verl-data"),
        ({"index": 1}, "verl-data"),
        (extra("od"), "Did you mean 'odd'"),
        (extra(third=1), "no option 'third'"),
        (extra("odd:Missing"), "cannot be imported"),
    ],
)
def test_what_cannot_be_set_up_is_an_error_too(info: Any, says: str) -> None:
    found = compute_score("odd", "best", "", info)
    assert (found["score"], found["verdict"]) == (0.0, "error")
    assert says in found["detail"]


def test_a_task_is_made_once_whatever_the_threads() -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: compute_score("odd", "best", "", extra()), range(64)))
    assert {f["score"] for f in found} == {1.0}
    assert len(MADE) == 1
    compute_score("odd", "best", "", extra(half=0.25))
    assert len(MADE) == 2, "other options, another task"


def test_environments_are_graded_one_at_a_time() -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: compute_score("lonely", "a", "", extra("lonely")), range(16)))
    assert [f["verdict"] for f in found] == ["graded"] * 16


def test_options_of_the_machine() -> None:
    overrides = {"odd": {"half": 0.25}, "other": {"x": 1}}
    assert compute_score("odd", "half", "", extra(half=0.5), task_options=overrides)["score"] == 0.25
    found = compute_score("odd", "half", "", extra(), task_options={"odd": 3})
    assert (found["verdict"], "by its name" in found["detail"]) == ("error", True)


@pytest.mark.parametrize("name", ["math", "exact", "countdown", "guess_number", "maze"])
def test_tasks_of_the_package_grade_what_they_promise(name: str) -> None:
    if name == "math":
        pytest.importorskip("math_verify")
    options = {"num_workers": 1} if name == "math" else {}
    task = get_task(name, **options)
    canned = task.canned()
    for completions, solved in ((canned.right, 1.0), (canned.wrong, 0.0)):
        for text in (c for c in completions if isinstance(c, str)):
            found = compute_score(name, text, "", extra(name, canned.row, **options))
            assert (found["acc"], found["verdict"]) == (solved, "graded")


def test_a_pool_lives_as_long_as_its_process() -> None:
    pytest.importorskip("math_verify")
    row = get_task("math").canned().row
    info = extra("math", row, num_workers=1)
    workers = set()
    for _ in range(3):
        assert compute_score("math", "It is \\boxed{0.75}.", "", info)["acc"] == 1.0
        (task,) = verdicts._tasks.values()
        assert task._pool is not None
        workers |= {worker.process.pid for worker in task._pool._workers}
    assert len(workers) == 1
    os.kill(workers.pop(), 9)
    first, second = (compute_score("math", "It is \\boxed{0.75}.", "", info) for _ in range(2))
    assert (first["verdict"], first["acc_graded"]) in (("error", None), ("graded", 1.0)), (
        "never wrong for a dead worker"
    )
    assert second["acc_graded"] == 1.0, "it was replaced"
