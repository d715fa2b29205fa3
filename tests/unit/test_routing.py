"""Which groups are re-scored, and under which demonstration."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from credit_cases import make_evidence
from credit_cases import make_groups as credit_groups

from scgrpo.credit import SCGRPO, Groups, Plan, Route, choose_demonstrations, route_groups
from scgrpo.credit.routing import group_members, sibling_plan
from scgrpo.errors import NonFiniteError, ShapeError


def make_groups(letters: str, group: list[int] | None = None, **changes: Any) -> Groups:
    """One letter per rollout: S solved, F failed, U without a verdict, s solved but truncated, e solved but empty,
    f failed and truncated."""
    size = len(letters)
    lengths = torch.tensor([0 if letter == "e" else 3 for letter in letters])
    fields: dict[str, Any] = {
        "group": torch.zeros(size, dtype=torch.long) if group is None else torch.as_tensor(group),
        "solved": torch.tensor([letter in "Sse" for letter in letters]),
        "graded": torch.tensor([letter != "U" for letter in letters]),
        "truncated": torch.tensor([letter in "sf" for letter in letters]),
        "lengths": lengths,
        "mask": torch.arange(4) < lengths[:, None],
        "advantages": torch.ones(size),
        "micro_batch": torch.zeros(size, dtype=torch.long),
    }
    return Groups(**{**fields, **changes})


def make_plan(groups: Groups, seed: int = 0) -> Plan:
    return choose_demonstrations(groups, route_groups(groups), random.Random(seed))


def pairs_of(plan: Plan) -> list[tuple[int, int]]:
    return list(zip(plan.rollout.tolist(), plan.demonstration.tolist(), strict=True))


ROUTES = [
    *((4, n, r) for n, r in enumerate(("NONE_SOLVED", "FALLBACK", "PARTIAL", "PARTIAL", "FALLBACK"))),
    *((8, n, r) for n, r in enumerate(("NONE_SOLVED", "FALLBACK", *["PARTIAL"] * 6, "FALLBACK"))),
    (2, 0, "NONE_SOLVED"),
    (2, 1, "FALLBACK"),
    (2, 2, "FALLBACK"),
]


@pytest.mark.parametrize(("size", "num_solved", "route"), ROUTES)
def test_route_and_pairs_for_every_number_of_solved_rollouts(size: int, num_solved: int, route: str) -> None:
    groups = make_groups("S" * num_solved + "F" * (size - num_solved))
    assert route_groups(groups).tolist() == [int(Route[route])] * size

    for seed in range(20):
        plan = make_plan(groups, seed)
        assert len(plan) == {"PARTIAL": size, "NONE_SOLVED": size - 1, "FALLBACK": 0}[route]
        assert all(i != j for i, j in pairs_of(plan))
        if route == "PARTIAL":
            assert plan.rollout.tolist() == list(range(size))
            assert all(j < num_solved for _, j in pairs_of(plan))
            assert plan.verified.all()
        if route == "NONE_SOLVED":
            assert len(set(plan.demonstration.tolist())) == 1
            assert {*plan.rollout.tolist(), int(plan.demonstration[0])} == set(range(size))
            assert not plan.verified.any()


def test_route_numbers_are_stable() -> None:
    """Run directories store them."""
    assert {route.name: int(route) for route in Route} == {"FALLBACK": 0, "PARTIAL": 1, "NONE_SOLVED": 2}


def test_groups_may_be_interleaved_in_any_order() -> None:
    # Group 7: S S F F -> partial; group 3: F F F F -> solve-none; group 5: S F F F -> fallback.
    group = [7, 3, 5, 3, 7, 5, 5, 7, 3, 3, 5, 7]
    groups = make_groups("SFSFSFFFFFFF", group)
    expected = {7: Route.PARTIAL, 3: Route.NONE_SOLVED, 5: Route.FALLBACK}
    assert route_groups(groups).tolist() == [int(expected[g]) for g in group]
    assert [m.tolist() for m in group_members(groups)] == [[1, 3, 8, 9], [2, 5, 6, 10], [0, 4, 7, 11]]
    for seed in range(30):
        plan = make_plan(groups, seed)
        assert all(group[i] == group[j] for i, j in pairs_of(plan))
        assert sorted(i for i, _ in pairs_of(plan) if group[i] == 7) == [0, 4, 7, 11]
        assert len([i for i, _ in pairs_of(plan) if group[i] == 3]) == 3
        # Rows 0 and 4 are the solved ones of group 7: each is shown the other.
        assert (0, 4) in pairs_of(plan)
        assert (4, 0) in pairs_of(plan)


def chi_square(counts: Counter[int], values: list[int], draws: int) -> float:
    assert set(counts) <= set(values)
    expected = draws / len(values)
    return sum((counts[value] - expected) ** 2 / expected for value in values)


def test_demonstrations_are_drawn_uniformly() -> None:
    draws = 2000
    partial, none = make_groups("SSSSFFFF"), make_groups("FFFFFFFF")
    rng = random.Random(0)
    shown: dict[int, Counter[int]] = {row: Counter() for row in range(8)}
    common: Counter[int] = Counter()
    together: Counter[tuple[int, int]] = Counter()
    for _ in range(draws):
        chosen = dict(pairs_of(choose_demonstrations(partial, route_groups(partial), rng)))
        for row, demonstration in chosen.items():
            shown[row][demonstration] += 1
        together[chosen[4], chosen[5]] += 1
        common[int(choose_demonstrations(none, route_groups(none), rng).demonstration[0])] += 1
    # 99.99 % points of chi-square with 2, 3, 7 and 15 degrees of freedom.
    assert max(chi_square(shown[row], [j for j in range(4) if j != row], draws) for row in range(4)) < 18.4
    assert max(chi_square(shown[row], [0, 1, 2, 3], draws) for row in range(4, 8)) < 21.1
    assert chi_square(common, list(range(8)), draws) < 29.9
    # Two rollouts draw independently of each other: all 16 combinations are equally frequent.
    assert len(together) == 16
    assert sum((n - draws / 16) ** 2 / (draws / 16) for n in together.values()) < 44.3


def test_the_plan_is_a_function_of_the_seed() -> None:
    groups = make_groups("SSSSFFFF" + "F" * 8, [0] * 8 + [1] * 8)
    plans = [pairs_of(make_plan(groups, seed)) for seed in (3, 3, 4)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


@pytest.mark.parametrize(
    ("solved", "route", "scored", "shown"),
    [
        # Rollouts without a verdict count neither in n_c nor in G, and are neither scored nor shown.
        ("SSUU", Route.FALLBACK, set(), set()),
        ("SSFU", Route.PARTIAL, {0, 1, 2}, {0, 1}),
        ("FFUU", Route.NONE_SOLVED, None, {0, 1}),
        ("FUUU", Route.FALLBACK, set(), set()),
        ("UUUU", Route.FALLBACK, set(), set()),
        # Truncated rollouts are scored but never shown.
        ("SSsF", Route.PARTIAL, {0, 1, 2, 3}, {0, 1}),
        ("SsFF", Route.FALLBACK, set(), set()),
        ("ffff", Route.FALLBACK, set(), set()),
        ("Ffff", Route.NONE_SOLVED, {1, 2, 3}, {0}),
        # An empty completion has nothing to show and nothing to score.
        ("SSeF", Route.PARTIAL, {0, 1, 3}, {0, 1}),
        ("SeFF", Route.FALLBACK, set(), set()),
    ],
)
def test_rollouts_that_cannot_be_shown_or_scored(
    solved: str, route: Route, scored: set[int] | None, shown: set[int]
) -> None:
    groups = make_groups(solved)
    assert route_groups(groups).tolist() == [int(route)] * len(solved)
    plans = [pairs_of(make_plan(groups, seed)) for seed in range(40)]
    assert {j for plan in plans for _, j in plan} == shown
    if scored is not None:
        assert all({i for i, _ in plan} == scored for plan in plans)


def test_a_group_without_advantages_is_not_scored() -> None:
    """Rewards other than the success reward may leave a partial-solve group without a gradient."""
    advantages = torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 0.5])
    groups = make_groups("SSFFSSFF", [0, 0, 0, 0, 1, 1, 1, 1], advantages=advantages)
    assert route_groups(groups).tolist() == [int(Route.FALLBACK)] * 4 + [int(Route.PARTIAL)] * 4
    assert sorted(make_plan(groups).rollout.tolist()) == [4, 5, 6, 7]


def test_a_shared_demonstration_is_one_for_the_group_and_another_for_itself() -> None:
    groups = make_groups("SSSFFFFF")
    seen: set[tuple[int, int]] = set()
    for seed in range(200):
        plan = choose_demonstrations(groups, route_groups(groups), random.Random(seed), "shared")
        shown = dict(pairs_of(plan))
        first = Counter(shown.values()).most_common(1)[0][0]
        assert shown == {i: first if i != first else shown[first] for i in range(8)}
        assert {first, shown[first]} < {0, 1, 2}
        assert first != shown[first]
        seen.add((first, shown[first]))
    assert len(seen) == 6
    none = make_groups("FFFF")
    shared = choose_demonstrations(none, route_groups(none), random.Random(3), "shared")
    assert pairs_of(shared) == pairs_of(make_plan(none, 3))


def test_a_masked_rollout_is_not_scored_and_changes_no_other_draw() -> None:
    groups = make_groups("SSSFFFFF")
    mask = groups.mask.clone()
    mask[[1, 4]] = False
    masked = make_groups("SSSFFFFF", mask=mask)
    for seed in range(20):
        whole = pairs_of(make_plan(groups, seed))
        assert pairs_of(make_plan(masked, seed)) == [pair for pair in whole if pair[0] not in (1, 4)]
    # What the loss does not count may still be shown.
    assert any(j == 1 for seed in range(20) for _, j in pairs_of(make_plan(masked, seed)))


def test_all_tokens_masked_plans_nothing() -> None:
    for solved in ("SSFF", "FFFF"):
        groups = make_groups(solved, mask=torch.zeros(4, 4, dtype=torch.bool))
        assert len(make_plan(groups)) == 0


def test_an_empty_batch_plans_nothing() -> None:
    groups = Groups(
        *(torch.zeros(0, dtype=d) for d in (torch.long, torch.bool, torch.bool, torch.bool, torch.long)),
        mask=torch.zeros(0, 0, dtype=torch.bool),
        advantages=torch.zeros(0),
        micro_batch=torch.zeros(0, dtype=torch.long),
    )
    assert len(make_plan(groups)) == 0


def test_a_group_of_one_is_an_error() -> None:
    with pytest.raises(ShapeError, match=r"Group 5 has a single rollout\..*num_generations >= 2"):
        make_groups("SFFS", [4, 4, 5, 4])


@pytest.fixture
def users_call() -> Iterator[None]:
    """Without the type checks of the test suite, as an installed package runs."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("users_call")
