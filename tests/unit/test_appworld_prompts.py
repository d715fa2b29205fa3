"""AppWorld's prompts, actions and settings. Nothing is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from appworld_stub import DEV, PERSON, TRAIN, make_root

from scgrpo.errors import ConfigError, DataError, VerifierError
from scgrpo.tasks import get_task
from scgrpo.tasks.appworld import AppWorldTask
from scgrpo.tasks.appworld.environment import verdict_of
from scgrpo.tasks.appworld.prompts import MAX_HISTORY_CHARS, action_of, code_of, cut, first_prompt, step_prompt

PROMPT = first_prompt({"instruction": "Count my notes.", "supervisor": PERSON})


@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("<think>first</think><code>print(1)</code>", "print(1)"),
        ("<think>first</think>\n<code>\nprint(1)\nprint(2)\n</code>", "print(1)\nprint(2)"),
        ("<code>print(1)</code>", "print(1)"),
        ("<think>not <code>print(0)</code></think><code>print(1)</code>", "print(1)"),
        ("<think></think><code>print(1)</code> and then <code>print(2)</code>", "print(1)"),
        ("<code>```python\nprint(1)\n```</code>", "print(1)"),
        ("<code>print('''```''')</code>", "print('''```''')"),
        ("<code>x = '<think>'</code>", "x = '<think>'"),
        ("<code>  </code>", None),
        ("<code>print(1)", None),
        ("```python\nprint(1)\n```", None),
        ("", None),
    ],
)
def test_code_is_what_stands_in_the_first_block_after_the_thoughts(action: str, code: str | None) -> None:
    assert code_of(action) == code


def test_the_prompt_says_who_asks_for_what() -> None:
    system, user = PROMPT
    assert (system["role"], user["role"]) == ("system", "user")
    assert "apis.api_docs.show_api_doc" in system["content"]
    assert "complete_task" in system["content"]
    for word in (*PERSON.values(), "Count my notes."):
        assert word in user["content"]


def test_observations_are_cut() -> None:
    assert cut("short", 5) == "short"
    assert cut("x" * 25, 10) == "x" * 10 + "\n[15 more characters were cut off]"


def test_a_prompt_per_step_tells_what_was_done() -> None:
    history = [("", action_of("print(1)", "secret thought")), ("1", "no code here")]
    system, user = step_prompt(PROMPT, history, "No code was run.")
    assert system == PROMPT[0]
    assert user["content"].startswith(PROMPT[1]["content"])
    told = "Code 1:\nprint(1)\nResult 1:\n1\n\nCode 2:\n(none)\nResult 2:\nNo code was run.\n\nNow take step 3."
    assert user["content"].endswith(told)
    assert "secret" not in user["content"]
    assert step_prompt(PROMPT, [], "") == PROMPT


def test_a_long_history_keeps_its_end() -> None:
    history = [("", action_of("print(0)"))] + [("x" * 5000, action_of(f"print({step})")) for step in range(1, 5)]
    text = step_prompt(PROMPT, history, "the last result")[1]["content"]
    assert len(text) < len(PROMPT[1]["content"]) + MAX_HISTORY_CHARS + 200
    assert "[earlier steps were cut off]" in text
    assert "the last result" in text
    assert "print(0)" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_servers": 0}, "num_servers=0"),
        ({"max_turns": 0}, "max_turns=0"),
        ({"reward": "partial"}, "success or score"),
        ({"prompting": "both"}, "concat or per_step"),
        ({"code_timeout_s": 0}, "Limits must be above 0"),
        ({"train_set": "dev"}, "both 'dev'"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AppWorldTask(**options)


def test_rows_are_those_of_the_sets(tmp_path: Path) -> None:
    task = get_task("appworld", root=str(make_root(tmp_path)))
    assert [row["problem_id"] for row in task.rows("train")] == list(TRAIN)
    assert [row["task_id"] for row in task.rows("eval")] == list(DEV)
    assert len(task.rows("train", 2)) == 2
    assert task.rows("eval")[0]["prompt"][1]["content"].endswith("Their request: What is b_1?")
    swapped = get_task("appworld", root=str(tmp_path), train_set="dev", eval_set="train")
    assert [row["task_id"] for row in swapped.rows("train")] == list(DEV)


def test_malformed_data_are_named(tmp_path: Path) -> None:
    task = AppWorldTask(root=str(make_root(tmp_path)), eval_set="test_normal")
    with pytest.raises(DataError, match=r"no set 'test_normal'. Known: dev, train"):
        task.rows("eval")
    with pytest.raises(DataError, match="comes with a solution"):
        task.canned()
    (tmp_path / "data" / "tasks" / "a_2" / "specs.json").write_text('{"instruction": "x"}')
    with pytest.raises(DataError, match=r"'a_2' is not as AppWorld writes it: KeyError\('supervisor'\)"):
        task.rows("train")
    (tmp_path / "data" / "datasets" / "train.txt").write_text("a_1\na_1\n")
    with pytest.raises(DataError, match="names a task twice"):
        task.rows("train")


def test_verdicts_count_tests() -> None:
    failed = {"requirement": "It rains.", "trace": "", "label": "no_op_fail"}
    report = {"success": False, "num_tests": 4, "passes": [{}, {}, {}], "failures": [failed]}
    assert verdict_of(report, "success").score == 0.0
    assert verdict_of(report, "score").score == 0.75
    assert verdict_of(report, "score").detail == "3 of 4 tests pass; failed: It rains."
    with pytest.raises(VerifierError, match="no tests"):
        verdict_of({"success": True, "num_tests": 0}, "success")
