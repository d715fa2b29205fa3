"""Reading rows: every kind of source, and errors that say where."""

from __future__ import annotations

import json
import logging
import sys
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from scgrpo.errors import ConfigError, DataError, MissingExtraError
from scgrpo.tasks.data import (
    checked_columns,
    deduplicated,
    halves,
    in_window,
    is_chat,
    load_rows,
    split_names,
    train_eval_split,
)

ROWS = [{"q": "one", "a": {"value": 1}}, {"q": "two", "a": {"value": 2}}]


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "rows.jsonl").write_text("\n\n".join(json.dumps(row) for row in ROWS))
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.json", "rows.parquet"):
        assert load_rows(tmp_path / name) == ROWS
        picked = load_rows(str(tmp_path / name), columns={"question": "q", "answer": "a.value"})
        assert picked == [{"question": "one", "answer": 1}, {"question": "two", "answer": 2}]
        assert split_names(tmp_path / name) is None


def test_folders_hold_one_file_per_split(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "test.json").write_text(json.dumps(ROWS[:1]))
    for part, row in enumerate(ROWS):
        parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / f"train-0000{part}-of-00002.parquet")
    assert load_rows(tmp_path, split="test") == ROWS[:1]
    assert load_rows(tmp_path, split="train") == ROWS
    assert split_names(tmp_path) == ["test", "train"]
    with pytest.raises(DataError, match="has no split 'validation'"):
        load_rows(tmp_path, split="validation")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.jsonl", '{"q": 1}\n\n{"q": \n', r"rows.jsonl, line 3: not JSON"),
        ("rows.jsonl", "[1, 2]\n", r"rows.jsonl, line 1: not an object"),
        ("rows.jsonl", "", r"rows.jsonl: there are no rows"),
        ("rows.json", '[{"q": 1},\n oops]', r"rows.json, line 2: not JSON"),
        ("rows.json", '{"q": 1}', r"does not hold a list of objects"),
        ("rows.jsonl", '{"q": 1}\n{"q": ' + "9" * 5000 + "}", r"rows.jsonl, line 2: not JSON .*5000 digits"),
        ("rows.jsonl", '{"q": ' + "[" * 100_000 + "}", r"rows.jsonl, line 1: not JSON .*recursion"),
        ("rows.json", "[" + "9" * 5000 + "]", r"rows.json: not JSON .*5000 digits"),
        ("rows.parquet", "not parquet", r"rows.parquet cannot be read as Parquet"),
        ("rows.csv", "q,a", r"rows.csv is of a kind that cannot be read"),
    ],
)
def test_malformed_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_rows(tmp_path / name)


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    data = path.read_bytes()
    path.write_bytes(data[:10] + bytes(40) + data[50:])
    with pytest.raises(DataError, match=r"rows.parquet cannot be read as Parquet"):
        load_rows(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_byte_order_mark_is_no_part_of_the_rows(tmp_path: Path, name: str) -> None:
    text = json.dumps(ROWS) if name.endswith(".json") else "\r\n".join(map(json.dumps, ROWS))
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_rows(tmp_path / name) == ROWS


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    assert load_rows("~/rows.json") == ROWS


def test_column_maps_name_what_is_known() -> None:
    assert checked_columns(None, ("prompt",)) == {}
    assert checked_columns({"prompt": "q"}, ("prompt", "answer")) == {"prompt": "q"}
    with pytest.raises(ConfigError, match=r"columns names promt. Known: prompt, answer"):
        checked_columns({"promt": "q"}, ("prompt", "answer"))
    with pytest.raises(ConfigError, match=r"columns is \['q'\]"):
        checked_columns(["q"], ("prompt", "answer"))


def test_text_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes('{"q": "é"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        load_rows(tmp_path / "rows.jsonl")


def test_a_missing_column_is_named_with_its_line_and_what_exists(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"q": 1, "a": 2}\n\n{"q": null, "b": 3}\n')
    with pytest.raises(DataError, match=r"rows.jsonl, line 3: column 'q' \(the question\) is missing.*found q, b"):
        load_rows(tmp_path / "rows.jsonl", columns={"question": "q"})


def test_missing_files_and_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for source in ("nothing.jsonl", "./nothing", tmp_path / "nothing"):
        with pytest.raises(DataError, match="There is no file"):
            load_rows(source)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="package datasets"):
        load_rows("some/dataset")


def test_hub_data_goes_through_the_datasets_library(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(name: str, config: str | None, *, split: str) -> object:
        calls.append((name, config, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: ["train"])
    assert load_rows("owner/name", config="main", split="train") == ROWS
    assert calls == [("owner/name", "main", "train")]
    assert split_names("owner/name", "main") == ["train"]

    def fail(*args: object, **kwargs: object) -> None:
        raise ValueError('Unknown split "test".\nmore')

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"'owner/name' cannot be loaded from the hub: Unknown split \"test\"\."):
        load_rows("owner/name", split="test")


def test_chat_and_string_prompts() -> None:
    assert not is_chat("hello")
    assert is_chat([{"role": "user", "content": "hello"}])
    for odd in (None, 7, [], ["hello"], [{"content": "hello"}]):
        with pytest.raises(DataError, match="neither a string nor a list of chat messages"):
            is_chat(odd)


def test_repeated_rows_are_kept_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"q": "a", "n": 1}, {"q": "b", "n": 2}, {"q": "a", "n": 3}, {"q": "a", "n": 4}]
    with caplog.at_level(logging.WARNING):
        assert deduplicated(rows, lambda row: row["q"], "mine.jsonl") == rows[:2]
    assert caplog.messages == ["mine.jsonl: 2 of 4 rows repeat an earlier one; the first is kept."]
    caplog.clear()
    assert deduplicated(rows, lambda row: row["n"]) == rows
    assert not caplog.messages
    with pytest.raises(DataError, match=r"mine\.jsonl: there are no rows"):
        deduplicated([], lambda row: row, "mine.jsonl")


