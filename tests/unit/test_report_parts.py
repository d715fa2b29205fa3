"""The parts of the report, each by hand: choice of rollouts, shades, shares, numbers and tokens as text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from scgrpo.report.charts import Bars, Chart, Difference, Forest, Line, Shape, trailing_mean
from scgrpo.report.curves import draw_png
from scgrpo.report.draw import COLOURS, INK, draw
from scgrpo.report.heatmap import build_sections, choose, shift, shown_positions
from scgrpo.report.shares import credit_shares
from scgrpo.report.text import TOKEN_CLASSES, duration, estimate, number, shorten, token_class, visible
from scgrpo.runs import RolloutRow


def rollout_row(
    step: int = 0, rollout: int = 0, solved: bool = True, scored: bool = True, **changes: Any
) -> RolloutRow:
    """Six tokens, the last of a tool."""
    row: dict[str, Any] = {
        "step": step,
        "group": 0,
        "rollout": rollout,
        "problem_id": "p",
        "prompt": "",
        "completion": "",
        "tokens": ["<think>", "\n", "go", " 7", "->", "tool"],
        "token_ids": [1, 2, 3, 4, 5, 6],
        "is_special": [True, False, False, False, False, False],
        "mask": [True, True, True, True, True, False],
        "rewards": {"reach": float(solved)},
        "solved": solved,
        "status": "graded",
        "detail": "",
        "route": "partial",
        "demonstration": 9 if scored else None,
        "demonstration_text": "go" if scored else None,
        "teacher_prompt": None,
        "demonstration_truncated": False,
        "advantage": 1.0,
        "token_kl": [0.1, 0.2, 0.3, 0.4, 0.5, 9.0] if scored else None,
        "credit_weights": [0.2, 0.1, 0.4, 0.8, 0.5, 0.0] if scored else [1.0] * 6,
        "student_logps": [-1.0] * 6 if scored else None,
        "teacher_logps": [-1.0] * 6 if scored else None,
    }
    return RolloutRow(**{**row, **changes})


def test_trailing_mean() -> None:
    assert trailing_mean([1, 2, 3, 6], 2) == [1, 1.5, 2.5, 4.5]
    assert trailing_mean([1, math.nan, 3], 2) == [1, 1, 3]
    assert math.isnan(trailing_mean([math.nan], 3)[0])


def test_chosen_rollouts_are_the_extremes() -> None:
    def with_kl(rollout: int, kl: float, solved: bool) -> RolloutRow:
        return rollout_row(rollout=rollout, solved=solved, token_kl=[kl] * 6)

    rows = [with_kl(0, 0.2, True), with_kl(1, 0.1, True), with_kl(2, 0.3, True), with_kl(3, 0.5, False)]
    rows.append(rollout_row(rollout=4, solved=False, scored=False))
    assert [(name, row.rollout) for name, row in choose(rows)] == [
        ("solved, most shifted", 2),
        ("solved, least shifted", 1),
        ("failed, most shifted", 3),
    ]


def test_shift_ignores_tool_output() -> None:
    assert shift(rollout_row(token_kl=[0.5] * 5 + [9.0])) == 0.5
    assert shift(rollout_row(scored=False)) == 0


def test_first_and_last_scored_steps_are_shown() -> None:
    plain = [rollout_row(scored=False)]
    rollouts = {0: plain, 10: [rollout_row(10)], 20: [rollout_row(20)], 30: [rollout_row(30)], 40: plain}
    assert [section.step for section in build_sections(rollouts)] == [10, 30]
    assert [section.step for section in build_sections({5: plain})] == [5]
    assert build_sections({}) == []


def test_levels_follow_the_weight_and_its_scale() -> None:
    weights = [0.0, 0.05, 0.1, 0.55, 0.999, 0.3]
    card = build_sections({0: [rollout_row(credit_weights=weights)]})[0].cards[0]
    assert [cell.level for cell in card.cells] == [0, 0, 1, 5, 9, None]
    doubled = build_sections({0: [rollout_row(credit_weights=[4 * w for w in weights])]})[0]
    assert doubled.scale == pytest.approx(3.996)
    assert [cell.level for cell in doubled.cards[0].cells] == [0, 0, 1, 5, 9, None]


def test_long_observations_are_cut_before_what_the_model_wrote() -> None:
    """A conversation of four turns: every token of the model's is shown."""
    mask = ([True] * 90 + [False] * 2000) * 3 + [True] * 90
    many = len(mask)
    row = rollout_row(
        tokens=["x"] * many,
        **{name: [0.1] * many for name in ("token_kl", "credit_weights", "student_logps", "teacher_logps")},
        token_ids=list(range(many)),
        is_special=[False] * many,
        mask=mask,
    )
    cells = build_sections({0: [row]})[0].cards[0].cells
    assert [cell.position for cell in cells if cell.kind != "tool"] == [n for n in range(many) if mask[n]]
    assert [(cell.position, cell.left_out) for cell in cells if cell.left_out] == [
        (2065, 1950),
        (4155, 1950),
        (6245, 1950),
    ]
    assert shown_positions([True] * 1000) == [*range(600), *range(700, 1000)]
    assert shown_positions(([True] * 90 + [False] * 2000) * 10)[599:601] != [599, 600], "the middle is cut then"
    assert len(shown_positions(([True] * 90 + [False] * 2000) * 10)) == 900
    assert shown_positions([]) == []


