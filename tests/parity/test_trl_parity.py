"""The trainer against TRL's own GRPOTrainer, and against a plain loop written from the paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from trl_harness import canned, parameters, prompt_rows

Run = Callable[..., tuple[Any, Any, Any]]
MIXED = "SSFFSFFFSSSFFFFF"  # partial, fallback, partial, none solved


def assert_same_training(ours: tuple[Any, Any, Any], theirs: tuple[Any, Any, Any]) -> None:
    """Bit for bit: advantages, losses, parameters."""
    (_, mine, my_model), (_, others, other_model) = ours, theirs
    assert len(mine.losses) == len(others.losses) > 0
    for a, b in zip(mine.inputs, others.inputs, strict=True):
        assert torch.equal(a["advantages"], b["advantages"])
    for a, b in zip(mine.losses, others.losses, strict=True):
        assert torch.equal(a, b)
    for (name, a), b in zip(parameters(my_model).items(), parameters(other_model).values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss_type": "dapo", "gradient_accumulation_steps": 2, "optim": "adamw_torch"},
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        {"steps_per_generation": 2, "num_iterations": 2, "max_steps": 6},
        {"beta": 0.1, "loss_type": "dr_grpo"},
        {"scale_rewards": "batch", "mask_truncated_completions": True, "temperature": 0.7},
    ],
    ids=["plain", "accumulation", "sequence", "iterations", "beta", "masked"],
)
def test_uniform_is_trls_grpo_bit_for_bit(run_trainer: Run, settings: dict[str, Any]) -> None:
    """With sampled rollouts: the random streams must be left alone, too."""
    assert_same_training(run_trainer(credit="uniform", **settings), run_trainer(credit=None, **settings))


@pytest.mark.parametrize("pattern", ["SFFF", "SSSS", "SFFFSSSS"])
def test_groups_with_one_or_all_solved_are_grpo_bit_for_bit(run_trainer: Run, pattern: str) -> None:
    options = {"completions": canned(pattern)}
    ours = run_trainer(**options)
    assert_same_training(ours, run_trainer(credit=None, **options))
    assert all(len(scored.plan) == 0 for scored in ours[1].scored)


# ---- the paper's formulas, one sequence at a time, in float64 ----


def plain_token_kl(model: Any, student: list[int], teacher: list[int], completion: list[int]) -> list[float]:
    """sum_v q log(q / p) at every completion token."""
    rows = []
    for prompt in (student, teacher):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].double()
        rows.append(logits[len(prompt) - 1 : -1].log_softmax(-1))
    p, q = rows
    return (q.exp() * (q - p)).sum(-1).tolist()


def plain_quantile(values: list[float], q: float) -> float:
    values = sorted(values)
    place = q * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def plain_advantages(rewards: list[float], group: int) -> list[float]:
    out = []
    for start in range(0, len(rewards), group):
        part = rewards[start : start + group]
        mean = sum(part) / group
        std = math.sqrt(sum((r - mean) ** 2 for r in part) / (group - 1))
        out += [(r - mean) / (std + 1e-4) for r in part]
    return out


def plain_credit(model: Any, scored: Any, group: int, alpha: float = 0.1) -> list[list[float]]:
    """Per-token advantages of every rollout."""
    completions, rewards = scored.rollouts.completion_ids, scored.rollouts.rewards[:, 0].tolist()
    advantages = plain_advantages(rewards, group)
    plan = list(zip(scored.plan.rollout.tolist(), scored.plan.demonstration.tolist(), strict=True))
    shift = {
        i: plain_token_kl(model, scored.prompt_ids[i], scored.teacher_prompt_ids[pair], completions[i])
        for pair, (i, _) in enumerate(plan)
    }
    c = max(plain_quantile([d for row in shift.values() for d in row], 0.75), 1e-4)
    f = {i: [d / (d + c) for d in row] for i, row in shift.items()}
    for start in range(0, len(rewards), group):
        if sum(rewards[start : start + group]) > 0:
            continue
        shown = {i: j for i, j in plan if start <= i < start + group}
        scores = {
            i: [f[i][t] for t in range(min(len(completions[i]), len(completions[j])))] for i, j in shown.items()
        }
        s = {i: sum(row) / len(row) for i, row in scores.items()}
        mean = sum(s.values()) / len(s)
        std = math.sqrt(sum((x - mean) ** 2 for x in s.values()) / (len(s) - 1))
        for i in range(start, start + group):
            advantages[i] = alpha * (s[i] - mean) / (std + 1e-6) if i in s else 0.0
    return [
        [a * w for w in f.get(i, [1.0] * len(ids))]
        for i, (a, ids) in enumerate(zip(advantages, completions, strict=True))
    ]


def plain_loss(model: Any, scored: Any, credit: list[list[float]], loss_type: str, longest: int) -> Tensor:
    """The GRPO family at ratio 1, with its gradient."""
    rows = []
    for prompt, ids, advantage in zip(scored.prompt_ids, scored.rollouts.completion_ids, credit, strict=True):
        logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1)[range(len(ids)), ids]
        ratio = (logps - logps.detach()).exp()
        a = torch.tensor(advantage, dtype=logps.dtype)
        if loss_type == "cispo":
            rows.append(-0.2 * a * logps)  # TRL clamps the ratio at epsilon_high, 0.2 by default
        elif loss_type == "sapo":
            temperature = torch.where(a > 0, 1.0, 1.05).to(a)
            rows.append(-torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature * a)
        else:
            rows.append(-ratio * a)
    if loss_type in ("grpo", "sapo"):
        return torch.stack([row.mean() for row in rows]).mean()
    total = torch.stack([row.sum() for row in rows]).sum()
    return total / (len(rows) * longest if loss_type == "dr_grpo" else sum(len(row) for row in rows))


@pytest.mark.parametrize("timing", ["generation", "loss"])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"])
def test_a_plain_loop_in_float64_gives_the_same_weights_and_loss(
    run_trainer: Run, make_model: Callable[..., Any], loss_type: str, timing: str
) -> None:
    _, seen, model = run_trainer(
        completions=canned(MIXED),
        per_device_train_batch_size=16,
        loss_type=loss_type,
        max_steps=1,
        teacher_timing=timing,
    )
    scored = seen.scored[0]
    plain = make_model(dtype=torch.float64)
    credit = plain_credit(plain, scored, 4)
    for row, expected in enumerate(credit):
        found = scored.credit.advantages[row, : len(expected)].tolist()
        assert found == pytest.approx(expected, abs=1e-5)
    assert len({round(abs(a), 6) for row in credit for a in row}) > 30  # the tokens differ
    loss = plain_loss(plain, scored, credit, loss_type, longest=8)
    assert seen.losses[0].item() == pytest.approx(loss.item(), abs=1e-5)
    # SGD of one step: the update is the gradient of the loss, clipped to norm 1 as TRL does.
    loss.backward()
    gradient = {name: parameter.grad for name, parameter in plain.named_parameters()}
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
    start = parameters(make_model())
    for name, after in parameters(model).items():
        step = 0.05 * gradient[name] * min(1.0, 1.0 / (norm + 1e-6))
        torch.testing.assert_close(start[name] - after, step.float(), atol=2e-6, rtol=1e-3)


def test_one_temperature_in_sampling_and_in_both_passes(run_trainer: Run, make_model: Callable[..., Any]) -> None:
    _, seen, _ = run_trainer(completions=canned("SSFF"), temperature=2.0, max_steps=1)
    scored, plain = seen.scored[0], make_model(dtype=torch.float64)
    head = plain.lm_head.weight
    plain.lm_head.weight = torch.nn.Parameter(head / 2.0)  # logits / temperature; the embedding keeps its own
    for pair, row in enumerate(scored.plan.rollout.tolist()):
        ids = scored.rollouts.completion_ids[row]
        expected = plain_token_kl(plain, scored.prompt_ids[row], scored.teacher_prompt_ids[pair], ids)
        assert scored.evidence.token_kl[pair, : len(ids)].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo"])
def test_every_accepted_loss_trains_off_policy_too(run_trainer: Run, loss_type: str) -> None:
    _, seen, model = run_trainer(
        completions=canned("SSFF"), loss_type=loss_type, num_iterations=2, steps_per_generation=2, max_steps=4
    )
    assert all(i["advantages"].dim() == 2 for i in seen.inputs)
    assert all(torch.isfinite(p).all() for p in model.parameters())


# ---- what must not matter ----


def rows_of(inputs: dict[str, Tensor]) -> list[tuple[int, ...]]:
    """The completions of a micro-batch, without padding."""
    pairs = zip(inputs["completion_ids"].tolist(), inputs["completion_mask"].tolist(), strict=True)
    return [tuple(ids[: sum(mask)]) for ids, mask in pairs]


def rows_by_text(seen: Any) -> dict[tuple[int, ...], list[float]]:
    """Per-token advantages of every rollout that was trained on, by its ids."""
    table: dict[tuple[int, ...], list[float]] = {}
    for inputs in seen.inputs:
        for ids, advantages in zip(rows_of(inputs), inputs["advantages"].tolist(), strict=True):
            table[ids] = advantages[: len(ids)]
    return table


def assert_close_tables(a: dict[Any, list[float]], b: dict[Any, list[float]], atol: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    for key, values in a.items():
        assert values == pytest.approx(b[key], abs=atol)


@pytest.mark.parametrize(
    "change",
    [
        {"pad_to_multiple_of": 16},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8},
        {"teacher_max_tokens": 1},
        {"teacher_prefix_sharing": "off"},
        {"teacher_prefix_sharing": "cached"},
        {"teacher_timing": "loss"},
        {"num_iterations": 2, "max_steps": 2},
    ],
    ids=lambda change: " ".join(f"{k}={v}" for k, v in change.items()),
)
def test_padding_micro_batches_and_the_way_of_scoring_do_not_matter(run_trainer: Run, change: dict[str, Any]) -> None:
    common = {"completions": canned(MIXED), "per_device_train_batch_size": 16, "max_steps": 1, "loss_type": "dapo"}
    _, seen, model = run_trainer(**common)
    _, other, other_model = run_trainer(**{**common, **change})
    assert_close_tables(rows_by_text(seen), rows_by_text(other))
    if "num_iterations" not in change:
        assert sum(other.losses).item() == pytest.approx(seen.losses[0].item(), abs=1e-6)
        for (name, a), b in zip(parameters(model).items(), parameters(other_model).values(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=name)


def test_the_order_of_the_groups_does_not_matter(run_trainer: Run) -> None:
    """The same groups in another order, each with the demonstration it had."""
    one = canned(MIXED)
    _, seen, _ = run_trainer(completions=one, per_device_train_batch_size=16, max_steps=1, rows=prompt_rows(1) * 4)

    def moved(batch: int, row: int) -> list[int]:
        return one(batch, (row + 4) % 16)

    class FixedChoice:
        """SC-GRPO whose plan follows the rows."""

        def __init__(self, inner: Any, plan: Any) -> None:
            self.inner, self.fixed = inner, plan

        def plan(self, groups: Any, rng: Any) -> Any:
            from scgrpo.credit import Plan

            old = self.fixed
            return Plan((old.rollout - 4) % 16, (old.demonstration - 4) % 16, old.verified)

        def assign(self, groups: Any, plan: Any, evidence: Any) -> Any:
            return self.inner.assign(groups, plan, evidence)

    from scgrpo import SCGRPO

    _, other, _ = run_trainer(
        completions=moved,
        per_device_train_batch_size=16,
        max_steps=1,
        rows=prompt_rows(1) * 4,
        trainer_options={"credit_method": FixedChoice(SCGRPO(), seen.scored[0].plan)},
    )
    assert_close_tables(rows_by_text(seen), rows_by_text(other))


def test_micro_batch_scope_takes_each_threshold_from_its_own_micro_batch(run_trainer: Run) -> None:
    options = {
        "completions": canned("SSFFSSSF"),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 1,
    }
    _, seen, _ = run_trainer(credit_scope="micro_batch", **options)
    scored = seen.scored[0]
    shift = {i: scored.evidence.token_kl[pair] for pair, i in enumerate(scored.plan.rollout.tolist())}
    ids_of = {tuple(ids): i for i, ids in enumerate(scored.rollouts.completion_ids)}
    cs = []
    for inputs in seen.inputs:
        rows = rows_of(inputs)
        values = [d for ids in rows for d in shift[ids_of[ids]][: len(ids)].tolist()]
        c = plain_quantile(values, 0.75)
        cs.append(c)
        for row, ids in enumerate(rows):
            d = shift[ids_of[ids]][: len(ids)]
            base = scored.credit.base[ids_of[ids]]
            expected = (base * d / (d + c)).tolist()
            assert inputs["advantages"][row, : len(ids)].tolist() == pytest.approx(expected, abs=1e-5)
    assert abs(cs[0] - cs[1]) > 1e-4
    _, whole, _ = run_trainer(**options)
    assert {round(float(c), 6) for c in cs}.isdisjoint({round(whole.scored[0].credit.metrics["threshold"], 6)})


def test_the_same_seed_twice_is_bitwise_equal(run_trainer: Run) -> None:
    options = {"max_steps": 3, "optim": "adamw_torch", "learning_rate": 1e-2}
    (first, _, a), (second, _, b) = run_trainer(**options), run_trainer(**options)
    for (name, x), y in zip(parameters(a).items(), parameters(b).values(), strict=True):
        assert torch.equal(x, y), name
    drop = {
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
        "step_time",
        "credit/teacher_pass_s",
        "compute/seconds",
        "compute/cpu_seconds",
        *(f"timing/{part}_s" for part in ("sampling", "scoring", "recording")),
    }
    for x, y in zip(first.state.log_history, second.state.log_history, strict=True):
        assert {k: v for k, v in x.items() if k not in drop} == {k: v for k, v in y.items() if k not in drop}
