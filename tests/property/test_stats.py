"""Laws of paired statistics that hold for any input."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scgrpo.stats import area_under_curve, cluster_contrast, holm, sign_flip_p

number = st.floats(-1, 1, allow_nan=False).map(lambda x: round(x, 3))
table = st.integers(1, 8).flatmap(
    lambda units: st.integers(1, 6).flatmap(
        lambda problems: st.lists(
            st.lists(number, min_size=problems, max_size=problems), min_size=units, max_size=units
        )
    )
)


@given(table, st.data())
@settings(max_examples=60)
def test_swapping_the_methods_flips_the_signs(rows: list[list[float]], data: st.DataObject) -> None:
    strata = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    differences = np.array(rows)
    there, back = (cluster_contrast(sign * differences, strata, replicates=200) for sign in (1, -1))
    assert np.allclose(
        [there.value, there.low, there.high], [-back.value, -back.high, -back.low], atol=1e-9, equal_nan=True
    )
    assert there.p == back.p
    assert len(rows) == 1 or there.low - 1e-9 <= there.value <= there.high + 1e-9


@given(st.lists(number, min_size=1, max_size=10))
def test_sign_flips_do_not_depend_on_order_or_unit(values: list[float]) -> None:
    shuffled = sorted(values)
    p = sign_flip_p(values)
    assert p == sign_flip_p(shuffled) == sign_flip_p([-v for v in values])
    assert 2 ** (1 - len(values)) <= p <= 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_a_p_and_keeps_their_order(values: list[float]) -> None:
    p, corrected = np.array(values), holm(values)
    assert (corrected >= p).all()
    assert (corrected <= np.minimum(1, len(values) * p) + 1e-12).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0, 1)), min_size=1, max_size=8))
def test_areas_are_means_of_heights(points: list[tuple[int, float]]) -> None:
    steps = np.concatenate([[0], np.cumsum([gap for gap, _ in points])])
    heights = np.array([0.5, *(height for _, height in points)])
    area = area_under_curve(steps, heights)
    assert heights.min() - 1e-9 <= area <= heights.max() + 1e-9
    assert np.isclose(area, area_under_curve(steps * 1000.0, heights))
