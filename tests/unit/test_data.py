"""Reading rows: every kind of source, and errors that say where."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from scgrpo.errors import DataError, MissingExtraError
from scgrpo.tasks.data import is_chat, load_rows, split_names

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
        ("rows.parquet", "not parquet", r"rows.parquet is not a Parquet file"),
        ("rows.csv", "q,a", r"rows.csv is of a kind that cannot be read"),
    ],
)
def test_malformed_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_rows(tmp_path / name)


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
