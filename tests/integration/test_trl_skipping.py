"""What has no gradient costs no forward: exactly the planned rollouts pass through the model, each token once per
context, counted at the backbone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from trl import GRPOTrainer
from trl_harness import canned, make_trainer, starts_with_a

from scgrpo.credit.routing import Route
from scgrpo.teacher.models import backbone

Scored = tuple[Any, Counter[tuple[int, ...]]]


@pytest.fixture
def score(tokenizer: Any, make_model: Callable[..., Any], tmp_path: Any) -> Callable[..., Scored]:
    """Score one generation batch row by row; returns it, and the rows that passed through the backbone without
    gradient with how often they did."""

    def run(**options: Any) -> Scored:
        settings = {
            "teacher_timing": "generation",
            "teacher_prefix_sharing": "off",
            "teacher_max_tokens": 1,
            "max_steps": 1,
            **options,
        }
        model = make_model()
        trainer, seen = make_trainer(tmp_path, model, tokenizer, **settings)
        trainer._evidence.probed = True  # the probe at the start has passes of its own
        passed: Counter[tuple[int, ...]] = Counter()

        def count(_: Any, args: Any, inputs: dict[str, Any], output: Any) -> None:
            if not torch.is_grad_enabled():
                assert inputs["attention_mask"].all()  # a row by itself has no padding
                passed.update(map(tuple, inputs["input_ids"].tolist()))

        backbone(model).register_forward_hook(count, with_kwargs=True)
        trainer.train()
        return seen.scored[0], passed

    return run


def expected(scored: Any, cut: dict[int, int] | None = None) -> Counter[tuple[int, ...]]:
    """Each planned rollout once after its prompt and once after its teacher prompt; `cut`: to that many tokens."""
    rows: Counter[tuple[int, ...]] = Counter()
    for pair, row in enumerate(scored.plan.rollout.tolist()):
        ids = scored.rollouts.completion_ids[row][: (cut or {}).get(row)]
        for prompt in (scored.prompt_ids[row], scored.teacher_prompt_ids[pair]):
            rows[(*prompt, *ids)] += 1
    return rows


@pytest.mark.parametrize(
    ("pattern", "settings", "planned"),
    [
        ("SSFFSSSSSFFF", {}, {0, 1, 2, 3}),  # two groups are plain GRPO: all solved, one solved
        ("SSSSSFFF", {}, set()),
        ("SSFFFFFF", {"credit_alpha": 0.0}, {0, 1, 2, 3}),  # without diversity a solve-none group is plain GRPO too
        ("SsfFSSFF", {"mask_truncated_completions": True}, {4, 5, 6, 7}),  # one usable demonstration is too few
        ("SSsffFSF", {"mask_truncated_completions": True, "num_generations": 8}, {0, 1, 5, 6, 7}),
        ("ssffSSFF", {"mask_truncated_completions": True}, {4, 5, 6, 7}),  # a group that is masked throughout
        ("SSsfSSFF", {}, {0, 1, 2, 3, 4, 5, 6, 7}),  # what is cut off and counts is scored
    ],
)
def test_exactly_the_planned_rollouts_are_passed(
    score: Callable[..., Scored], pattern: str, settings: dict[str, Any], planned: set[int]
) -> None:
    scored, passed = score(completions=canned(pattern), per_device_train_batch_size=len(pattern), **settings)
    assert set(scored.plan.rollout.tolist()) == planned
    assert passed == expected(scored)
    assert passed.total() == 2 * len(planned)
    shown = scored.plan.demonstration.tolist()
    assert not any(pattern[row].islower() for row in shown)  # nothing cut off is shown


def test_the_demonstration_of_a_solve_none_group_is_not_scored(score: Callable[..., Scored]) -> None:
    scored, passed = score(completions=canned("FfFFSSFF"), mask_truncated_completions=True)
    assert scored.credit.route.tolist() == [Route.NONE_SOLVED] * 4 + [Route.PARTIAL] * 4
    shown = set(scored.plan.demonstration[scored.plan.rollout < 4].tolist())
    assert len(shown) == 1
    assert shown < {0, 2, 3}
    assert set(scored.plan.rollout.tolist()) == {0, 2, 3, 4, 5, 6, 7} - shown
    assert passed == expected(scored)


def test_groups_without_advantage_are_not_passed(score: Callable[..., Scored]) -> None:
    """The success reward routes but does not count, and the one that counts is the same for all."""

    def constant(completions: list[Any], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    scored, passed = score(
        completions=canned("SSFF"),
        reward_funcs=[starts_with_a, constant],
        reward_weights=[0.0, 1.0],
        success_reward="starts_with_a",
    )
    assert not scored.groups.advantages.any()
    assert passed == Counter()


def test_tokens_of_others_at_the_end_are_not_passed(
    score: Callable[..., Scored], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 0 is tool output throughout, row 1 ends with some, row 2 has some in between, which the rest needs."""
    plain = GRPOTrainer._generate_and_score_completions

    def with_tools(self: Any, inputs: Any) -> dict[str, Any]:
        batch = plain(self, inputs)
        batch["tool_mask"] = torch.ones_like(batch["completion_mask"])
        batch["tool_mask"][0] = 0
        batch["tool_mask"][1, 2:] = 0
        batch["tool_mask"][2, 1:2] = 0
        return batch

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", with_tools)
    monkeypatch.setattr("scgrpo.integrations.trl.compat.check_host", lambda *_: None)  # it reads the method's source

    def completion(batch: int, row: int) -> list[int]:
        return [[7, 9, 10, 11, 2], [7, 12, 13, 14, 2], [8, 15, 16, 17, 2], [8, 18, 19, 20, 2]][row % 4]

    scored, passed = score(completions=completion, per_device_train_batch_size=4)
    assert scored.plan.rollout.tolist() == [1, 2, 3]
    assert passed == expected(scored, cut={1: 2})
    kl = scored.evidence.token_kl
    assert kl[0].count_nonzero() == 2
    assert (kl[1, :5] > 0).tolist() == [True, False, True, True, True]
