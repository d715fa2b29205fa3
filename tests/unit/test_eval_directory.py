"""Evaluations that are interrupted and go on: the same numbers, nothing lost, nothing mixed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from eval_cases import Letters, interrupted_after, numbers

from scgrpo.errors import RunError, ScgrpoError, VerifierError
from scgrpo.evaluation import EvalDirectory, evaluate
from scgrpo.evaluation.samplers import Sampling
from scgrpo.evaluation.sampling import batches
from scgrpo.runs import files
from scgrpo.tasks import Task, Verdict
from scgrpo.tasks.maze import MazeTask


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Any]) -> Any:
    return make_model(seed=3)


def run(model: Any, tokenizer: Any, out: EvalDirectory | None = None, task: Task | None = None, **more: Any) -> Any:
    settings = {"k": 4, "max_new_tokens": 6, "batch_size": 7, "temperature": 1.0} | more
    return evaluate(model, tokenizer, task or Letters(), out=out, **settings)


def lines(path: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (path / "completions.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if not k.endswith("_s")} for record in records]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 1000])
def test_an_interrupted_evaluation_ends_with_the_numbers_of_an_uninterrupted_one(
    model: Any, tokenizer: Any, tmp_path: Path, batch_size: int
) -> None:
    whole = run(model, tokenizer, EvalDirectory(tmp_path / "whole"), batch_size=batch_size)
    assert numbers(run(model, tokenizer, batch_size=batch_size)) == numbers(whole), "a folder changes nothing"
    path = tmp_path / "parts"
    for stop in (5, 13, 21):
        with pytest.raises(KeyboardInterrupt):
            run(model, tokenizer, EvalDirectory(path), batch_size=batch_size, progress=interrupted_after(stop))
        assert not (path / "result.json").exists()
    task = Letters()
    before = len(lines(path))
    result = run(model, tokenizer, EvalDirectory(path), task, batch_size=batch_size)
    assert task.num_graded == 32 - before, "what is there is not sampled again"
    assert numbers(result) == numbers(whole)
    assert sorted(lines(path), key=str) == sorted(lines(tmp_path / "whole"), key=str), "bit for bit"
    again = Letters()
    assert numbers(run(model, tokenizer, EvalDirectory(path), again, batch_size=batch_size)) == numbers(whole)
    assert again.num_graded == 0


def test_a_crash_in_the_middle_of_a_batch_costs_what_was_not_written(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    whole = run(model, tokenizer, EvalDirectory(tmp_path))
    kept = (tmp_path / "completions.jsonl").read_bytes()
    first = kept.split(b"\n", 10)
    (tmp_path / "completions.jsonl").write_bytes(b"\n".join(first[:9]) + b"\n" + first[9][:40])  # 9 of batches of 4
    (tmp_path / "result.json").unlink()
    task = Letters()
    assert numbers(run(model, tokenizer, EvalDirectory(tmp_path), task)) == numbers(whole)
    assert task.num_graded == 24, "the third batch is graded again as a whole"
    assert len(lines(tmp_path)) == 32
    assert {(line["row"], line["sample"]) for line in lines(tmp_path)} == {(r, s) for r in range(8) for s in range(4)}


def test_conversations_go_on_too(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from scgrpo.tiny.testbeds import get_testbed

    vocabulary = get_testbed("maze").recipe.vocabulary
    tokenizer = vocabulary.tokenizer()
    import torch
    from transformers import Qwen3Config

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=8, initializer_range=0.5, **shape)
    model = AutoModelForCausalLM.from_config(config)
    settings = {"rows": MazeTask().rows("eval", 5), "k": 2, "batch_size": 4, "max_new_tokens": 40, "temperature": 1.0}
    whole = evaluate(model, tokenizer, MazeTask(), **settings)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tokenizer, MazeTask(), out=EvalDirectory(tmp_path), progress=interrupted_after(4), **settings)
    assert numbers(evaluate(model, tokenizer, MazeTask(), out=EvalDirectory(tmp_path), **settings)) == numbers(whole)
    assert {line["completion"][0]["role"] for line in lines(tmp_path)} == {"assistant"}


def test_batches_hold_every_completion_once_and_their_seeds_differ() -> None:
    for batch_size in (1, 3, 8, 20, 500):
        sampling = Sampling(8, 1.0, 1.0, 0, 5, batch_size, 0)
        made = batches([5, 3, 9, 3, 1], sampling)
        keys = [key for batch in made for key in batch.completions()]
        assert sorted(keys) == [(row, sample) for row in range(5) for sample in range(8)]
        assert all(len(batch.completions()) <= batch_size for batch in made)
        assert len({batch.seed(0) for batch in made} | {batch.seed(1) for batch in made}) == 2 * len(made)


def test_every_line_says_what_was_written_and_how_it_was_judged(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    result = run(model, tokenizer, EvalDirectory(tmp_path, {"model": "random", "split": "eval"}))
    for line in lines(tmp_path):
        assert line["status"] == ("error" if line["completion"][:1].isdigit() else "graded")
        assert (line["score"] is None) == (line["status"] == "error")
        assert line["detail"] == ("a digit" if line["status"] == "error" else "")
        assert line["problem_id"] == f"p{line['row']}"
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["avg_at_k"]["value"] == result.avg_at_k.value
    assert record["settings"]["model"] == "random"
    assert record["settings"]["temperature"] == 1.0
    starts = json.loads((tmp_path / "settings.json").read_text())["starts"]
    assert len(starts) == 1
    assert "torch" in starts[0]["packages"]


@pytest.mark.parametrize(
    ("changes", "about", "named"),
    [
        ({"temperature": 0.7}, {}, r"temperature was 1\.0, is 0\.7"),
        ({"seed": 1, "batch_size": 8}, {}, r"batch_size was 7, is 8; seed was 0, is 1"),
        ({"k": 5}, {}, "num_samples was 4, is 5"),
        ({"rows": Letters().rows("eval", 3)}, {}, "num_problems was 8, is 3; problems was"),
        ({}, {"split": "train"}, 'split was "eval", is "train"'),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {}, "chat_template_kwargs was"),
    ],
)
def test_other_settings_are_refused_by_name(
    model: Any, tokenizer: Any, tmp_path: Path, changes: dict[str, Any], about: dict[str, Any], named: str
) -> None:
    usual = {"split": "eval"}
    run(model, tokenizer, EvalDirectory(tmp_path, usual))
    before = (tmp_path / "completions.jsonl").read_bytes()
    with pytest.raises(RunError, match=named):
        run(model, tokenizer, EvalDirectory(tmp_path, usual | about), **changes)
    assert (tmp_path / "completions.jsonl").read_bytes() == before
    run(model, tokenizer, EvalDirectory(tmp_path, usual), k=[1, 2], num_samples=4, success_threshold=0.9)


def test_another_model_and_another_kind_of_folder_are_refused(
    model: Any, make_model: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    run(model, tokenizer, EvalDirectory(tmp_path / "a"))
    with pytest.raises(RunError, match="weights was"):
        run(make_model(seed=4), tokenizer, EvalDirectory(tmp_path / "a"))
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty and holds no evaluation"):
        run(model, tokenizer, EvalDirectory(tmp_path))
    with files.locked(tmp_path / "a"), pytest.raises(RunError, match="Another process is working on"):
        run(model, tokenizer, EvalDirectory(tmp_path / "a"))
    (tmp_path / "b").write_text("a file")
    with pytest.raises(RunError, match="Cannot write"):
        run(model, tokenizer, EvalDirectory(tmp_path / "b"))


def test_damaged_lines(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    run(model, tokenizer, EvalDirectory(tmp_path))
    path = tmp_path / "completions.jsonl"
    whole = path.read_text().splitlines()
    path.write_text("\n".join([whole[0], "oops", *whole[1:]]) + "\n")
    with pytest.raises(RunError, match=r"completions.jsonl, line 2 is not a JSON object"):
        run(model, tokenizer, EvalDirectory(tmp_path))
    path.write_text('{"schema_version": 1, "step": 0}\n')
    with pytest.raises(RunError, match=r"completions.jsonl, line \d+ is not a completion: KeyError"):
        run(model, tokenizer, EvalDirectory(tmp_path))


def test_a_full_disk_keeps_what_fits_and_says_how_to_go_on(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(model, tokenizer)
    left = 3000

    class NearlyFull:
        """A file on a disk with so many bytes left: it takes a part of a write before it refuses."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> NearlyFull:
            return self

        def __exit__(self, *args: object) -> None:
            self.file.close()

        def write(self, data: Any) -> int:
            nonlocal left
            if not left:
                raise OSError(28, "No space left on device")
            taken = self.file.write(data[:left])
            left -= taken
            return taken

    usual = Path.open

    def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = usual(path, mode, *args, **kwargs)
        return NearlyFull(file) if path.name == "completions.jsonl" and mode == "ab" else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(RunError, match=r"No space left on device.*graded completions are kept") as caught:
            run(model, tokenizer, EvalDirectory(tmp_path))
    assert "start the same command again" in caught.value.remedy
    assert (tmp_path / "completions.jsonl").stat().st_size == 3000
    task = Letters()
    assert numbers(run(model, tokenizer, EvalDirectory(tmp_path), task)) == numbers(whole)
    assert 0 < task.num_graded < 32


