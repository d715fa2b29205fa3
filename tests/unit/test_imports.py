"""What an import costs: the package stays slim. Each case runs in an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"transformers", "trl", "datasets", "matplotlib", "peft", "accelerate", "verl", "pandas", "pyarrow"}
LOADED = (
    "import importlib, json, sys; importlib.import_module({module!r}); "
    "print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
)


def loaded_by(module: str) -> set[str]:
    code = LOADED.format(module=module)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(result.stdout))


@pytest.mark.parametrize("module", ["scgrpo", "scgrpo.report", "scgrpo.runs", "scgrpo.tasks", "scgrpo.errors"])
def test_rooms_without_torch(module: str) -> None:
    loaded = loaded_by(module)
    assert "scgrpo" in loaded
    assert not loaded & (HEAVY | {"torch"})


@pytest.mark.parametrize("module", ["scgrpo.credit", "scgrpo.divergence", "scgrpo.teacher.scoring"])
def test_rooms_with_torch_but_no_framework(module: str) -> None:
    loaded = loaded_by(module)
    assert "torch" in loaded
    assert not loaded & HEAVY


def test_public_names_resolve_on_first_use() -> None:
    import scgrpo
    from scgrpo.credit import SCGRPO
    from scgrpo.divergence import token_kl

    assert scgrpo.SCGRPO is SCGRPO
    assert scgrpo.token_kl is token_kl
    assert {"SCGRPO", "SCGRPOTrainer", "SCGRPOConfig", "evaluate", "token_kl"} <= set(dir(scgrpo))
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = scgrpo.Trainer


def test_a_missing_framework_is_explained() -> None:
    code = (
        "import sys; sys.modules['trl'] = None\n"
        "import scgrpo\n"
        "from scgrpo.errors import MissingExtraError\n"
        "try:\n    scgrpo.SCGRPOConfig\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "scgrpo.SCGRPOConfig needs 'trl'" in result.stdout
    assert 'pip install "scgrpo[trl]"' in result.stdout
