"""The seam: registry, the off switch, and what the seam refuses."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass

import pytest
import torch

from scgrpo.credit import (
    SCGRPO,
    CreditMethod,
    Evidence,
    Groups,
    Plan,
    Uniform,
    create_credit_method,
    credit_method_names,
    methods,
    register_credit_method,
)
from scgrpo.credit.methods import check_finite, of_rollouts
from scgrpo.errors import ConfigError, NonFiniteError, ShapeError


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))


def make_groups(size: int = 4, width: int = 3) -> Groups:
    true, false = torch.ones(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
    return Groups(
        group=torch.zeros(size, dtype=torch.long),
        solved=torch.tensor([True, True, *[False] * (size - 2)]),
        graded=true,
        truncated=false,
        lengths=torch.full((size,), width),
        mask=torch.ones(size, width, dtype=torch.bool),
        advantages=torch.linspace(-1, 1, size),
        micro_batch=torch.zeros(size, dtype=torch.long),
    )


def test_both_methods_are_registered_and_fit_the_protocol() -> None:
    assert {"sc_grpo", "uniform"} <= set(credit_method_names())
    assert credit_method_names() == sorted(credit_method_names())
    assert isinstance(create_credit_method("sc_grpo", {}), SCGRPO)
    assert isinstance(create_credit_method("uniform", {}), Uniform)
    for name in credit_method_names():
        method = create_credit_method(name, {})
        assert isinstance(method, CreditMethod)
        with pytest.raises(dataclasses.FrozenInstanceError):
            method.quantile = 1.0  # type: ignore[attr-defined]


def test_the_defaults_are_the_papers() -> None:
    assert dataclasses.asdict(SCGRPO()) == {
        "quantile": 0.75,
        "floor": 1e-4,
        "fixed_threshold": None,
        "scope": "generation_batch",
        "alpha": 0.1,
        "normalize": "none",
        "weight_sign": "both",
        "mix": 1.0,
        "anneal_steps": 0,
        "demonstrations": "uniform",
        "routes": "partial",
    }


def test_options_of_other_methods_are_ignored() -> None:
    method = create_credit_method("sc_grpo", {"quantile": 0.5, "temperature_of_another": 3})
    assert method == SCGRPO(quantile=0.5)
    assert create_credit_method("uniform", {"quantile": 0.5}) == Uniform()


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"Unknown credit method 'sc_gpro'\. Did you mean 'sc_grpo'\? Known: .*uniform"
    ):
        create_credit_method("sc_gpro", {})
    with pytest.raises(ConfigError, match=r"Unknown credit method 'zzz'\. Known: "):
        create_credit_method("zzz", {})


@pytest.mark.usefixtures("registry")
def test_a_method_of_ones_own_is_registered_once() -> None:
    @register_credit_method("half")
    @dataclass(frozen=True)
    class Half(Uniform):
        share: float = 0.5

    assert "half" in credit_method_names()
    assert create_credit_method("half", {"share": 0.25, "alpha": 1}) == Half(share=0.25)
    assert register_credit_method("half")(Half) is Half  # the same class again is no conflict
    with pytest.raises(ConfigError, match="named 'half' is registered already"):
        register_credit_method("half")(Uniform)


def test_uniform_is_the_hosts_own_answer() -> None:
    groups, method = make_groups(), Uniform()
    plan = method.plan(groups, random.Random(0))
    assert len(plan) == 0
    nothing = torch.zeros(0, 3)
    credit = method.assign(groups, plan, Evidence(nothing, nothing, nothing, nothing))
    assert torch.equal(credit.base, groups.advantages)
    assert torch.equal(credit.advantages, groups.advantages[:, None].expand(4, 3))
    assert torch.equal(credit.weights, torch.ones(4, 3))
    assert credit.metrics == {}


def pairs(*rollout: int) -> Plan:
    return Plan(torch.tensor(rollout), torch.zeros(len(rollout), dtype=torch.long), torch.ones(len(rollout)).bool())


def test_evidence_of_pairs_goes_to_its_rollouts() -> None:
    values = torch.arange(6, dtype=torch.float64).reshape(2, 3).requires_grad_()
    rows = of_rollouts("token_kl", values, make_groups(), pairs(3, 1))
    assert rows.tolist() == [[0, 0, 0], [3, 4, 5], [0, 0, 0], [0, 1, 2]]
    assert rows.dtype == torch.float64
    assert not rows.requires_grad


@pytest.mark.parametrize("shape", [(1, 3), (3, 3), (2, 1), (2, 4)])
def test_evidence_that_does_not_fit_the_plan_is_an_error(shape: tuple[int, int]) -> None:
    """(1, 3) and (2, 1) would broadcast, silently."""
    with pytest.raises(ShapeError, match=rf"token_kl of shape \({shape[0]}, {shape[1]}\) for 2 pairs of 3 tokens"):
        of_rollouts("token_kl", torch.zeros(shape), make_groups(), pairs(3, 1))


def test_non_finite_evidence_is_named_by_rollout_not_by_pair() -> None:
    values = torch.zeros(2, 3)
    values[0, 2] = torch.nan
    with pytest.raises(NonFiniteError, match=r"token_kl is nan at row 3, position 2 \(1 of 12 values\)"):
        of_rollouts("token_kl", values, make_groups(), pairs(3, 1))


def test_check_finite_names_the_first_place() -> None:
    check_finite("x", torch.zeros(3, 2))
    check_finite("x", torch.zeros(0, 2))
    with pytest.raises(NonFiniteError, match=r"x is -inf at row 1, position 0 \(2 of 4 values\)"):
        check_finite("x", torch.tensor([[0.0, 1.0], [-torch.inf, torch.nan]]))
