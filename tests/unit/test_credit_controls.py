"""The controls of SC-GRPO, and its choices of a demonstration."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from credit_cases import close, every, make_evidence, make_groups

from scgrpo.credit import (
    NONE,
    SCGRPO,
    Entropy,
    FailedDemonstration,
    Oracle,
    OtherPrompt,
    Permuted,
    Plan,
    RandomWeights,
    Route,
    choose_demonstrations,
    route_groups,
)
from scgrpo.credit.routing import similarity
from scgrpo.credit.weighting import annealed
from scgrpo.errors import ConfigError
from scgrpo.integrations.past import PastSolutions

GROUPS = make_groups("SSFF FFF", [3, 2, 3, 1, 2, 2, 3])
SHIFTS = torch.arange(21, dtype=torch.float64).view(7, 3) / 10


def credit_of(method: SCGRPO, groups: Any = GROUPS, seed: int = 0, **fields: Any) -> Any:
    plan = method.plan(groups, random.Random(seed))
    fields = {name: every(groups, plan, rows) for name, rows in (fields or {"token_kl": SHIFTS}).items()}
    return plan, method.assign(groups, plan, make_evidence(len(plan), groups.mask.shape[1], **fields))


def test_permuted_keeps_each_rollouts_weights_and_moves_them() -> None:
    _, plain = credit_of(SCGRPO())
    _, moved = credit_of(Permuted())
    assert not torch.equal(moved.weights, plain.weights)
    for row in range(7):
        mine = GROUPS.mask[row]
        assert sorted(moved.weights[row, mine].tolist()) == sorted(plain.weights[row, mine].tolist())
    close(moved.advantages, plain.base[:, None] * moved.weights)
    close(moved.base, plain.base)
    assert moved.metrics == plain.metrics


def test_shuffles_are_the_same_for_the_same_seed_and_step_only() -> None:
    from dataclasses import replace

    for cls in (Permuted, RandomWeights):
        _, first = credit_of(cls())
        _, again = credit_of(cls())
        _, later = credit_of(cls(), replace(GROUPS, step=1))
        _, other = credit_of(cls(seed=1))
        assert torch.equal(first.weights, again.weights)
        assert not torch.equal(first.weights, later.weights)
        assert not torch.equal(first.weights, other.weights)


def test_random_keeps_the_histogram_of_the_batch() -> None:
    plan, plain = credit_of(SCGRPO())
    _, moved = credit_of(RandomWeights())
    scored = torch.zeros(7, dtype=torch.bool)
    scored[plan.rollout] = True
    active = GROUPS.mask & scored[:, None]
    assert sorted(moved.weights[active].tolist()) == sorted(plain.weights[active].tolist())
    assert torch.equal(moved.weights[~active], plain.weights[~active])
    assert moved.metrics["weight_mean"] == pytest.approx(plain.metrics["weight_mean"])
    assert moved.metrics["weight_mean_solved"] == pytest.approx(
        moved.weights[active & GROUPS.solved[:, None]].mean().item()
    )


def test_entropy_is_the_weight_without_a_demonstration() -> None:
    """Active entropies 0 .1 .2 .3 .4 .5 .6: c = 0.45."""
    groups = make_groups("SSFF", [2, 1, 2, 2])
    plan, credit = credit_of(Entropy(), groups, student_entropy=[[0.6, 0.0], [0.3, 0], [0.2, 0.1], [0.5, 0.4]])
    assert plan.demonstration.tolist() == [NONE] * 4
    assert plan.alone.all()
    assert plan.single
    close(credit.weights[0], [0.6 / 1.05, 0])
    close(credit.weights[2], [0.2 / 0.65, 0.1 / 0.55])
    assert credit.metrics["student_entropy_p75"] == pytest.approx(0.45)
    assert not any("token_kl" in name for name in credit.metrics)


def test_entropy_leaves_solve_none_groups_their_demonstration() -> None:
    plan, _ = credit_of(Entropy(), student_entropy=SHIFTS)
    assert plan.demonstration[plan.verified].tolist() == [NONE] * 4
    assert (plan.demonstration[~plan.verified] >= 4).all()


def test_other_prompt_shows_a_solved_rollout_of_another_group() -> None:
    groups = make_groups("SSFF SsFF FFF")
    for seed in range(20):
        plan = OtherPrompt().plan(groups, random.Random(seed))
        assert (groups.group[plan.rollout] != groups.group[plan.demonstration]).all()
        assert torch.equal(groups.solved[plan.demonstration], plan.verified)
        assert not groups.truncated[plan.demonstration].any()
        of_none = plan.demonstration[groups.group[plan.rollout] == 2]
        assert len(set(of_none.tolist())) == 1  # one for the whole solve-none group
    assert OtherPrompt().plan(make_groups("SSFF"), random.Random(0)).rollout.tolist() == []


def test_failed_shows_another_failed_rollout_and_claims_nothing() -> None:
    groups = make_groups("SSFF SSSF FFF")
    method = FailedDemonstration()
    assert method.route(groups).tolist() == [Route.PARTIAL] * 4 + [Route.FALLBACK] * 4 + [Route.NONE_SOLVED] * 3
    for seed in range(20):
        plan = method.plan(groups, random.Random(seed))
        assert torch.equal(groups.group[plan.rollout], groups.group[plan.demonstration])
        assert (plan.rollout != plan.demonstration).all()
        assert not groups.solved[plan.demonstration].any()
        assert not plan.verified.any()
        assert len(plan) == 4 + 2


def test_failed_demonstrations_do_not_turn_a_partial_group_into_a_solve_none_one() -> None:
    groups = make_groups("SSFF")
    _, credit = credit_of(FailedDemonstration(), groups, token_kl=torch.ones(4, 3))
    close(credit.base, groups.advantages)
    close(credit.weights, torch.full((4, 3), 0.5))


def test_the_oracle_blames_the_first_error() -> None:
    """u = 1/4 1 1/4 1/4, mean 7/16."""
    groups = make_groups("SSFF", 4, first_error=torch.tensor([-1, 2, 1, -1]))
    method = Oracle(strength=0.75)
    plan = method.plan(groups, random.Random(0))
    assert plan.rollout.tolist() == [2]
    credit = method.assign(groups, plan, make_evidence(1, 4))
    close(credit.weights, [[1.0] * 4, [1.0] * 4, [4 / 7, 16 / 7, 4 / 7, 4 / 7], [1.0] * 4])
    close(credit.weights.mean(1), [1.0] * 4)
    assert credit.metrics["first_error_known_frac"] == 0.5


def test_the_oracle_needs_a_place_among_the_tokens_that_count() -> None:
    groups = make_groups("SSFF", [3, 3, 1, 2], first_error=torch.tensor([-1, -1, 2, 9]))
    assert len(Oracle().plan(groups, random.Random(0))) == 0
    with pytest.raises(ConfigError, match="an attribute `first_error`"):
        Oracle().plan(make_groups("SSFF"), random.Random(0))


# ---- switches of SC-GRPO ----


def shown(groups: Any, demonstrations: Any, seed: int = 0) -> dict[int, int]:
    plan = choose_demonstrations(groups, route_groups(groups), random.Random(seed), demonstrations)
    return dict(zip(plan.rollout.tolist(), plan.demonstration.tolist(), strict=True))


def test_shortest_and_longest_demonstrations() -> None:
    groups = make_groups("SSSF", [4, 2, 3, 5])
    assert shown(groups, "shortest") == {0: 1, 1: 2, 2: 1, 3: 1}
    assert shown(groups, "longest") == {0: 2, 1: 0, 2: 0, 3: 0}


def test_ties_are_drawn() -> None:
    groups = make_groups("SSF")
    assert {shown(groups, "shortest", seed)[2] for seed in range(20)} == {0, 1}


def test_nearest_shares_the_longest_prefix_then_the_most_tokens() -> None:
    ids = torch.tensor([[1, 2, 3, 0], [1, 5, 6, 7], [9, 3, 2, 4], [1, 2, 4, 9]])
    groups = make_groups("SSSF", [3, 4, 4, 4], completion_ids=ids)
    assert similarity(groups, 3, 0) == (2, 0.5)  # 1 2 | 1 2 of 4
    assert similarity(groups, 3, 1) == (1, 0.25)
    assert similarity(groups, 3, 2) == (0, 0.75)  # 9 2 4 in another order
    assert similarity(groups, 0, 1) == (1, 0.25)
    assert shown(groups, "nearest")[3] == 0
    assert shown(groups, "least_similar")[3] == 2
    assert shown(groups, "least_similar")[0] == 2


def test_similarity_needs_the_tokens() -> None:
    with pytest.raises(ConfigError, match="does not tell the rollouts' tokens"):
        shown(make_groups("SSF"), "nearest")


def test_earlier_solutions_come_first_where_there_are_some() -> None:
    groups = make_groups("SSFF SSFF FFFF", past=torch.tensor([1, 1, 2]))
    rows = shown(groups, "buffer")
    assert all(rows[i] in {0, 1} - {i} for i in range(4))
    assert {shown(groups, "buffer", seed)[5] for seed in range(20)} == {12, 13}
    assert all(rows[i] in range(8, 12) for i in rows if i >= 8)  # solve-none groups are as ever
    assert SCGRPO(demonstrations="buffer").needs_past
    assert not SCGRPO().needs_past
    with pytest.raises(ConfigError, match="this host keeps none"):
        shown(make_groups("SSFF"), "buffer")


def test_past_solutions_are_the_latest_few_by_prompt(tmp_path: Any) -> None:
    past = PastSolutions()
    chat = [{"role": "user", "content": "p"}]
    past.remember(["p"] * 7 + [chat], [*"abcdef", "c", "z"], [True] * 5 + [False, True, True])
    assert past.recall(["p", "q", chat, "p"]) == ([0, 0, 0, 0, 2, 3, 3, 3, 3], [*"bdec", "z", *"bdec"])
    past.save(tmp_path)
    again = PastSolutions()
    again.load(tmp_path)
    assert again == past
    again.load(tmp_path / "nowhere")
    assert again == past


def test_a_fixed_threshold() -> None:
    _, credit = credit_of(SCGRPO(fixed_threshold=0.2), make_groups("SSFF", 1), token_kl=[[0.2], [0.6], [0.0], [0.3]])
    close(credit.weights, [[0.5], [0.75], [0.0], [0.6]])
    assert credit.metrics["threshold"] == pytest.approx(0.2)


def test_centred_weights_have_mean_one() -> None:
    """f = .5 .75 0 .6, mean .4625; half of the distance to it."""
    method = SCGRPO(fixed_threshold=0.2, normalize="centered", mix=0.5)
    shifts = [[0.2], [0.6], [0.0], [0.3]]
    _, credit = credit_of(method, make_groups("SSFF", 1), token_kl=shifts)
    close(credit.weights, [[1.01875], [1.14375], [0.76875], [1.06875]])
    _, solved = credit_of(
        SCGRPO(fixed_threshold=0.2, normalize="centered", weight_sign="solved"),
        make_groups("SSFF", 1),
        token_kl=shifts,
    )
    close(solved.weights, [[1.0375], [1.2875], [1.0], [1.0]])


@pytest.mark.parametrize(("step", "mix"), [(0, 0.5), (10, 0.25), (20, 0.0), (99, 0.0)])
def test_mixing_is_annealed(step: int, mix: float) -> None:
    shifts = [[0.2], [0.6], [0.0], [0.3]]
    method = SCGRPO(normalize="centered", mix=0.5, anneal_steps=20)
    _, later = credit_of(method, make_groups("SSFF", 1, step=step), token_kl=shifts)
    _, fixed = credit_of(SCGRPO(normalize="centered", mix=mix), make_groups("SSFF", 1), token_kl=shifts)
    close(later.weights, fixed.weights)
    assert annealed(0.5, step, 20) == mix
    assert annealed(0.5, step, 0) == 0.5


def test_switches_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"fixed_threshold is 0.0 nats.*anneal_steps is -1"):
        SCGRPO(fixed_threshold=0.0, anneal_steps=-1)


def test_plans_know_what_they_ask_for() -> None:
    rows, flags = torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool)
    assert Plan(rows, rows, flags).single
    assert not Plan(rows * 0, rows, flags).single
    contrasted = Plan(rows, torch.tensor([NONE, NONE]), flags, torch.tensor([NONE, 0]))
    assert contrasted.contrasted.tolist() == [False, True]
    assert contrasted.alone.tolist() == [True, False]
    assert not contrasted.single
