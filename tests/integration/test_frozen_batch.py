"""The TRL integration gives a frozen batch the credit on record; tests/cluster asks the same of verl's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from frozen_batch import METHODS, credit_on_trl, load


@pytest.mark.parametrize("method", METHODS)
def test_the_frozen_batch_gets_the_credit_on_record(method: str, tmp_path: Path) -> None:
    expected, found = load()["credit"][method], credit_on_trl(method, tmp_path)
    for name in ("weights", "advantages"):
        assert (torch.tensor(found[name]) - torch.tensor(expected[name])).abs().max() < 1e-6
    weights = torch.tensor(expected["weights"])
    assert len(weights[weights != 1].unique()) > 20  # it is about something
