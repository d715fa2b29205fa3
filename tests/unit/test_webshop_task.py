"""WebShop as a task: rows, prompts, parsing, verdicts, the player who knows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nltk")
pytest.importorskip("thefuzz")

from scgrpo import get_task
from scgrpo.errors import ConfigError, DataError
from scgrpo.tasks.environment import actions
from scgrpo.tasks.webshop import WebShopTask
from scgrpo.tasks.webshop.catalogue import load_catalogue
from scgrpo.tasks.webshop.player import winning_actions
from scgrpo.tasks.webshop.prompts import page_of, parse_action

FIXTURE = Path(__file__).parents[1] / "fixtures" / "webshop"
MINI = {"catalogue": "mini"}


def answer(action: str) -> str:
    return f"<think>so</think><action>{action}</action>"


@pytest.fixture(scope="module")
def task() -> WebShopTask:
    return WebShopTask(**MINI)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<think>a</think><action>Click[Buy Now]</action>", "click[buy now]"),
        ("<action> search[x]\n</action><action>search[y]</action>", "search[x]"),
        ("<ACTION>search[x]</ACTION>", "search[x]"),
        ("</action><action>search[x]</action>", "search[x]"),
        ("<action>\nsearch[x]\n</action>", "search[x]"),
        ("<action></action>", ""),
        ("<action>search[x]", None),
        ("search[x]", None),
        ("", None),
    ],
)
def test_parsing(text: str, wanted: str | None) -> None:
    assert parse_action(text) == wanted


def test_rows(task: WebShopTask) -> None:
    train, evaluation = task.rows("train"), task.rows("eval")
    assert (len(train), len(evaluation)) == (22, 8)
    assert len({row["problem_id"] for row in [*train, *evaluation]}) == 30
    assert task.rows("train", 3) == train[:3] == WebShopTask(**MINI).rows("train", 3)
    content = train[0]["prompt"][0]["content"]
    assert train[0]["instruction"] in content
    assert content.endswith("Page: 'Search'\nAdmissible actions:\n[\n'search[<your query>]',\n]")
    assert "<think> </think>" in content
    assert "15 actions" in content
    assert (
        "<reasoning> </reasoning>"
        in WebShopTask(**MINI, think_tag="reasoning").rows("eval")[0]["prompt"][0]["content"]
    )


def test_sampled_goals() -> None:
    whole = {row["problem_id"] for row in WebShopTask(**MINI).rows("train")}
    drawn = [
        [row["problem_id"] for row in WebShopTask(**MINI, train_goals=10, goal_seed=s).rows("train")]
        for s in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) < whole
    assert len(set(drawn[0])) == 10
    assert len(WebShopTask(**MINI, eval_goals=3).rows("eval")) == 3
    for option in ("train_goals", "eval_goals"):
        with pytest.raises(ConfigError, match=f"{option} is 31"):
            WebShopTask(**MINI, **{option: 31}).rows("train" if option == "train_goals" else "eval")


def test_goals_that_repeat_evaluation_goals_are_not_trained_on() -> None:
    task = WebShopTask(FIXTURE)
    held_out = {row["instruction"] for row in task.rows("eval")}
    assert not held_out & {row["instruction"] for row in task.rows("train")}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"catalogue": "big"}, "Unknown catalogue"),
        ({"goals": "x"}, "Unknown goals"),
        ({"split": "x"}, "Unknown split"),
        ({"observation": "html"}, "Unknown observation"),
        ({"reward": "x"}, "Unknown reward"),
        ({"nouns": "x"}, "Unknown nouns"),
        ({"max_steps": 2}, "max_steps is 2"),
        ({"train_goals": -1}, "train_goals is -1"),
        ({"shuffle": 1}, "has no option"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(options: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        get_task("webshop", **options)


def test_without_data_it_says_what_to_download_and_still_has_an_example() -> None:
    task = get_task("webshop")
    with pytest.raises(DataError, match="data_dir") as caught:
        task.rows("train")
    assert "setup.sh -d small" in caught.value.remedy
    canned = task.canned()
    right = task.verify(canned.right, [canned.row] * len(canned.right))
    wrong = task.verify(canned.wrong, [canned.row] * len(canned.wrong))
    assert [verdict.score for verdict in right] == [1.0] * 2
    assert [verdict.score for verdict in wrong] == [0.0] * 4
    assert "bought MINI" in right[1].detail
    assert "1 of them invalid" in right[1].detail
    assert "nouns: rules" in right[1].detail


@pytest.mark.parametrize("max_steps", [3, 4, 7, 8])
def test_the_example_keeps_to_the_steps(max_steps: int) -> None:
    task = WebShopTask(max_steps=max_steps, reward="success", observation="text_rich", think_tag="thought")
    canned = task.canned()
    assert len(canned.right) == (2 if max_steps == 8 else 1)
    for wanted, completions in ((1.0, canned.right), (0.0, canned.wrong)):
        assert {v.score for v in task.verify(completions, [canned.row] * len(completions))} == {wanted}


def test_a_file_that_ends_within_a_character_is_named(tmp_path: Path) -> None:
    (tmp_path / "items_ins_v2_1000.json").write_text("{}")
    for name in ("items_shuffle_1000.json", "products_1k_docs.jsonl"):
        (tmp_path / name).write_bytes('[{"asin": "é'.encode()[:-1])
        with pytest.raises(DataError, match=f"{name} is not UTF-8 text, or cut off"):
            load_catalogue("1k", tmp_path)
        (tmp_path / name).unlink()


def test_rows_of_other_options_are_refused(task: WebShopTask) -> None:
    row = task.rows("eval")[0]
    with pytest.raises(DataError, match="catalogue '1k'"):
        task.environment({**row, "catalogue": "1k"})
    with pytest.raises(DataError, match="does not ask for"):
        WebShopTask(**MINI, shuffle_seed=1).environment(row)
    with pytest.raises(DataError, match="does not ask for"):
        task.environment({**row, "goal": 1000})
    with pytest.raises(DataError, match="no column"):
        task.verify([""], [{"goal": 0}])


def test_an_invalid_answer_shows_the_same_page_again(task: WebShopTask) -> None:
    world = task.environment(task.rows("eval")[0])
    page, done = world.step(answer("search[kettle]"))
    assert not done
    assert "'click[mini000001]'," in page
    for text in (answer("click[mini000009x]"), "no action", "<action>buy</action>", "", answer("click[kettle]")):
        assert world.step(text) == (page, False)
    assert (world.num_invalid, world.num_unparsed, world.num_steps) == (5, 2, 6)
    assert world.verdict().detail == "nothing bought; 6 actions, 5 of them invalid"


def test_a_visit_ends_after_its_last_step(task: WebShopTask) -> None:
    world = task.environment(task.rows("eval")[0])
    steps = [world.step("hm").done for _ in range(15)]
    assert steps == [False] * 14 + [True]
    assert world.verdict().score == 0.0
    assert task.max_turns == 15


def test_scores_and_success() -> None:
    row = WebShopTask(**MINI).rows("eval")[0]
    scores = {}
    for kind in ("score", "success"):
        task = WebShopTask(**MINI, reward=kind)
        world = task.environment(row)
        for action in (f"search[{row['instruction']}]", "click[mini000001]", "click[buy now]"):
            done = world.step(answer(action)).done
        assert done
        scores[kind] = world.verdict().score
        assert task.success_threshold == 1.0
    assert "gooseneck" not in row["instruction"]
    assert scores["success"] == 0.0 <= scores["score"] < 1.0


def test_the_player_solves_every_goal_of_the_mini_catalogue(task: WebShopTask) -> None:
    rng = random.Random(0)
    rows = [*task.rows("train"), *task.rows("eval")]
    played = [task.solution(row, rng) for row in rows]
    verdicts = task.verify(played, rows)
    assert [v.score for v in verdicts] == [1.0] * 30
    assert all(" 0 of them invalid" in v.detail for v in verdicts)
    different = {str(task.solution(rows[0], random.Random(seed))) for seed in range(8)}
    assert len(different) > 1


def test_the_player_keeps_to_the_steps() -> None:
    rng = random.Random(0)
    task = WebShopTask(**MINI, max_steps=3)
    rows = [*task.rows("train"), *task.rows("eval")]
    with_options = next(
        row for row in rows if " with " in row["instruction"].split(" dollars")[0] and ":" in row["instruction"]
    )
    with pytest.raises(DataError, match="more than 3 actions"):
        task.solution(with_options, rng)
    without = next(row for row in rows if ":" not in row["instruction"])
    assert len(actions(task.solution(without, rng))) == 3


def test_human_goals_are_played_too() -> None:
    task = WebShopTask(**MINI, goals="human")
    rows = [*task.rows("train"), *task.rows("eval")]
    assert len(rows) == 3
    assert [v.score for v in task.verify([task.solution(row, random.Random(0)) for row in rows], rows)] == [1.0] * 3


def test_rich_observations() -> None:
    task = WebShopTask(**MINI, observation="text_rich")
    row = task.rows("eval")[0]
    world = task.environment(row)
    page = world.step(answer("search[kettle]")).observation
    assert "[button] MINI000001 [button_]" in page
    assert "Instruction" not in page
    world.step(answer("click[mini000001]"))
    page = world.step(answer("click[copper]")).observation
    assert page.startswith("Page: You have clicked copper.")
    assert task.verify([task.solution(row, random.Random(0))], [row])[0].score == 1.0


def step_history(task: WebShopTask, row: dict[str, Any], texts: list[str]) -> tuple[list[tuple[str, str]], str]:
    """What a host collects: observation and answer of each step, and the page to answer next."""
    world, seen, history = task.environment(row), "", []
    for text in texts:
        history.append((seen, text))
        seen = world.step(text).observation
    return history, seen


def test_step_prompts(task: WebShopTask) -> None:
    row = task.rows("eval")[0]
    (first,) = task.step_prompt(row, [], None)
    assert first["role"] == "user"
    assert row["instruction"] in first["content"]
    assert "Page: 'Search'\nAdmissible actions:\n[\n'search[<your query>]',\n]" in first["content"]
    assert "15 of 15 actions left" in first["content"]
    assert "You have taken" not in first["content"]
    assert task.step_prompt(row, [], "") == [first]

    texts = [
        answer("search[kettle]"),
        "I think <action>CLICK[MINI000001]</action>",
        "What a nice long answer without any",
    ]
    history, seen = step_history(task, row, texts)
    (prompt,) = task.step_prompt(row, history[:1], history[1][0])
    assert "[Observation 1: ''Search'', Action 1: 'search[kettle]']" in prompt["content"]
    (prompt,) = task.step_prompt(row, history, seen)
    content = prompt["content"]
    assert "You have taken 3 actions. The last 2 pages" in content
    assert "12 of 15 actions left" in content
    assert f"[Observation 2: '{page_of(history[1][0])}', Action 2: 'click[mini000001]']" in content
    assert "Action 3: 'g answer without any']" in content, "the end of what was no action"
    assert "Observation 1" not in content
    assert "<think>so" not in content
    assert content.count("Admissible actions:") == 1, "only those of the page to answer"
    assert seen in content


def test_step_prompts_with_more_or_less_history(task: WebShopTask) -> None:
    row = task.rows("eval")[0]
    history, seen = step_history(
        task, row, [answer("search[kettle]"), answer("click[next >]"), answer("click[< prev]")]
    )
    none = WebShopTask(**MINI, history_length=0).step_prompt(row, history, seen)[0]["content"]
    assert "Observation" not in none
    assert "12 of 15" in none
    everything = WebShopTask(**MINI, history_length=9).step_prompt(row, history, seen)[0]["content"]
    assert "The last 3 pages" in everything
    assert "Observation 1" in everything
    short = WebShopTask(**MINI, max_prompt_chars=len(none) + 10).step_prompt(row, history, seen)[0]["content"]
    assert short == none, "what would be too long is left out"


def test_a_page_that_is_no_page_stands_for_itself() -> None:
    assert page_of("something else") == "something else"


def test_titles_with_brackets_can_be_searched_for() -> None:
    from scgrpo.tasks.webshop.catalogue import Product
    from scgrpo.tasks.webshop.goals import Goal
    from scgrpo.tasks.webshop.shop import Shop, Visit

    product = Product("BRAC000001", "Box [Set of 2]\nnew", "", ("",), (1.0,), "$1.0", {}, (), "x", "boxes", "A")
    shop, goal = Shop([product], {product.asin: 1.0}, str.split), Goal(product, "a [box]", (), (), 2.0)
    way = Visit(shop, goal)
    found = winning_actions(shop, goal, 15, random.Random(0))
    assert found is not None
    for action in found:
        way.act(action)
    assert way.reward is not None
    assert way.num_ignored == 0
