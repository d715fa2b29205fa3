"""Whatever is written into a run directory is read back, and a crash at any byte loses at most one record."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from scgrpo.report.text import TOKEN_CLASSES, token_class, visible
from scgrpo.runs import RolloutRow, RunDirectory

text = st.text(max_size=8)
single = st.floats(width=32, allow_nan=False)
names = text.filter(lambda name: name not in ("schema_version", "step", "time_s"))


@st.composite
def rollout_rows(draw: st.DrawFn) -> RolloutRow:
    length = draw(st.integers(0, 5))

    def several(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=length, max_size=length))

    scored = draw(st.booleans())
    return RolloutRow(
        step=draw(st.integers(0, 10**6)),
        group=draw(st.integers(0, 99)),
        rollout=draw(st.integers(0, 99)),
        problem_id=draw(text),
        prompt=draw(text),
        completion=draw(text),
        tokens=several(text),
        token_ids=several(st.integers(0, 2**31)),
        is_special=several(st.booleans()),
        mask=several(st.booleans()),
        rewards=draw(st.dictionaries(text, st.none() | st.floats(allow_nan=False), max_size=3)),
        solved=draw(st.none() | st.booleans()),
        status=draw(st.sampled_from(["graded", "error", "timeout"])),
        detail=draw(text),
        route=draw(st.sampled_from(["partial", "none_solved", "fallback"])),
        demonstration=draw(st.none() | st.integers(0, 99)),
        demonstration_text=draw(st.none() | text),
        teacher_prompt=draw(st.none() | text),
        demonstration_truncated=draw(st.booleans()),
        advantage=draw(st.floats(allow_nan=False)),
        token_kl=several(single) if scored else None,
        credit_weights=several(single),
        student_logps=several(single) if scored else None,
        teacher_logps=several(single) if scored else None,
    )


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(rollout_rows(), max_size=4))
def test_rollouts_round_trip(rows: list[RolloutRow]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(folder)
        run.write_rollouts(1, rows)
        assert run.rollouts(1) == rows


@settings(max_examples=60, deadline=None)
@given(records=st.lists(st.dictionaries(names, st.floats(), max_size=4), max_size=5))
def test_metrics_round_trip(records: list[dict[str, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(folder)
        for step, metrics in enumerate(records):
            run.log_metrics(step, metrics, time_s=0.5)
        expected = [
            {"schema_version": 1, "step": step, "time_s": 0.5}
            | {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            for step, metrics in enumerate(records)
        ]
        assert run.metrics() == expected


@settings(max_examples=80, deadline=None)
@given(cut=st.integers(0, 400), data=st.data())
def test_a_crash_at_any_byte_loses_at_most_the_last_record(cut: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(folder)
        for step in range(4):
            run.log_metrics(step, {data.draw(names): 0.5}, time_s=1)
        path = Path(folder) / "metrics.jsonl"
        whole = path.read_bytes()[:cut]
        path.write_bytes(whole)
        complete = whole.count(b"\n")
        read = [record["step"] for record in RunDirectory.open(folder).metrics()]
        assert read in (list(range(complete)), list(range(complete + 1)))

        again = RunDirectory.create(folder, on_exists="resume")
        again.log_metrics(9, {}, time_s=2)
        assert [record["step"] for record in again.metrics()] == [*read, 9]


@given(text=st.text())
def test_every_token_has_a_class_and_a_safe_shape(text: str) -> None:
    assert token_class(text, False) in TOKEN_CLASSES[:-1]
    shown = visible(text)
    assert shown
    assert not any(char in shown for char in "\n\t\r \u202e\u200b\x00")