class Crashing(Letters):
    """Raises at what starts with some letters, and gives odd scores for others."""

    def verify(self, completions: Sequence[str], rows: Sequence[Any]) -> list[Verdict]:
        if any(c[:1] in set("abcdef") for c in completions):
            raise ZeroDivisionError("by zero")
        return [Verdict(math.inf if c[:1] in set("ghijk") else 1.0) for c in completions]


def test_a_verifier_that_crashes_costs_its_own_completions(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    result = run(model, tokenizer, EvalDirectory(tmp_path), Crashing())
    told = {line["completion"][:1]: line for line in lines(tmp_path)}
    assert {c for c, line in told.items() if "ZeroDivisionError('by zero')" in line["detail"]} == set("abcdef") & set(
        told
    )
    assert {c for c, line in told.items() if line["detail"] == "the score is inf"} == set("ghijk") & set(told)
    assert 0 < result.error_frac < 1
    assert result.avg_at_k.value == 1.0, "the others are graded"
    assert result.num_errors == sum(p.num_errors for p in result.per_problem) == len(result.failures)
    assert {dataclasses.astuple(f)[:3] for f in result.failures} == {
        (line["problem_id"], line["sample"], "error") for line in lines(tmp_path) if line["status"] == "error"
    }


def test_a_verifier_that_cannot_grade_at_all_says_so_itself(model: Any, tokenizer: Any) -> None:
    class Short(Letters):
        def verify(self, completions: Sequence[str], rows: Sequence[Any]) -> list[Verdict]:
            return super().verify(completions[1:], rows[1:])

    class Helpless(Letters):
        def verify(self, completions: Sequence[str], rows: Sequence[Any]) -> list[Verdict]:
            raise VerifierError("There is no compiler.", "Install one.")

    with pytest.raises(VerifierError, match="gave 3 verdicts for 4 completions"):
        run(model, tokenizer, task=Short())
    with pytest.raises(ScgrpoError, match="There is no compiler"):
        run(model, tokenizer, task=Helpless())


def test_timeouts_are_counted_apart(model: Any, tokenizer: Any) -> None:
    class Slow(Letters):
        def verify(self, completions: Sequence[str], rows: Sequence[Any]) -> list[Verdict]:
            usual = super().verify(completions, rows)
            return [Verdict.timeout("5 s") if c[:1] > "m" else v for c, v in zip(completions, usual, strict=True)]

    result = run(model, tokenizer, task=Slow())
    assert result.num_timeouts > 0
    assert result.num_errors > 0
    assert result.error_frac == (result.num_timeouts + result.num_errors) / 32
    assert {failure.status for failure in result.failures} == {"error", "timeout"}


def test_the_tasks_own_threshold_counts(model: Any, tokenizer: Any) -> None:
    class Half(Letters):
        success_threshold = 1.0

        def verify(self, completions: Sequence[str], rows: Sequence[Any]) -> list[Verdict]:
            return [Verdict(0.5) for _ in completions]

    result = run(model, tokenizer, task=Half())
    assert (result.avg_at_k.value, result.success_rate.value, result.success_threshold) == (0.5, 0.0, 1.0)
    given = run(model, tokenizer, task=Half(), success_threshold=0.5)
    assert (given.success_rate.value, given.pass_at_k.value) == (1.0, 1.0)