def test_date_windows_include_both_ends() -> None:
    days = ["2025-01-31", "2025-02-01T23:59:59", datetime(2025, 3, 1, 12), date(2025, 5, 1), "2025-05-02 00:00"]
    rows = [{"about": {"day": day}} for day in days]
    assert in_window(rows, "about.day", "2025-02-01", "2025-05-01") == rows[1:4]
    assert in_window(rows, "about.day", end_date="2025-02-01") == rows[:2]
    assert in_window(rows, "about.day", start_date="2025-05-01") == rows[3:]
    assert in_window([{"no": "date"}], "about.day") == [{"no": "date"}], "without bounds nothing is looked at"


@pytest.mark.parametrize(
    ("row", "start", "end", "error", "message"),
    [
        ("2025-01-01", "01.02.2025", None, ConfigError, "start_date is '01.02.2025', which is no date"),
        ("2025-01-01", None, "2025-02-30", ConfigError, "end_date is '2025-02-30'"),
        ("2025-01-01", "2025-02-02", "2025-02-01", ConfigError, "after end_date"),
        ("soon", "2025-02-01", None, DataError, "Row 'p7': column 'day' holds 'soon'.*problem_id, day"),
        (None, "2025-02-01", None, DataError, "Row 'p7': column 'day' holds None"),
        ("2025-01-01", "2025-02-01", None, DataError, "No row has its day.*they are from 2025-01-01 to 2025-01-01"),
    ],
)
def test_bad_dates_are_named(row: Any, start: str | None, end: str | None, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        in_window([{"problem_id": "p7", "day": row}], "day", start, end)


def test_dates_as_yaml_reads_them() -> None:
    rows = [{"day": "2025-02-01"}, {"day": "2025-03-01"}]
    assert in_window(rows, "day", date(2025, 2, 1), date(2025, 2, 28)) == rows[:1]
    assert in_window(rows, "day", datetime(2025, 3, 1, 12)) == rows[1:]


def test_rows_without_the_key_are_not_split() -> None:
    with pytest.raises(DataError, match=r"Row 1 has no 'problem_id'; found q"):
        train_eval_split([{"problem_id": "a"}, {"q": 1}], 0.5)


def test_halves_are_disjoint_complete_and_a_matter_of_the_problem_and_the_seed() -> None:
    for count in (2, 3, 10, 41):
        tests = [f"test {n}" for n in range(count)]
        ours, others = halves("p", tests)
        assert sorted([*ours, *others]) == sorted(tests)
        assert len(ours) - len(others) == count % 2
        assert others
        assert ours == [test for test in tests if test in ours], "order is kept"
        assert halves("p", tests) == (ours, others)
    tests = list(range(20))
    assert halves("p", tests)[0] == [2, 3, 4, 5, 6, 7, 8, 9, 11, 18], "the same everywhere, always"
    assert halves("p", tests) != halves("q", tests)
    assert halves("p", tests) != halves("p", tests, seed=1)
    shares = [sum(0 in halves(f"p{n}", tests, seed)[0] for n in range(200)) / 200 for seed in range(3)]
    assert all(0.35 < share < 0.65 for share in shares), "no place is favoured"
    for few in ([], [1]):
        with pytest.raises(DataError, match=rf"Problem 'p' has {len(few)} item"):
            halves("p", few)


def test_held_out_rows_do_not_depend_on_the_order_and_stay_together() -> None:
    rows = [{"problem_id": f"p{n % 10}", "n": n} for n in range(20)]
    train, held_out = train_eval_split(rows, 0.25)
    assert len({row["problem_id"] for row in held_out}) == 3
    assert len(held_out) == 6
    assert sorted(row["n"] for row in [*train, *held_out]) == list(range(20))
    again = train_eval_split(rows[::-1], 0.25)
    assert again == (train[::-1], held_out[::-1])
    assert len({str(train_eval_split(rows, 0.25, seed)) for seed in range(5)}) > 2
    assert train_eval_split(rows, 0.0) == (rows, [])
    assert [len(part) for part in train_eval_split(rows[:2], 0.99)] == [1, 1], "never all of them"
    assert train_eval_split([], 0.5) == ([], [])
    with pytest.raises(ConfigError, match="eval_fraction is 1"):
        train_eval_split(rows, 1.0)
