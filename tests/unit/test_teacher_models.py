"""A function run inside a wrapper's forward, and what is left of that afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from scgrpo.teacher.models import through_wrapper


class Wrapper(nn.Module):
    """Calls the model inside its forward, as FSDP1, DDP and DeepSpeed's engine do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model
        self.inside = False

    def forward(self) -> Any:
        self.inside = True
        try:
            return self.module()
        finally:
            self.inside = False


@pytest.fixture(params=["as the class has it", "of its own"])
def model(request: Any) -> nn.Module:
    layer = nn.Linear(2, 2)
    if request.param == "of its own":  # accelerate replaces the forward of an instance
        layer.forward = lambda x: 2 * x
    return layer


def test_the_function_runs_inside_and_may_call_the_model(model: nn.Module) -> None:
    wrapper, states = Wrapper(model), torch.ones(1, 2)
    expected, own = model(states), dict(vars(model))
    inside, found = through_wrapper(wrapper, model)(lambda: (wrapper.inside, model(states)))
    assert inside
    assert torch.equal(found, expected)
    assert vars(model) == own


def test_under_fsdp2_the_model_wraps_itself(model: nn.Module) -> None:
    calls: list[str] = []
    own = dict(vars(model))
    model.register_forward_pre_hook(lambda *_: calls.append("before"))
    model.register_forward_hook(lambda *_: calls.append("after"))
    through_wrapper(model, model)(lambda: calls.append("function"))
    assert calls == ["before", "function", "after"]
    assert vars(model).get("forward") == own.get("forward")


@pytest.mark.parametrize("where", ["function", "wrapper"])
def test_the_forward_is_put_back_after_an_error(model: nn.Module, where: str) -> None:
    wrapper, own = Wrapper(model), dict(vars(model))

    def fail(*_: Any) -> None:
        raise RuntimeError(where)

    if where == "wrapper":
        wrapper.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match=where):
        through_wrapper(wrapper, model)(fail)
    assert vars(model) == own
