"""Every baseline against TRL's own loss with the same settings, and against its paper's formula, literally."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_trl_parity import assert_same_training
from torch import Tensor
from trl_harness import canned

Run = Callable[..., tuple[Any, Any, Any]]
OF_THE_METHOD = "of the method"


@pytest.mark.parametrize(
    ("method", "trl"),
    [
        ("grpo", {"loss_type": "grpo"}),
        ("dr_grpo", {"loss_type": "dr_grpo", "scale_rewards": "none"}),
        ("cispo", {"loss_type": "cispo", "epsilon_high": 5.0}),
    ],
)
def test_a_preset_is_trl_with_these_settings_bit_for_bit(run_trainer: Run, method: str, trl: dict[str, Any]) -> None:
    common = {"steps_per_generation": 2, "num_iterations": 2, "max_steps": 6, "optim": "adamw_torch"}
    ours = run_trainer(method=method, credit=OF_THE_METHOD, **common)
    assert_same_training(ours, run_trainer(credit=None, **trl, **common))


def test_dapo_without_what_trl_lacks_is_trls(run_trainer: Run) -> None:
    common = {"steps_per_generation": 2, "num_iterations": 2, "max_steps": 6, "optim": "adamw_torch"}
    off = {"dynamic_sampling_max_rounds": 0, "overlong_frac": 0.0}
    ours = run_trainer(method="dapo", credit=OF_THE_METHOD, **off, **common)
    assert_same_training(ours, run_trainer(credit=None, loss_type="dapo", epsilon_high=0.28, **common))


def test_sc_grpo_by_name_is_the_default(run_trainer: Run) -> None:
    options = {"completions": canned("SSFFSFFF")}
    assert_same_training(run_trainer(method="sc_grpo", credit=OF_THE_METHOD, **options), run_trainer(**options))


# ---- the papers' formulas, one token at a time, in float64 ----


def clipped(ratio: float, advantage: float, low: float, high: float) -> float:
    return min(ratio * advantage, max(min(ratio, 1 + high), 1 - low) * advantage)


Rows = list[list[float]]


def grpo(ratios: Rows, logps: Rows, advantages: Rows, high: float = 0.2) -> float:
    rows = zip(ratios, advantages, strict=True)
    each = [sum(clipped(r, a, 0.2, high) for r, a in zip(*row, strict=True)) / len(row[0]) for row in rows]
    return -sum(each) / len(each)


def dr_grpo(ratios: Rows, logps: Rows, advantages: Rows) -> float:
    rows = zip(ratios, advantages, strict=True)
    each = [sum(clipped(r, a, 0.2, 0.2) for r, a in zip(*row, strict=True)) / 8 for row in rows]  # 8: the longest
    return -sum(each) / len(each)


def dapo(ratios: Rows, logps: Rows, advantages: Rows) -> float:
    rows = zip(ratios, advantages, strict=True)
    tokens = [clipped(r, a, 0.2, 0.28) for row in rows for r, a in zip(*row, strict=True)]
    return -sum(tokens) / len(tokens)


def cispo(ratios: Rows, logps: Rows, advantages: Rows) -> float:
    rows = zip(ratios, logps, advantages, strict=True)
    tokens = [min(r, 5.0) * a * x for row in rows for r, x, a in zip(*row, strict=True)]
    return -sum(tokens) / len(tokens)


def true_rows(values: Tensor, mask: Tensor) -> Rows:
    return [row[keep].tolist() for row, keep in zip(values.double().expand(mask.shape), mask, strict=True)]


def group_advantages(letters: str, scaled: bool) -> list[float]:
    """Of groups of four with rewards 1 (S) and 0 (F)."""
    out = []
    for start in range(0, len(letters), 4):
        rewards = [float(letter == "S") for letter in letters[start : start + 4]]
        mean = sum(rewards) / 4
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 3)
        out += [(r - mean) / (std + 1e-4) if scaled else r - mean for r in rewards]
    return out


@pytest.mark.parametrize("credit", [OF_THE_METHOD, "sc_grpo"])
@pytest.mark.parametrize("formula", [grpo, dr_grpo, dapo, cispo], ids=lambda formula: formula.__name__)
def test_the_loss_is_the_papers(run_trainer: Run, make_model: Any, formula: Any, credit: str) -> None:
    """On the second update of a batch, with ratios far from 1; and with SC-GRPO's weights on it."""
    letters = "SSFFSFFF"
    _, seen, model = run_trainer(
        method=formula.__name__,
        credit=credit,
        completions=canned(letters),
        num_iterations=2,
        learning_rate=0.5,
        max_steps=1,
        overlong_frac=0.0,
    )
    trainer, seen, _ = run_trainer(
        method=formula.__name__,
        credit=credit,
        completions=canned(letters),
        num_iterations=2,
        learning_rate=0.5,
        max_steps=2,
        overlong_frac=0.0,
    )
    inputs, mask = seen.inputs[1], seen.inputs[1]["completion_mask"].bool()
    base = seen.scored[0].groups.advantages.tolist()
    assert base == pytest.approx(group_advantages(letters, scaled=formula is not dr_grpo), abs=1e-6)
    twin = make_model().double()
    twin.load_state_dict(model.state_dict())  # as it was before the second update
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    width = mask.shape[1]
    with torch.no_grad():
        logits = twin(input_ids=ids, attention_mask=attention).logits[:, -width - 1 : -1]
    logps = logits.log_softmax(-1).gather(2, inputs["completion_ids"][..., None])[..., 0]
    ratios = (logps - inputs["old_per_token_logps"]).exp()
    advantages = inputs["advantages"] if inputs["advantages"].dim() == 2 else inputs["advantages"][:, None]
    rows = (true_rows(ratios, mask), true_rows(logps, mask), true_rows(advantages, mask))
    assert max(max(row) for row in rows[0]) > 1.3
    assert seen.losses[1].item() == pytest.approx(formula(*rows), abs=2e-5)
    assert trainer.args.method == formula.__name__
