"""From token_kl to weights: the formula, its threshold, its scope, and the variants."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scgrpo.credit import saturating_weight, thresholds
from scgrpo.credit.weighting import linear_quantile, shape_weights


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_formula_at_known_points() -> None:
    f = saturating_weight(rows([0.0, 0.1, 0.2, 0.6], [0.0, 0.5, 1.0, 4.5]), torch.tensor([0.2, 0.5]).double())
    torch.testing.assert_close(f, rows([0, 1 / 3, 1 / 2, 3 / 4], [0, 1 / 2, 2 / 3, 9 / 10]), rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weight_stays_below_one_and_rises(dtype: torch.dtype) -> None:
    token_kl = torch.tensor([[0.0, 1e-30, 1e-10, 1e-4, 1.0, 1e3, 1e10, 1e30]], dtype=dtype)
    f = saturating_weight(token_kl, torch.tensor([1e-4], dtype=dtype))[0]
    assert f[0] == 0
    assert f[3] == 0.5
    assert bool((f < 1).all())
    assert bool((f.diff() >= 0).all())
    assert bool((f[:6].diff() > 0).all())


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 101])
def test_quantile_interpolates_like_torch(quantile: float, size: int) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(size)).double()
    torch.testing.assert_close(
        linear_quantile(values, quantile), torch.quantile(values, quantile), rtol=1e-12, atol=1e-12
    )


def test_quantile_literal() -> None:
    # Position 0.75 * 4 = 3 -> 4.0; of the first four values 0.75 * 3 = 2.25 -> 3 + 0.25 * (4 - 3).
    assert linear_quantile(torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0]), 0.75).item() == 4.0
    assert linear_quantile(torch.tensor([1.0, 4.0, 2.0, 3.0]), 0.75).item() == 3.25


def test_quantile_takes_more_values_than_torch_does() -> None:
    values = torch.arange(2**24 + 2, dtype=torch.float32).flip(0)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(values, 0.5)
    assert abs(linear_quantile(values, 0.5).item() - (2**24 + 1) / 2) <= 1


def test_threshold_counts_active_tokens_only() -> None:
    token_kl = rows([1, 2, 900], [3, 4, 5])
    active = torch.tensor([[True, True, False], [True, True, True]])
    scope = torch.tensor([0, 0])
    assert thresholds(token_kl, active, scope, quantile=0.75, floor=1e-4).tolist() == [4.0, 4.0]
    assert thresholds(token_kl, active, scope, quantile=0.5, floor=1e-4).tolist() == [3.0, 3.0]


def test_threshold_never_falls_below_the_floor() -> None:
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    active = torch.ones(2, 3, dtype=torch.bool)
    scope = torch.tensor([0, 0])
    assert thresholds(zeros, active, scope, quantile=0.75, floor=1e-4).tolist() == [1e-4, 1e-4]
    # Nothing is active: the floor as well.
    assert thresholds(zeros + 7, ~active, scope, quantile=0.75, floor=1e-4).tolist() == [1e-4, 1e-4]
    assert thresholds(zeros + 7, active, scope, quantile=0.75, floor=1e-4).tolist() == [7, 7]


def test_each_scope_has_its_own_threshold() -> None:
    token_kl = rows([1, 1], [10, 10], [3, 3], [30, 30], [5, 5])
    active = torch.ones(5, 2, dtype=torch.bool)
    active[4] = False
    scope = torch.tensor([4, 9, 4, 9, 1])  # interleaved; the last scope has no active token
    assert thresholds(token_kl, active, scope, quantile=0.5, floor=0.5).tolist() == [2, 20, 2, 20, 0.5]
    assert thresholds(token_kl, active, torch.zeros(5).long(), quantile=0.5, floor=0.5).tolist() == [6.5] * 5


F = rows([0.2, 0.4, 0.9], [0.6, 0.8, 0.0])
ACTIVE = torch.tensor([[True, True, False], [True, True, False]])  # mean weight 0.5
BOTH, FIRST = torch.tensor([True, True]), torch.tensor([True, False])
ONE_SCOPE = torch.tensor([0, 0])


def test_the_defaults_return_the_weight_itself() -> None:
    assert shape_weights(F, ACTIVE, BOTH, ONE_SCOPE, mix=1.0, normalize="none") is F


def test_mix_shrinks_towards_the_mean() -> None:
    w = shape_weights(F, ACTIVE, BOTH, ONE_SCOPE, mix=0.25, normalize="none")
    torch.testing.assert_close(w[ACTIVE], torch.tensor([0.425, 0.475, 0.525, 0.575]).double(), rtol=0, atol=1e-7)
    w = shape_weights(F, ACTIVE, BOTH, ONE_SCOPE, mix=0.0, normalize="none")
    torch.testing.assert_close(w[ACTIVE], torch.full((4,), 0.5).double(), rtol=0, atol=1e-12)


def test_where_the_weight_is_not_applied_the_rollout_gets_the_mean() -> None:
    w = shape_weights(F, ACTIVE, FIRST, ONE_SCOPE, mix=1.0, normalize="none")
    torch.testing.assert_close(w[ACTIVE], torch.tensor([0.2, 0.4, 0.5, 0.5]).double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("mix", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("applied", [BOTH, FIRST, ~FIRST, ~BOTH])
def test_mean_one_means_one(mix: float, applied: Tensor) -> None:
    w = shape_weights(F, ACTIVE, applied, ONE_SCOPE, mix=mix, normalize="mean_one")
    assert w[ACTIVE].mean().item() == pytest.approx(1, abs=1e-12)


def test_mean_one_literal_and_per_scope() -> None:
    w = shape_weights(F, ACTIVE, BOTH, ONE_SCOPE, mix=1.0, normalize="mean_one")
    torch.testing.assert_close(w[ACTIVE], torch.tensor([0.4, 0.8, 1.2, 1.6]).double(), rtol=0, atol=1e-7)
    w = shape_weights(F, ACTIVE, BOTH, torch.tensor([0, 1]), mix=1.0, normalize="mean_one")
    torch.testing.assert_close(w[ACTIVE], rows([2 / 3, 4 / 3, 6 / 7, 8 / 7])[0], rtol=0, atol=1e-7)


def test_mean_one_of_nothing_stays_zero() -> None:
    zeros = torch.zeros_like(F)
    assert not shape_weights(zeros, ACTIVE, BOTH, ONE_SCOPE, mix=1.0, normalize="mean_one").any()
    # A scope without active tokens is left alone.
    torch.testing.assert_close(shape_weights(F, ~(ACTIVE | True), BOTH, ONE_SCOPE, mix=0.5, normalize="mean_one"), F)
