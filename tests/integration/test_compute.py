"""Compute accounting against counts by hand, on batches whose every token is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trl_harness import canned, make_trainer, prompt_rows

from scgrpo.integrations.trl.checkpoint import load_state

Run = Callable[..., tuple[Any, Any, Any]]
MIXED = "SFSFSSFF"  # two groups of four, all of whose rollouts get a demonstration


def logged(trainer: Any) -> list[dict[str, float]]:
    records = [record for record in trainer.state.log_history if "loss" in record]
    return [{k.removeprefix("compute/"): v for k, v in r.items() if k.startswith("compute/")} for r in records]


def lengths(pattern: str, batch: int, rows: int = 8) -> list[int]:
    return [len(canned(pattern)(batch, row)) for row in range(rows)]


def prompt_tokens(seen: Any, batch: int) -> int:
    return sum(len(ids) for ids in seen.scored[batch].prompt_ids)


def test_plain_grpo_makes_one_pass_over_what_it_samples(run_trainer: Run) -> None:
    trainer, seen, _ = run_trainer(credit="uniform", completions=canned(MIXED), max_steps=2)
    sampled = forwards = 0
    for step, totals in enumerate(logged(trainer)):
        sampled += sum(lengths(MIXED, step))
        forwards += sum(lengths(MIXED, step)) + prompt_tokens(seen, step)
        assert totals["tokens_sampled"] == totals["tokens_trained"] == sampled, "totals, not means"
        assert totals["student_forward_tokens"] == forwards
        assert totals["teacher_forward_tokens"] == 0
        assert totals["cpu_seconds"] > 0
        assert totals["seconds"] > 0
    assert len(logged(trainer)) == 2


@pytest.mark.parametrize("timing", ["loss", "generation"])
def test_the_conditioned_pass_is_the_teachers(
    timing: str, tokenizer: Any, make_model: Callable[..., Any], tmp_path: Path
) -> None:
    trainer, seen = make_trainer(
        tmp_path,
        make_model(),
        tokenizer,
        completions=canned(MIXED),
        teacher_timing=timing,
        teacher_prefix_sharing="off",
        max_steps=1,
    )
    trainer._evidence.probed = True  # its noise floor takes passes of its own, once
    trainer.train()
    (totals,) = logged(trainer)
    completions, prompts = sum(lengths(MIXED, 0)), prompt_tokens(seen, 0)
    scored = seen.scored[0]
    assert len(scored.plan) == 8
    teachers = sum(len(ids) for ids in scored.teacher_prompt_ids.values())
    assert totals["tokens_sampled"] == totals["tokens_trained"] == completions
    assert totals["teacher_forward_tokens"] == teachers + completions
    # Scored after sampling, the student's side of the evidence is a pass of its own.
    assert totals["student_forward_tokens"] == (prompts + completions) * (1 if timing == "loss" else 2)


def test_shared_prompts_are_fewer_tokens(run_trainer: Run) -> None:
    costs = {}
    for sharing in ("off", "packed"):
        trainer, _, _ = run_trainer(
            completions=canned(MIXED), teacher_prefix_sharing=sharing, credit_demonstrations="shared", max_steps=1
        )
        costs[sharing] = trainer.meter.totals["teacher_forward_tokens"]
    assert 0 < costs["packed"] < costs["off"]


def test_rejected_rounds_were_sampled_too(run_trainer: Run) -> None:
    patterns = ("SSSSFSFS", "FFFFSSFS")  # the second round has a mixed group for the degenerate first one

    def completions(batch: int, row: int) -> list[int]:
        return canned(patterns[batch % 2], seed=batch)(batch, row)

    trainer, seen, _ = run_trainer(
        credit="uniform", completions=completions, dynamic_sampling_max_rounds=1, max_steps=1, rows=prompt_rows(8)
    )
    totals = trainer.meter.totals
    sampled = sum(len(completions(batch, row)) for batch in (0, 1) for row in range(8))
    trained = sum(len(ids) for ids in seen.scored[0].rollouts.completion_ids)
    assert totals["tokens_sampled"] == sampled
    assert totals["tokens_trained"] == trained < sampled
    assert totals["student_forward_tokens"] == trained + prompt_tokens(seen, 0)


def test_old_log_probs_are_a_pass_and_dropped_rows_are_none(run_trainer: Run) -> None:
    options = {"per_device_train_batch_size": 4, "steps_per_generation": 2, "max_steps": 2}
    trainer, seen, _ = run_trainer(
        credit="uniform", completions=canned("SSSSFSFS"), drop_zero_advantages=True, **options
    )
    totals, whole = trainer.meter.totals, prompt_tokens(seen, 0) + sum(lengths("SSSSFSFS", 0))
    kept = sum(int((i["completion_mask"] * (i["advantages"] != 0)[:, None]).sum()) for i in seen.inputs)
    assert totals["tokens_sampled"] == sum(lengths("SSSSFSFS", 0))
    assert kept <= totals["tokens_trained"] < totals["tokens_sampled"]
    assert whole < totals["student_forward_tokens"] < 2 * whole, "all rows once, then those that are trained on"


def test_the_clock_stands_still_in_evaluations(run_trainer: Run) -> None:
    trainer, _, _ = run_trainer(credit="uniform", completions=canned(MIXED), max_steps=1)
    meter = trainer.meter
    meter.on_train_begin(None, None, None)
    before, start = dict(meter.totals), time.perf_counter()
    with meter.paused():
        time.sleep(0.2)
    meter.on_step_end(None, None, None)
    assert time.perf_counter() - start >= 0.2
    assert 0 < meter.totals["seconds"] - before["seconds"] < 0.1


def test_a_checkpoint_holds_what_was_spent(run_trainer: Run) -> None:
    trainer, _, _ = run_trainer(
        credit="uniform", completions=canned(MIXED), max_steps=2, save_strategy="steps", save_steps=1
    )
    *_, spent = load_state(Path(trainer.args.output_dir) / "checkpoint-1", trainer._teacher, 0)
    assert spent["tokens_sampled"] == sum(lengths(MIXED, 0))
    assert 0 < spent["seconds"] < trainer.meter.totals["seconds"]
