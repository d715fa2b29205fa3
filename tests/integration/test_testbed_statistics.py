"""What `scgrpo testbed show` measures, against counting by hand and against whole logits."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scgrpo.cli.main import main
from scgrpo.evaluation.conversation import Chat, Sampled
from scgrpo.evaluation.episodes import play
from scgrpo.tasks.environment import actions
from scgrpo.tasks.maze import MazeTask
from scgrpo.tasks.reach import ReachTask
from scgrpo.tiny import tiny_model_path
from scgrpo.tiny.documents import conditioned
from scgrpo.tiny.statistics import _evidence, _rank, _Rollout, _rollouts, statistics
from scgrpo.tiny.testbeds import TESTBEDS, Testbed, get_testbed
from scgrpo.tiny.train import make_model
from scgrpo.tiny.vocabulary import prompt_text


class FewProblems(ReachTask):
    num_eval_rows = 25


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_path())


def test_statistics_of_the_shipped_model(model: Any, tokenizer: Any) -> None:
    task = FewProblems()
    found = statistics(model, tokenizer, task, seed=1)
    groups = _rollouts(model, tokenizer, task, task.rows("eval"), 1)
    flat = [rollout for group in groups for rollout in group]
    scores = [v.score for v in task.verify([r.completion for r in flat], [r.row for r in flat])]
    assert [r.first_error is None for r in flat] == [score == 1 for score in scores]
    assert found.num_problems == 25
    assert found.pass_at_1 == pytest.approx(sum(scores) / 200)
    assert found.pass_at_8 == pytest.approx(sum(max(scores[i : i + 8]) for i in range(0, 200, 8)) / 25)
    assert 0.1 < found.pass_at_1 < 0.4 < found.pass_at_8 <= 1
    assert found.pass_rates.verified > 2 * found.pass_at_1
    assert found.d_p50 <= found.d_p75 <= found.d_p95
    assert (found.d_small_frac > 0.5) == (found.d_p50 < 1e-3)
    assert found.free_frac == 0
    assert 10 < found.distinct_solutions <= 64
    assert 0.3 < found.auc_d < 1
    assert 0.3 < found.auc_entropy < 1
    assert 20 < found.num_errors < 200
    assert found == statistics(model, tokenizer, task, seed=1)


def test_d_and_entropy_are_those_of_the_whole_logits(model: Any, tokenizer: Any) -> None:
    row = ReachTask().row((5, 24))
    ids = [*tokenizer("inc7 12 neg 19")["input_ids"], tokenizer.eos_token_id]
    other = _Rollout(row, [*tokenizer("dbl 10")["input_ids"]], [True] * 2, "dbl 10", 2)
    rollout, shown = _Rollout(row, ids, [True] * len(ids), "inc7 12 neg 19", 4), "inc7 12 dbl 24"
    kl, entropy, mask = _evidence(model, tokenizer, [(other, shown), (rollout, shown)])
    logps = []
    for messages in (row["prompt"], conditioned(row, "verified", shown)):
        prompt = tokenizer(prompt_text(messages))["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        logps.append(logits.double().log_softmax(-1))
    student, teacher = logps
    torch.testing.assert_close(kl[1].double(), (teacher.exp() * (teacher - student)).sum(-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(entropy[1].double(), -(student.exp() * student).sum(-1), atol=1e-5, rtol=1e-4)
    assert mask.tolist() == [[True, True, False, False, False], [True] * 5]


def test_rank() -> None:
    scores = torch.tensor([0.5, 2.0, 0.5, 1.0])
    assert [_rank(scores, place) for place in range(4)] == [0.5 / 3, 1.0, 0.5 / 3, 2 / 3]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from scgrpo.tiny import base_models

    recipe = get_testbed("reach").recipe
    few = replace(recipe, subjects=(replace(recipe.subjects[0], task=FewProblems()),))
    monkeypatch.setitem(TESTBEDS, "few", Testbed("few", "for tests", few))
    monkeypatch.setattr(base_models, "base_model", lambda name, seed, progress: tiny_model_path())
    assert main(["testbed", "list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(TESTBEDS)
    assert main(["testbed", "build", "few", "--seed", "4"]) == 0
    assert capsys.readouterr().out.strip() == str(tiny_model_path())
    assert main(["testbed", "show", "few", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["testbed"], record["seed"], record["num_problems"]) == ("few", 0, 25)
    assert main(["testbed", "show", "few"]) == 0
    table = capsys.readouterr().out
    assert f"{record['pass_at_1']:.3f} / {record['pass_at_8']:.3f}" in table


def test_rollouts_of_conversations_count_what_the_model_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Aimless walks in the maze: positions of first errors, and D where the model wrote alone."""
    recipe = get_testbed("maze").recipe
    tokenizer, task, rng = recipe.vocabulary.tokenizer(), MazeTask(), random.Random(0)
    ids = recipe.vocabulary.ids

    def walks(model: Any, tokenizer: Any, task: Any, rows: Any, prompts: Any, max_tokens: int, **_: Any) -> Any:
        moves = [iter(actions(task.attempt(row, rng))) for row in rows]

        def turn(playing: Any, *_: Any) -> list[Sampled]:
            return [Sampled([ids[next(moves[row])], ids["<eos>"]]) for row in playing]

        return play(task, rows, prompts, Chat(tokenizer, {ids["<eos>"]}), lambda _: turn, max_tokens)[1]

    monkeypatch.setattr("scgrpo.tiny.statistics.converse", walks)
    torch.manual_seed(0)
    model, rows = make_model(recipe).eval(), task.rows("eval", 6)
    rollouts = [rollout for group in _rollouts(model, tokenizer, task, rows, seed=0) for rollout in group]
    wrong = [rollout for rollout in rollouts if rollout.first_error is not None]
    assert 0 < len(wrong) < len(rollouts)
    for rollout in rollouts:
        (number,) = task.first_errors([rollout.completion], [rollout.row])
        assert (number is None) == (rollout.first_error is None)
    for rollout in wrong:
        (number,) = task.first_errors([rollout.completion], [rollout.row])
        assert rollout.own[rollout.first_error]
        assert rollout.own[: rollout.first_error].count(False) == 3 * number
    way = task.solution(rows[0], rng)
    token_kl, _, mask = _evidence(model, tokenizer, [(rollout, way) for rollout in rollouts])
    assert mask.sum() == sum(sum(rollout.own) for rollout in rollouts)
    assert (token_kl[mask] > 0).any()
    assert not token_kl[~mask].any()