@pytest.mark.parametrize("name", ["group", "solved", "graded", "truncated", "lengths", "advantages", "micro_batch"])
def test_mismatched_lengths_are_an_error_that_names_the_field(name: str) -> None:
    short = getattr(make_groups("SF"), name)
    with pytest.raises(ShapeError, match=rf"Groups\.{name} has 2 rows, the mask has 4"):
        make_groups("SSFF", **{name: short})


def test_solved_without_a_verdict_is_an_error() -> None:
    with pytest.raises(ShapeError, match="without a verdict is marked as solved"):
        make_groups("SSFU", solved=torch.tensor([True, True, False, True]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_advantages_are_an_error(value: float) -> None:
    with pytest.raises(NonFiniteError, match=r"advantages is -?(nan|inf) at row 2 \(1 of 4 values\)"):
        make_groups("SSFF", advantages=torch.tensor([0.0, 1.0, value, 2.0]))


# ---- for methods that learn from the demonstration ----


@pytest.mark.parametrize(
    ("letters", "shown"),
    [
        ("FFFF", {}),
        ("SFFF", {1: {0}, 2: {0}, 3: {0}}),
        ("SSFF", {0: {1}, 1: {0}, 2: {0, 1}, 3: {0, 1}}),
        ("SSSS", {0: {1, 2, 3}, 1: {0, 2, 3}, 2: {0, 1, 3}, 3: {0, 1, 2}}),
        ("sSeF", {0: {1}, 3: {1}}),  # cut off or empty: not to be shown; without a token: nothing to learn
        ("USFF", {2: {1}, 3: {1}}),
    ],
)
def test_every_rollout_with_a_solved_sibling_is_shown_one(letters: str, shown: dict[int, set[int]]) -> None:
    """Whatever its own outcome, and whatever the group's advantages."""
    groups = make_groups(letters, advantages=torch.zeros(4))
    seen: dict[int, set[int]] = {}
    for seed in range(60):
        plan = sibling_plan(groups, random.Random(seed))
        assert bool(plan.verified.all())
        for rollout, demonstration in pairs_of(plan):
            seen.setdefault(rollout, set()).add(demonstration)
    assert seen == shown


def test_a_masked_rollout_does_not_change_who_sees_what() -> None:
    groups = make_groups("SSFFSF", torch.tensor([0, 0, 0, 0, 1, 1]))
    masked = make_groups(
        "SSFFSF", torch.tensor([0, 0, 0, 0, 1, 1]), mask=groups.mask & (torch.arange(6) != 2)[:, None]
    )
    whole, part = (pairs_of(sibling_plan(g, random.Random(3))) for g in (groups, masked))
    assert part == [pair for pair in whole if pair[0] != 2]


@pytest.mark.parametrize(
    ("routes", "weighted"),
    [("partial", ["SSFF"]), ("mixed", ["SFFF", "SSFF"]), ("all_solved", ["SSSS"]), ("all", ["SFFF", "SSFF", "SSSS"])],
)
def test_which_groups_are_weighted(routes: Any, weighted: list[str]) -> None:
    words = ["SFFF", "SSFF", "SSSS", "FFFF"]
    groups = credit_groups(" ".join(words))
    route = route_groups(groups, routes)
    assert [word for word, r in zip(words, route[::4].tolist(), strict=True) if r == Route.PARTIAL] == weighted
    assert route[12:].eq(Route.NONE_SOLVED).all()
    for demonstrations in ("uniform", "shared"):
        plan = choose_demonstrations(groups, route, random.Random(0), demonstrations)
        pairs = [p for p in zip(plan.rollout.tolist(), plan.demonstration.tolist(), strict=True) if p[0] < 12]
        assert all(groups.solved[j] and i != j and i // 4 == j // 4 for i, j in pairs)
        # The only solution of a group has no other to be shown.
        assert len(pairs) == 4 * len(weighted) - ("SFFF" in weighted)


def test_a_sole_solution_keeps_its_advantage() -> None:
    groups = credit_groups("SFFF SSFF")
    method = SCGRPO(routes="mixed", alpha=0.0)
    plan = method.plan(groups, random.Random(0))
    rows = torch.full((len(plan), 3), 0.5, dtype=torch.float64)
    credit = method.assign(groups, plan, make_evidence(len(plan), 3, token_kl=rows))
    assert credit.weights[0].eq(1).all()
    assert credit.weights[1:].eq(0.5).all()
