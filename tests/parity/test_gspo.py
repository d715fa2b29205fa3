"""GSPO's token form: TRL's sequence form where credit is uniform, the paper's formula where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from trl_harness import canned, parameters

from scgrpo import SCGRPOConfig
from scgrpo.errors import ConfigError
from scgrpo.integrations.trl.gspo import anchors

Run = Callable[..., tuple[Any, Any, Any]]
# Several updates per generation batch, so that ratios leave 1 and the clip matters.
OPTIONS: dict[str, Any] = {
    "completions": canned("SSFFSFFF"),
    "per_device_train_batch_size": 2,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "max_steps": 16,
    "epsilon": 3e-4,
    "epsilon_high": 4e-4,
    "learning_rate": 1e-3,
}


def test_anchors_in_numbers() -> None:
    logps = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, -1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-1.2, -2.4, -7.0], [-0.5, -1.0, -1.3]], dtype=torch.float64)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    log_ratio = logps - anchors(logps, old, mask)
    expected = torch.tensor([[0.3, 0.3, 0.3], [0.1, 0.1, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(log_ratio.detach(), expected, rtol=0, atol=1e-12)
    log_ratio.exp().sum().backward()
    torch.testing.assert_close(logps.grad, expected.exp(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_with_uniform_credit_it_is_trls_sequence_form(run_trainer: Run, beta: float) -> None:
    ours = run_trainer(credit="uniform", importance_sampling_level="sequence_token", beta=beta, **OPTIONS)
    theirs = run_trainer(credit=None, importance_sampling_level="sequence", beta=beta, **OPTIONS)
    clipped = [log["clip_ratio/region_mean"] for log in ours[0].state.log_history if "clip_ratio/region_mean" in log]
    assert min(clipped) == 0 < max(clipped), "some are clipped, some are not"
    for a, b in zip(ours[1].losses, theirs[1].losses, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
    for (name, a), b in zip(parameters(ours[2]).items(), parameters(theirs[2]).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6, msg=name)


def literal_loss(model: Any, inputs: dict[str, Any], low: float, high: float) -> torch.Tensor:
    """The paper's formula, one token at a time."""
    total = torch.zeros((), dtype=torch.float64)
    rows = len(inputs["completion_ids"])
    for row in range(rows):
        keep, width = inputs["prompt_mask"][row].bool(), int(inputs["completion_mask"][row].sum())
        prompt, completion = inputs["prompt_ids"][row][keep], inputs["completion_ids"][row][:width]
        logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1)[torch.arange(width), completion]
        old = inputs["old_per_token_logps"][row][:width].double()
        s = (logps - old).mean().exp().detach()
        for t in range(width):
            ratio, advantage = s * (logps[t] - logps[t].detach()).exp(), inputs["advantages"][row, t].double()
            total = total - torch.min(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage) / width / rows
    return total


@pytest.mark.parametrize("low_high", [(3e-4, 4e-4), (0.2, 0.28)])
def test_with_weights_per_token_it_is_the_papers_formula(
    run_trainer: Run, make_model: Callable[..., Any], low_high: tuple[float, float]
) -> None:
    options = {**OPTIONS, "epsilon": low_high[0], "epsilon_high": low_high[1], "num_iterations": 1, "max_steps": 4}
    trainer, seen, model = run_trainer(credit="sc_grpo", importance_sampling_level="sequence_token", **options)
    differing = 0
    for inputs in list(seen.inputs):
        model.train()
        model.zero_grad()
        before = {name: value.clone() for name, value in inputs.items()}
        loss = trainer._compute_loss(model, inputs)
        loss.backward()
        assert all(torch.equal(inputs[name], value) for name, value in before.items()), "inputs are used again"
        twin = make_model().double()  # TRL has bound the forward of the other to itself
        twin.load_state_dict(model.state_dict())
        expected = literal_loss(twin, inputs, *low_high)
        expected.backward()
        torch.testing.assert_close(loss.double(), expected, rtol=0, atol=2e-6)
        for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=2e-6, msg=name)
        differing += any(len(set(row.tolist())) > 2 for row in inputs["advantages"])
    assert differing, "some rollouts have weights"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"loss_type": "vespo"}, "sequence ratios of its own"),
        ({"loss_type": "luspo", "credit": "uniform"}, "sequence ratios of its own"),
        ({"importance_sampling_level": "sequence"}, "only the mean of the weights"),
        ({"importance_sampling_level": "word"}, "choose token, sequence or sequence_token"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], match: str) -> None:
    common = {"use_cpu": True, "bf16": False, "importance_sampling_level": "sequence_token"}
    with pytest.raises(ConfigError, match=match):
        SCGRPOConfig(**{**common, **settings})
