"""Where code tasks take their problems from: formats, windows, splits and bad input. Nothing is run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from code_cases import FIXTURES, ids, make, suite

from scgrpo.errors import ConfigError, DataError
from scgrpo.tasks.code import AssertCase, CallCase, StdinCase
from scgrpo.tasks.code.livecodebench import ERRATA, release_files

LCB = FIXTURES / "livecodebench"


def changed(source: Path, target: Path, **columns: Any) -> str:
    """The first row of a fixture with other columns, as a file."""
    row = json.loads(source.read_text().splitlines()[0]) | columns
    target.write_text(json.dumps({key: value for key, value in row.items() if value is not ...}))
    return str(target)


def test_releases_of_livecodebench() -> None:
    assert release_files("v1") == ("test.jsonl",)
    assert release_files("release_v1") == ("test.jsonl",)
    assert release_files("v6") == ("test6.jsonl",)
    assert release_files("release_v3") == ("test.jsonl", "test2.jsonl", "test3.jsonl")
    for unknown in ("v7", "release_v0", "6", "release_latest"):
        with pytest.raises(ConfigError, match=r"no release.*release_v1"):
            make("livecodebench", release=unknown)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, ["own006_b", "9001", "own006_d"]),
        ({"release": "v1"}, ["own001_a"]),
        ({"exclude": []}, ["own006_b", "9001", "own006_d", "9002"]),
        ({"exclude": ["9001"]}, ["own006_b", "own006_d", "9002"]),
        ({"exclude": "count-up"}, ["own006_b", "own006_d", "9002"]),
        ({"start_date": "2025-02-01"}, ["9001", "own006_d"]),
        ({"start_date": "2025-02-01", "end_date": "2025-05-01"}, ["9001", "own006_d"]),
        ({"start_date": "2025-02-02", "end_date": "2025-04-30", "exclude": []}, ["9002"]),
        ({"end_date": "2025-01-04"}, ["own006_b"]),  # the whole day
    ],
)
def test_which_problems_of_livecodebench(options: dict[str, Any], wanted: list[str]) -> None:
    assert ids(make("livecodebench", dataset_name=str(LCB), **options)) == wanted


def test_known_broken_items_of_livecodebench() -> None:
    assert len(ERRATA) == 17


def test_the_tests_of_livecodebench() -> None:
    task = make("livecodebench", dataset_name=str(LCB))
    stdin, calls = suite(task, "own006_b"), suite(task, "9001")
    assert stdin.cases == (StdinCase("3\n", "1.5\n"), StdinCase("8\n", "4\n"), StdinCase("-1\n", "-0.5\n"))
    assert calls.entry_point == "countUp"
    assert calls.cases[:2] == (CallCase((3,), [[1, 2, 3], 6]), CallCase((1,), [[1], 1]))
    assert stdin.time_limit_s == calls.time_limit_s == 6.0
    limited = make("livecodebench", dataset_name=str(LCB), time_limit_s=1.5, memory_mb=100)
    assert (suite(limited, "9001").time_limit_s, suite(limited, "9001").memory_mb) == (1.5, 100)


def test_half_of_the_tests_to_train_on_and_the_other_to_evaluate_with() -> None:
    task = make("livecodebench", dataset_name=str(LCB), tests="A")
    train, evaluation = task.rows("train"), task.rows("eval")
    assert (
        [r["problem_id"] for r in train] == [r["problem_id"] for r in evaluation] == ["own006_b", "9001", "own006_d"]
    )
    assert {r["tests"] for r in train} == {"A"}
    assert {r["tests"] for r in evaluation} == {"B"}
    a, b = suite(task, "9001", "A").cases, suite(task, "9001", "B").cases
    assert (len(a), len(b)) == (3, 2)
    assert not any(case in a for case in b)
    assert suite(task, "own006_d", "A") == suite(task, "own006_d", "B")  # has a single test
    other = make(
        "livecodebench", dataset_name=str(LCB), tests="B", eval_tests="all", release="v6", train_release="v1"
    )
    assert {r["tests"] for r in other.rows("train")} == {"B"}
    assert {r["tests"] for r in other.rows("eval")} == {"all"}


def test_problems_are_not_trained_on_and_evaluated_with_the_same_tests(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"All 3 training problems.*tests=\"A\""):
        make("livecodebench", dataset_name=str(LCB)).rows("train")
    with pytest.raises(ConfigError, match="training problems"):
        make("livecodebench", dataset_name=str(LCB), tests="A", eval_tests="A").rows("train")
    earlier = make("livecodebench", dataset_name=str(LCB), start_date="2025-02-01", train_end_date="2025-03-01")
    with caplog.at_level(logging.WARNING):
        assert ids(earlier, "train") == ["own006_b"]
    assert "1 training problems are evaluation problems" in caplog.text


def test_the_prompt_of_livecodebench() -> None:
    rows = make("livecodebench", dataset_name=str(LCB)).rows("eval", 2)
    assert [message["role"] for message in rows[0]["prompt"]] == ["system", "user"]
    stdin, starter = (row["prompt"][1]["content"] for row in rows)
    assert stdin.startswith(
        "### Question:\nRead a number and print half of it.\n\n### Format: Read the inputs from stdin"
    )
    assert "```python\n# YOUR CODE HERE\n```\n\n### Answer:" in stdin
    assert "```python\nclass Solution:\n    def countUp(self, n: int) -> List[Any]:\n        \n```" in starter


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"private_test_cases": "eJxLzs8"}, r"'own001_a'.*neither JSON nor compressed"),
        ({"public_test_cases": '[{"input": "1", "output": 2, "testtype": "stdin"}]'}, "'own001_a', test 0"),
        ({"public_test_cases": "[]", "private_test_cases": "[]"}, "'own001_a'.*no tests"),
        ({"public_test_cases": '[{"input": "1", "output": "2", "testtype": "functional"}]'}, "'own001_a'.*kinds"),
        ({"public_test_cases": '{"a": 1}'}, "'own001_a'.*public_test_cases is a dict"),
        ({"public_test_cases": ...}, "line 1: no column public_test_cases"),
        ({"contest_date": "soon"}, "'own001_a'.*'soon'"),
    ],
)
def test_rows_of_livecodebench_that_cannot_be_used_are_named(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    name = changed(LCB / "test.jsonl", tmp_path / "bad.jsonl", **columns)
    with pytest.raises(DataError, match=message):
        make("livecodebench", dataset_name=name, start_date="2020-01-01").rows("eval")


def test_functional_tests_of_livecodebench_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    row = json.loads((LCB / "test6.jsonl").read_text().splitlines()[1])
    for columns, message in (
        ({"metadata": "{}"}, "'9001'.*no func_name"),
        (
            {"public_test_cases": '[{"input": "1\\n]", "output": "2", "testtype": "functional"}]'},
            "'9001', test 0: not JSON",
        ),
    ):
        (tmp_path / "bad.jsonl").write_text(json.dumps(row | columns))
        with pytest.raises(DataError, match=message):
            make("livecodebench", dataset_name=str(tmp_path / "bad.jsonl")).rows("eval")


def test_livecodebench_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*test6.jsonl"):
        make("livecodebench", dataset_name=str(tmp_path)).rows("eval")
    with pytest.raises(DataError, match=r"cannot be loaded from the hub"):
        make("livecodebench").rows("eval")
    with pytest.raises(DataError, match="No row has its contest_date"):
        make("livecodebench", dataset_name=str(LCB), start_date="2030-01-01").rows("eval")
    (tmp_path / "test6.jsonl").write_text("{")
    with pytest.raises(DataError, match="line 1: not JSON"):
        make("livecodebench", dataset_name=str(tmp_path)).rows("eval")


def test_which_problems_of_codeforces(caplog: pytest.LogCaptureFixture) -> None:
    name = str(FIXTURES / "codeforces.jsonl")
    with caplog.at_level(logging.INFO):
        assert ids(make("codeforces", dataset_name=name)) == ["9001/A", "9001/B", "9001/C"]
    assert "2 of 5 problems cannot be graded" in caplog.text
    assert ids(make("codeforces", dataset_name=name, max_rating=1000)) == ["9001/A"]
    assert ids(make("codeforces", dataset_name=name, min_rating=1000)) == ["9001/B"]
    assert ids(make("codeforces", dataset_name=name, start_date="2025-01-01")) == ["9001/B"]
    assert ids(make("codeforces", dataset_name=name, exclude=["9001/A"])) == ["9001/B", "9001/C"]
    with pytest.raises(DataError, match="none of 5 problems"):
        make("codeforces", dataset_name=name, min_rating=3000).rows("eval")


def test_the_tests_of_codeforces() -> None:
    task = make("codeforces", dataset_name=str(FIXTURES / "codeforces.jsonl"), time_factor=2.5)
    plain, checked, files = (suite(task, f"9001/{letter}") for letter in "ABC")
    assert (plain.comparison, plain.checker, plain.files) == ("tokens", "", False)
    assert (plain.time_limit_s, plain.memory_mb) == (5.0, 256 + 256)
    assert "sys.argv[3]" in checked.checker
    assert files.files
    prompts = [row["prompt"][0]["content"] for row in task.rows("eval")]
    assert "## Input\nOne integer n." in prompts[0]
    assert "Time limit: 2.0 s. Memory limit: 256.0 MB." in prompts[0]
    assert "Input:\n```\n2\n```" in prompts[0]
    assert "standard input" in prompts[0]
    assert "input.txt" in prompts[2]


def test_generated_tests_of_codeforces_are_added(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    tests = [("9001/E", "ab\n", "2\n"), ("9001/A", "4\n", "YES\n"), ("9001/E", "\n", "0\n")]
    columns = {name: [test[i] for test in tests] for i, name in enumerate(("problem_id", "input", "output"))}
    parquet.write_table(pyarrow.table(columns), tmp_path / "test_cases_9001.parquet")
    name = str(FIXTURES / "codeforces.jsonl")
    task = make("codeforces", dataset_name=name, generated_tests=str(tmp_path))
    assert ids(task) == ["9001/A", "9001/B", "9001/C", "9001/E"]
    assert [case.input for case in suite(task, "9001/E").cases if isinstance(case, StdinCase)] == [
        "abc\n",
        "ab\n",
        "\n",
    ]
    assert len(suite(task, "9001/A").cases) == 3


def test_rows_that_are_not_open_r1s_are_named(tmp_path: Path) -> None:
    name = changed(FIXTURES / "codeforces.jsonl", tmp_path / "bad.jsonl", official_tests=...)
    with pytest.raises(DataError, match=r"line 1: no column official_tests"):
        make("codeforces", dataset_name=name).rows("eval")


@pytest.mark.parametrize(
    "columns",
    [
        {"official_tests": 5},
        {"time_limit": "two"},
        {"time_limit": -1},
        {"memory_limit": [256]},
        {"contest_start": "2024"},
        {"examples": "1 2"},
    ],
)
def test_rows_of_codeforces_that_cannot_be_used_are_named(tmp_path: Path, columns: dict[str, Any]) -> None:
    name = changed(FIXTURES / "codeforces.jsonl", tmp_path / "bad.jsonl", **columns)
    with pytest.raises(DataError, match="problem '9001/A': "):
        make("codeforces", dataset_name=name).rows("eval")


def test_rows_of_humaneval_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    name = changed(FIXTURES / "humaneval.jsonl", tmp_path / "bad.jsonl", prompt=5)
    with pytest.raises(DataError, match=r"bad.jsonl, Own/0: a column does not hold what it should"):
        make("humaneval", dataset_name=name).rows("eval")


def test_humaneval() -> None:
    task = make("humaneval", dataset_name=str(FIXTURES / "humaneval.jsonl"))
    assert ids(task) == ["Own/0", "Own/1", "Own/2"]
    assert "```python\nfrom typing import List" in task.rows("eval")[0]["prompt"][0]["content"]
    with pytest.raises(ConfigError, match="no training problems"):
        task.rows("train")
    whole = task._problem("Own/1").complete("    return text[::-1]")
    assert whole.startswith("def encode")
    assert whole.endswith("return text[::-1]")
    assert task._problem("Own/1").complete("def decode(text):\n    ...") == "def decode(text):\n    ..."
    case = suite(task, "Own/1").cases[0]
    assert isinstance(case, AssertCase)
    assert case.source.startswith("def encode")  # the tests have helpers of their own
    assert case.source.endswith("check(decode)")


def test_mbpp_is_split_by_task_id() -> None:
    task = make("mbpp", dataset_name=str(FIXTURES / "mbpp.jsonl"))
    assert ids(task, "train") == ["mbpp/601", "mbpp/974"]
    assert ids(task) == ["mbpp/11", "mbpp/12"]
    assert suite(task, "mbpp/12").setup == "import math"
    assert suite(task, "mbpp/11").entry_point == "sum"
    assert suite(task, "mbpp/12").entry_point == "area"
    prompt = task.rows("train")[0]["prompt"][0]["content"]
    assert "assert reverse([1, 2, 3]) == [3, 2, 1]\nassert reverse([]) == []" in prompt
    assert task.solution(task.rows("train")[0]) == "```python\ndef reverse(items):\n    return items[::-1]\n```"
    hidden = make("mbpp", dataset_name=str(FIXTURES / "mbpp.jsonl"), shown_tests=1, exclude=[974], eval_ids=[1, 10])
    assert ids(hidden, "train") == ["mbpp/601"]
    assert ids(hidden) == ["mbpp/2"]
    assert "reverse([])" not in hidden.rows("train")[0]["prompt"][0]["content"]
    assert len(suite(hidden, "mbpp/601").cases) == 2


def test_mbpp_plus_has_other_tests_than_it_shows(tmp_path: Path) -> None:
    name = changed(
        FIXTURES / "mbpp.jsonl",
        tmp_path / "plus.jsonl",
        text=...,
        prompt="Write a function to double a number.",
        test_setup_code=...,
        test_imports=["import math"],
        test="import numpy as np\nfor n in range(9):\n    assert np.allclose(double(n), 2 * n)",
    )
    task = make("mbppplus", dataset_name=name)
    case = suite(task, "mbpp/2").cases[0]
    assert isinstance(case, AssertCase)
    assert "range(9)" in case.source
    assert "import numpy" not in case.source
    assert suite(task, "mbpp/2").setup.strip() == "import math"
    assert "assert double(2) == 4" in task.rows("eval")[0]["prompt"][0]["content"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"test_list": []}, "line 1: there are no tests"),
        ({"test_list": ["assert ("]}, "line 1, test 0: not Python"),
        ({"task_id": "none"}, "task_id 'none' has no number"),
        ({"text": ...}, "line 1: no column for the prompt"),
        ({"text": 5}, "bad.jsonl, 2: a column does not hold what it should"),
        ({"test_setup_code": "x = ("}, "line 1, set-up: not Python"),
    ],
)
def test_rows_of_mbpp_that_cannot_be_used_are_named(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    name = changed(FIXTURES / "mbpp.jsonl", tmp_path / "bad.jsonl", **columns)
    with pytest.raises(DataError, match=message):
        make("mbpp", dataset_name=name).rows("eval")


def test_mbpp_without_problems_of_a_split(tmp_path: Path) -> None:
    name = changed(FIXTURES / "mbpp.jsonl", tmp_path / "two.jsonl")
    with pytest.raises(DataError, match="no problems with a task_id from 601 to 974"):
        make("mbpp", dataset_name=name).rows("train")
    with pytest.raises(ConfigError, match=r"eval_ids=\[9, 3\] is no range"):
        make("mbpp", dataset_name=name, eval_ids=[9, 3])


@pytest.mark.parametrize(
    "options",
    [
        {"tests": "C"},
        {"eval_tests": "half"},
        {"reward": "most"},
        {"total_time_s": 0},
        {"num_workers": 0},
        {"time_limit_s": -1.0},
        {"memory_mb": 0},
    ],
)
def test_settings_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options)).removesuffix("_s").removesuffix("_mb")):
        make("code", **options)


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no option 'relese'.*release.*reward"):
        make("livecodebench", relese="v6")
    with pytest.raises(ConfigError, match="no split 'test'"):
        make("code").rows("test")  # type: ignore[arg-type]
