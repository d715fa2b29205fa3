"""LiveCodeBench (Jain et al. 2024, arXiv 2403.07974): contest problems with dates, graded as its own runner does."""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scgrpo.errors import ConfigError, DataError, MissingDataError, MissingExtraError
from scgrpo.tasks.base import Split
from scgrpo.tasks.code import prompts
from scgrpo.tasks.code.decode import decode_tests
from scgrpo.tasks.code.extract import LCB_PRELUDE
from scgrpo.tasks.code.suite import Case, Suite, call_cases, named, stdin_cases
from scgrpo.tasks.code.task import Problem
from scgrpo.tasks.data import in_window

logger = logging.getLogger(__name__)

DATASET = "livecodebench/code_generation_lite"
# What each version added; release_vN is everything up to it.
FILES = ("test.jsonl", "test2.jsonl", "test3.jsonl", "test4.jsonl", "test5.jsonl", "test6.jsonl")
_RELEASE = re.compile(r"(release_)?v([1-6])")
_NEEDED = ("question_id", "question_content", "contest_date", "public_test_cases", "private_test_cases")

# Known-broken items: ERRATA.md of github.com/LiveCodeBench/LiveCodeBench at 28fef95. AtCoder's are named by id,
# LeetCode's by title.
# fmt: off
ERRATA = frozenset({
    # Several answers are right, the tests accept one.
    "abc311_c", "abc326_d", "abc327_b", "abc333_e", "abc343_a", "abc343_e", "abc362_c", "arc185_c",
    "find-words-containing-character", "find-the-peaks", "generate-binary-strings-without-adjacent-zeros",
    # Interactive.
    "abc337_e", "abc355_e",
    # Wrong tests.
    "abc350_c", "arc189_a", "apply-operations-to-make-string-empty", "most-frequent-ids",
})
# fmt: on


class _Window(NamedTuple):
    release: str
    start_date: str | None
    end_date: str | None


class LiveCodeBenchSource:
    """LiveCodeBench, from the files of its lite version.

    Training and evaluation problems are the same ones unless a `train_` option says otherwise: train on one half of
    their tests (`tests="A"`) and evaluate with the other, as the paper does, or train on earlier ones.

    Args:
        dataset_name: hub id, a folder with its files (`test.jsonl` ... `test6.jsonl`), or one `.jsonl` file.
        dataset_revision: commit or branch on the hub.
        release: "release_v1" ... "release_v6" (all problems up to it) or "v1" ... "v6" (what it added). Not looked at
            for a single file.
        start_date, end_date: of the contest, ISO, both included.
        exclude: "errata" leaves out what LiveCodeBench knows to be broken (`ERRATA`); or ids and titles of your own;
            empty for none.
        train_release, train_start_date, train_end_date: the same for training problems.

    Raises:
        ConfigError: no such release.
    """

    def __init__(
        self,
        *,
        dataset_name: str = DATASET,
        dataset_revision: str | None = None,
        release: str = "v6",
        start_date: str | None = None,
        end_date: str | None = None,
        exclude: str | Sequence[str] = "errata",
        train_release: str | None = None,
        train_start_date: str | None = None,
        train_end_date: str | None = None,
    ) -> None:
        self._name, self._revision = dataset_name, dataset_revision
        own = _Window(release, start_date, end_date)
        train = _Window(train_release or release, train_start_date, train_end_date)
        self._windows: dict[Split, _Window] = {
            "eval": own,
            "train": train if train_release or train_start_date or train_end_date else own,
        }
        for window in self._windows.values():
            release_files(window.release)
        self._exclude = frozenset(
            ERRATA if exclude == "errata" else [exclude] if isinstance(exclude, str) else exclude
        )
        self._read = functools.cache(self._read_window)

    def problems(self, split: Split) -> Sequence[Problem]:
        return self._read(self._windows[split])

    def _read_window(self, window: _Window) -> list[Problem]:
        items: dict[str, _Item] = {}
        for item in self._items(window.release):
            items.setdefault(item["question_id"], item)
        kept = [item for item in items.values() if not self._exclude & {item["question_id"], item["title"]}]
        if len(kept) < len(items):
            logger.info("%s: %d known-broken or unwanted problems left out.", self._name, len(items) - len(kept))
        inside = in_window(kept, "contest_date", window.start_date, window.end_date)
        if not inside:
            raise DataError(
                f"{self._name}, {window.release}: no problems.", "Choose another release, or exclude less."
            )
        return [_problem(item) for item in inside]

    def _items(self, release: str) -> Iterator[_Item]:
        path = Path(self._name)
        if path.is_file():
            yield from _scan(path)
            return
        for file in release_files(release):
            yield from _scan(path / file if path.is_dir() else self._download(file))

    def _download(self, file: str) -> Path:
        try:
            from huggingface_hub import hf_hub_download
        except ImportError as error:
            raise MissingExtraError(
                f"Loading {self._name!r} needs huggingface_hub.", 'Install it: pip install "scgrpo[trl]".'
            ) from error
        try:
            return Path(hf_hub_download(self._name, file, repo_type="dataset", revision=self._revision))
        except (OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise MissingDataError(
                f"The file {file} of {self._name!r} cannot be loaded from the hub: {reason}",
                "Check the id and the network, or give a folder that holds the file as dataset_name.",
            ) from error

    def example(self) -> tuple[Problem, tuple[str, ...], tuple[str, ...]]:
        tests = [{"input": "2 3\n", "output": "5\n"}, {"input": "-1 1\n", "output": "0\n"}]
        suite = Suite(stdin_cases(tests, "example"), preamble=LCB_PRELUDE)
        question = "Read two integers from one line and print their sum.\n\nSample Input\n2 3\n\nSample Output\n5"
        problem = Problem("example-sum", prompts.livecodebench(question), lambda: suite)
        right = "if __name__ == '__main__':\n    print(sum(map(int, input().split())))"
        wrong = (
            "print(5)",
            "import os\nprint(5)\nos._exit(0)",
            "print(sum(map(int, input().split())))\nprint()\n1 / 0",
        )
        return problem, (prompts.fenced(right),), (*map(prompts.fenced, wrong), "It is 5.")


def release_files(release: str) -> tuple[str, ...]:
    """The files of a release: all up to it for "release_vN", one for "vN".

    Raises:
        ConfigError: there is no such release.
    """
    found = _RELEASE.fullmatch(release)
    if found is None:
        raise ConfigError(
            f"LiveCodeBench has no release {release!r}.", "Choose release_v1 ... release_v6, or v1 ... v6."
        )
    last = int(found[2])
    return FILES[:last] if found[1] else FILES[last - 1 : last]


# What is kept of a row in memory. The tests of all releases are many gigabytes: they stay in the file.
_Item = dict[str, Any]


def _scan(path: Path) -> Iterator[_Item]:
    if not path.is_file():
        raise MissingDataError(f"There is no file {path}.", f"LiveCodeBench's files are called {', '.join(FILES)}.")
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                row = _row(line, f"{path}, line {number}")
                yield {
                    "question_id": str(row["question_id"]),
                    "title": re.sub(r"[^a-z0-9]+", "-", str(row.get("question_title", "")).lower()).strip("-"),
                    "contest_date": row["contest_date"],
                    "content": row["question_content"],
                    "starter_code": row.get("starter_code") or "",
                    "path": path,
                    "offset": offset,
                }
            offset += len(line)


def _row(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}).", "Download the file again.") from error
    missing = [name for name in _NEEDED if not isinstance(row, Mapping) or row.get(name) is None]
    if missing:
        raise DataError(f"{where}: no column {', '.join(missing)}.", "This is not a file of LiveCodeBench.")
    return row