def test_credit_shares_by_hand() -> None:
    (solved,) = credit_shares([rollout_row(), rollout_row(scored=False)])
    assert (solved.name, solved.num_rollouts, solved.num_tokens) == ("Solved rollouts", 1, 5)
    digits = next(share for share in solved.shares if share.kind == "digits")
    assert (digits.token_frac, digits.mean_weight, digits.mean_kl) == (0.2, 0.8, 0.4)
    assert digits.weight_frac == pytest.approx(0.4)
    assert [share.kind for share in solved.shares] == list(TOKEN_CLASSES)


@pytest.mark.parametrize(
    ("text", "special", "kind"),
    [("<eos>", True, "special"), (" \n", False, "whitespace"), ("", False, "whitespace"), (" 42", False, "digits"),
     ("x1", False, "words"), ("été", False, "words"), (" ->", False, "other"), ("3.", False, "digits")],
)  # fmt: skip
def test_token_class(text: str, special: bool, kind: str) -> None:
    assert token_class(text, special) == kind


def test_visible_text() -> None:
    assert visible(" a\n\tb") == "␣a⏎⇥b"
    assert visible("\u202e\x00\u200b") == "⟨U+202E⟩⟨U+0000⟩⟨U+200B⟩"
    assert visible("") == "∅"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (math.nan, "–"), (math.inf, "–"), (0.0, "0"), (0.12345, "0.123"), (1e-6, "1e-06"),
     (1234.5, "1,234"), (999.0, "999"), (12, "12"), (True, "yes"), ("text", "text"), (-0.5, "-0.5")],
)  # fmt: skip
def test_number(value: Any, shown: str) -> None:
    assert number(value) == shown


def test_estimates_and_durations() -> None:
    assert estimate({"value": 0.5, "low": 0.25, "high": 0.75}) == "0.500 [0.250, 0.750]"
    assert estimate({"value": 0.5, "low": None, "high": None}) == "0.500"
    assert estimate({"value": None}) == "–"
    assert estimate(None) == "–"
    assert [duration(s) for s in (None, 0.25, 119.0, 600.0, 7200.0)] == ["–", "0.25 s", "119 s", "10.0 min", "2.0 h"]


def test_line_without_values_has_no_ends() -> None:
    assert Line("x", 0, [], []).ends == "–"
    assert Line("x", 0, [1], [2.5]).ends == "2.5"


def test_a_long_name_keeps_both_ends() -> None:
    assert shorten("x" * 34) == "x" * 34
    assert shorten("method-" + "x" * 80 + " †", 21) == "method-xxx…xxxxxxxx †"


def test_a_forest_has_a_row_per_difference() -> None:
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    rows = [Difference("dapo", (0.1, 0.05, 0.15), True), Difference("rlsd †", (0.0, -0.1, 0.1), False)]
    rows.append(Difference("failed", (math.nan,) * 3, False))
    draw(axes, Forest("f", "f", "Avg@k", rows, span=(-0.1, 0.4), margin=0.02))
    assert [text.get_text() for text in axes.get_yticklabels()] == ["dapo", "rlsd †", "failed"]
    squares = [line for line in axes.lines if line.get_marker() == "s"]
    assert [line.get_xdata()[0] for line in squares[:2]] == [0.1, 0.0]
    assert [line.get_markerfacecolor() for line in squares] == [COLOURS[0], "none", "none"]
    intervals = [(*path.vertices[:, 0], to_hex(c.get_color()[0])) for c in axes.collections for path in c.get_paths()]
    assert intervals[:2] == [(0.05, 0.15, COLOURS[0]), (-0.1, 0.1, INK)]
    assert axes.get_xlim() == pytest.approx((-0.12, 0.42)), "the span, and a little room"


def test_charts_of_any_height_and_number_share_a_png(tmp_path: Path) -> None:
    from matplotlib.image import imread

    curve = Chart("c", "c", "nats", [Line("a", 0, [1.0, 2.0], [1.0, 2.0])], y_range=(0.0, 4.0))
    bars = Bars("b", "b", "seconds", ["part"], {f"run {n}": [1.0] for n in range(12)})

    def size(charts: list[Shape]) -> tuple[int, int]:
        height, width, _ = imread(draw_png(charts, tmp_path / "out.png")).shape
        return width, height

    (width, low), (same, high) = size([curve]), size([bars])
    assert width == same
    assert size([curve, bars, curve, curve]) == (3 * width, high + low)
