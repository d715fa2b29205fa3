"""First errors against exhaustive search with the verifier alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scgrpo.tasks import countdown, reach, style
from scgrpo.tasks.environment import EnvironmentTask
from scgrpo.tasks.procedural import ProceduralTask
from scgrpo.tiny.testbeds import TESTBEDS

# Conversations are searched in tests/unit/test_maze.py.
TEXTS = sorted(name for name, testbed in TESTBEDS.items() if not isinstance(testbed.task, EnvironmentTask))
each_testbed = pytest.mark.parametrize("name", TEXTS)


def spoiled(task: ProceduralTask, row: dict[str, Any], rng: random.Random) -> str:
    """A solution or an attempt, perhaps with a word replaced, left out or added, perhaps cut short."""
    words = (task.solution(row, rng) if rng.random() < 0.5 else task.attempt(row, rng)).split(" ")
    for _ in range(rng.choice((0, 1, 1, 2))):
        place, kind = rng.randrange(len(words)), rng.random()
        new = [] if kind < 0.2 else [rng.choice(task.words)]
        words[place : place + (kind < 0.8)] = new
    return " ".join(words[: rng.randint(0, len(words))] if rng.random() < 0.3 else words)


@each_testbed
@settings(max_examples=60, deadline=None)
@given(index=st.integers(0, 10_000), seed=st.integers(0, 10_000))
def test_first_errors_agree_with_the_verifier(name: str, index: int, seed: int) -> None:
    task, rng = TESTBEDS[name].task, random.Random(seed)
    problems = task.problems()
    row = task.row(problems[index % len(problems)])
    for _ in range(5):
        completion = spoiled(task, row, rng)
        words = completion.split(" ") if completion else []
        (first,) = task.first_errors([completion], [row])
        if task.is_correct(completion, row):
            assert first is None
            # Every start of a correct completion can still become one: it just does.
            assert all(task.is_solvable(words[:length], row) for length in range(len(words) + 1))
            continue
        assert first is not None
        assert 0 <= first <= len(words)
        # By definition, word by word and without bisection.
        solvable = [task.is_solvable(words[:length], row) for length in range(len(words) + 1)]
        assert solvable == [True] * (first + 1) + [False] * (len(words) - first)


def programs(value: int, steps: int) -> Iterator[str]:
    for number in range(steps + 1):
        for names in product(reach.OPERATIONS, repeat=number):
            words, register = [], value
            for operation in names:
                register = reach.OPERATIONS[operation](register)
                words += [operation, str(register)]
            yield " ".join(words)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_reach_against_all_programs(seed: int) -> None:
    task, rng = reach.ReachTask(), random.Random(seed)
    row = task.row(rng.choice(task.problems()))
    words, value = [], row["start"]
    for _ in range(rng.randint(reach.MAX_STEPS - 3, reach.MAX_STEPS)):
        operation = rng.choice(list(reach.OPERATIONS))
        value = reach.OPERATIONS[operation](value)
        words += [operation, str(value)]
    rests = programs(value, reach.MAX_STEPS - len(words) // 2)
    exists = any(task.is_correct(" ".join([*words, rest]).rstrip(), row) for rest in rests)
    assert task.is_solvable(words, row) == exists


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_countdown_against_all_second_steps(seed: int) -> None:
    task, rng = countdown.CountdownTask(), random.Random(seed)
    row = task.row(rng.choice(task.problems()))
    first = task.attempt(row, rng).split(" ")[:6]
    numbers = range(countdown.MAX_VALUE + 1)
    exists = any(
        task.is_correct(" ".join([*first, str(a), sign, str(b), "=", str(operation(a, b)), ";"]), row)
        for a, b in product(numbers, numbers)
        for sign, operation in countdown.OPERATIONS.items()
    )
    assert task.is_solvable(first, row) == exists


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_style_can_be_completed_exactly_until_its_first_error(seed: int) -> None:
    task, rng = style.StyleTask(), random.Random(seed)
    row = task.row(rng.choice(task.problems()))
    words = spoiled(task, row, rng).split(" ")
    (first,) = task.first_errors([" ".join(words)], [row])
    kept = words if first is None else words[:first]
    # Fill in what is missing, without the task's own search.
    bins = {str(number): style.BINS[(number + row["key"]) % 3] for number in row["numbers"]}
    left = [number for number in bins if number not in kept]
    for place in range(len(kept), len(style.FORM)):
        kind = style.FORM[place]
        kept = [*kept, left.pop() if kind == "n" else bins[kept[-1]] if kind == "b" else "so"]
    assert task.is_correct(" ".join(kept), row)
    if first is not None and first < len(words):
        tail = task.solution(row, rng).split(" ")[first + 1 :]
        assert not task.is_correct(" ".join([*words[: first + 1], *tail]), row)