def _problem(item: _Item) -> Problem:
    load = functools.partial(_load_suite, item["path"], item["offset"], item["question_id"])
    load()  # tests that cannot be read are found now, not in the middle of a training
    return Problem(item["question_id"], prompts.livecodebench(item["content"], item["starter_code"]), load)


def _load_suite(path: Path, offset: int, question_id: str) -> Suite:
    where = f"{path}, problem {question_id!r}"
    with path.open("rb") as file:
        file.seek(offset)
        return named(where, suite_of, _row(file.readline(), where), where)


def suite_of(row: Mapping[str, Any], where: str) -> Suite:
    """The tests of a row of LiveCodeBench, public and private.

    Raises:
        DataError: they cannot be decoded, there are none, or they are of two kinds; names the item.
    """
    tests: list[Any] = []
    for column in ("public_test_cases", "private_test_cases"):
        decoded = row[column] if isinstance(row[column], list) else decode_tests(row[column], where)
        if not isinstance(decoded, list):
            raise DataError(f"{where}: {column} is a {type(decoded).__name__}.", "It must be a list of tests.")
        tests += decoded
    kinds = {test.get("testtype", "stdin") if isinstance(test, Mapping) else "?" for test in tests}
    cases: tuple[Case, ...]
    if kinds == {"functional"}:
        cases, function = call_cases(tests, where), _function(row, where)
    elif kinds <= {"stdin"}:
        cases, function = stdin_cases(tests, where), ""
    else:
        raise DataError(f"{where}: its tests are of the kinds {sorted(kinds)}.", "Leave it out with exclude=[...].")
    return Suite(cases, entry_point=function, preamble=LCB_PRELUDE)


def _function(row: Mapping[str, Any], where: str) -> str:
    metadata = row.get("metadata") or "{}"
    try:
        name = (json.loads(metadata) if isinstance(metadata, str) else metadata)["func_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: its metadata names no func_name.", "Leave it out with exclude=[...].") from error
    return str(name)
