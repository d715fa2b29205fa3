"""Whose weights the teacher has, number by number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from scgrpo.errors import ConfigError
from scgrpo.teacher.weights import TeacherWeights, check_teacher_weights


class Policy(nn.Module):
    """One trainable number and one frozen one."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.zeros(1, dtype=dtype))
        self.frozen = nn.Parameter(torch.tensor([5.0], dtype=dtype), requires_grad=False)


def train(policy: Policy, teacher: TeacherWeights, steps: int, start: int = 0) -> list[float]:
    """Every optimizer step adds 1 to the policy; the teacher's number after each."""
    seen = []
    for step in range(start + 1, start + steps + 1):
        with torch.no_grad():
            policy.free += 1
        teacher.after_step(step)
        with teacher.applied():
            seen.append(policy.free.item())
            assert policy.frozen.item() == 5
        assert policy.free.item() == step
    return seen


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("current", [1, 2, 3, 4, 5, 6, 7]),
        ("frozen", [0, 0, 0, 0, 0, 0, 0]),
        ("snapshot", [0, 0, 3, 3, 3, 6, 6]),
        # 0.75 * previous + 0.25 * policy
        ("ema", [0.25, 0.6875, 1.265625, 1.94921875, 2.7119140625, 3.533935546875, 4.40045166015625]),
    ],
)
def test_the_teacher_after_every_step(kind: Any, expected: list[float]) -> None:
    policy = Policy()
    teacher = TeacherWeights(policy, kind, snapshot_steps=3, decay=0.75)
    with teacher.applied():
        assert policy.free.item() == 0
    assert train(policy, teacher, 7) == expected


def test_the_policys_weights_come_back_even_after_an_exception() -> None:
    policy = Policy()
    teacher = TeacherWeights(policy, "frozen")
    with torch.no_grad():
        policy.free.fill_(9)
    with pytest.raises(RuntimeError, match=r"the pass saw 0\.0"), teacher.applied():
        raise RuntimeError(f"the pass saw {policy.free.item()}")
    assert policy.free.item() == 9
    with teacher.applied():
        assert policy.free.item() == 0


def test_swapping_makes_no_copy_and_keeps_the_optimizer_valid() -> None:
    policy = Policy()
    teacher = TeacherWeights(policy, "frozen")
    parameter, storage = policy.free, policy.free.data_ptr()
    optimizer = torch.optim.SGD([policy.free], lr=1.0)
    with teacher.applied():
        assert policy.free is parameter
        assert policy.free.data_ptr() != storage
    assert policy.free.data_ptr() == storage
    policy.free.backward(torch.ones(1))  # type: ignore[no-untyped-call]
    optimizer.step()
    assert policy.free.item() == -1
    with teacher.applied():
        assert policy.free.item() == 0


@pytest.mark.parametrize("kind", ["snapshot", "ema", "frozen"])
def test_a_resumed_teacher_goes_on_as_before(kind: Any) -> None:
    straight = Policy()
    expected = train(straight, TeacherWeights(straight, kind, snapshot_steps=3, decay=0.75), 7)

    policy = Policy()
    teacher = TeacherWeights(policy, kind, snapshot_steps=3, decay=0.75)
    first = train(policy, teacher, 4)
    saved = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    assert set(saved) == {"free"}  # trainable parameters only

    resumed = Policy()
    with torch.no_grad():
        resumed.free.copy_(policy.free)
    second = TeacherWeights(resumed, kind, snapshot_steps=3, decay=0.75)
    second.load_state_dict(saved)
    assert first + train(resumed, second, 3, start=4) == expected


def test_current_keeps_nothing() -> None:
    teacher = TeacherWeights(Policy(), "current")
    assert teacher.state_dict() == {}
    teacher.load_state_dict({})


@pytest.mark.parametrize(
    "state",
    [{}, {"other": torch.zeros(1)}, {"free": torch.zeros(1), "other": torch.zeros(1)}, {"free": torch.zeros(2)}],
    ids=["empty", "renamed", "more", "another shape"],
)
def test_a_foreign_state_is_refused_and_changes_nothing(state: dict[str, torch.Tensor]) -> None:
    teacher = TeacherWeights(Policy(), "frozen")
    with pytest.raises(ConfigError, match=r"do not fit this model \(for example .*(free|other)"):
        teacher.load_state_dict(state)
    assert teacher.state_dict()["free"].item() == 0


def test_a_state_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="Resume with the same teacher_weights"):
        TeacherWeights(Policy(), "current").load_state_dict(TeacherWeights(Policy(), "ema").state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_moving_average_in_half_precision_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match=r"half precision never moves.*teacher_weights=snapshot"):
        TeacherWeights(Policy(dtype), "ema")
    TeacherWeights(Policy(dtype), "snapshot")
    TeacherWeights(Policy(torch.float64), "ema")
    # The reason: 0.9997 * 1 + 0.0003 * 1.1 is 1 again.
    assert torch.ones(1, dtype=dtype).lerp(torch.tensor([1.1], dtype=dtype), 0.0003).item() == 1


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="Unknown teacher_weights 'mean'"):
        check_teacher_weights("mean", 10, 0.99)
    with pytest.raises(ConfigError, match="teacher_snapshot_steps is 0"):
        check_teacher_weights("snapshot", 0, 0.99)
    for decay in (1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match=rf"teacher_ema_decay is {decay}"):
            check_teacher_weights("ema", 10, decay)
    check_teacher_weights("ema", 1, 0.0)


def test_tied_and_adapter_weights_swap(make_model: Any) -> None:
    """With LoRA only the adapter is kept; the frozen start has an adapter that does nothing."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = peft.get_peft_model(make_model(), peft.LoraConfig(r=2, target_modules=["q_proj"])).eval()
    teacher = TeacherWeights(model, "frozen")
    assert teacher.state_dict()
    assert all("lora_" in name for name in teacher.state_dict())
    ids = torch.arange(8, 16)[None]
    with torch.no_grad():
        start = model(input_ids=ids).logits
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.5
        moved = model(input_ids=ids).logits
        with teacher.applied():
            assert torch.equal(model(input_ids=ids).logits, start)
        assert torch.equal(model(input_ids=ids).logits, moved)
    assert not torch.allclose(start, moved)

    tied = make_model()
    teacher = TeacherWeights(tied, "frozen")
    with torch.no_grad():
        start = tied(input_ids=ids).logits
        tied.model.embed_tokens.weight += 0.3
        with teacher.applied():
            assert tied.lm_head.weight is tied.model.embed_tokens.weight
            assert torch.equal(tied(input_ids=ids).logits, start)
