"""What the documentation shows is what the code does: quotes are equal, snippets run."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from commands import check_commands

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DOCS = sorted((ROOT / "docs").rglob("*.md"))


@pytest.fixture(autouse=True)
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a snippet registers is gone after its test."""
    from scgrpo.credit import methods
    from scgrpo.tasks import registry

    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run_blocks(name: str, blocks: list[str]) -> dict[str, Any]:
    """Execute snippets one after another as a module of their own (dataclasses look their module up)."""
    module = sys.modules[name] = types.ModuleType(name)
    for block in blocks:
        exec(compile(block, name, "exec"), module.__dict__)
    return module.__dict__


def test_readme_quotes_the_method_as_it_is() -> None:
    source = (ROOT / "src/scgrpo/credit/sc_grpo.py").read_text()
    method = re.search(r"# \[method\]\n(.*?)\n *# \[/method\]", source, re.DOTALL)
    assert method is not None
    assert method.group(1).strip() in [block.strip() for block in python_blocks(README)]


def test_ci_runs_the_readmes_test_command() -> None:
    commands = re.findall(r"```bash\n(.*?)\n```", README)
    test_command = next(command for command in commands if "pytest" in command)
    assert test_command in (ROOT / ".ci/run").read_text().splitlines()


def test_links_in_the_documentation_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_names_every_recipe_and_page() -> None:
    from scgrpo.cli.arguments import recipe_names

    for name in recipe_names():
        assert f"`{name}`" in README
    index = README + (ROOT / "docs/benchmarks.md").read_text()
    for page in DOCS:
        assert f"{page.parent.name}/{page.name}" in index


def test_the_commands_for_clusters_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """By accelerate, TRL and this package; of verl's overrides, the keys that are ours."""
    monkeypatch.chdir(ROOT)
    seen = check_commands((ROOT / "docs/clusters.md").read_text(), ROOT)
    assert {"accelerate", "sbatch", "python", "scgrpo", "pip", "ray"} == set(seen)


def test_readme_python_use_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippet as it stands, but for the model (none can be downloaded here) and the size of the run."""
    from scgrpo.tiny.random_model import write_random_model

    monkeypatch.chdir(tmp_path)
    model = write_random_model(tmp_path / "model")
    code = next(block for block in python_blocks(README) if "SCGRPOTrainer(" in block)
    for old, new in {
        '"Qwen/Qwen3-0.6B"': repr(str(model)),
        "max_completion_length=64": "max_completion_length=4, max_steps=1, use_cpu=True, bf16=False, report_to=[]",
    }.items():
        assert old in code
        code = code.replace(old, new)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    assert run_blocks("docs_readme", [code])["args"].credit == "sc_grpo"


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_documentation_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(f"docs_{page.stem}", python_blocks(page.read_text()))


def test_the_documented_credit_method_averages_weights_by_position() -> None:
    import torch

    from scgrpo.credit import Evidence, Groups, Plan, create_credit_method

    run_blocks("docs_credit_methods", python_blocks((ROOT / "docs/credit_methods.md").read_text()))
    groups = Groups(
        group=torch.zeros(3, dtype=torch.long),
        solved=torch.tensor([True, True, False]),
        graded=torch.ones(3, dtype=torch.bool),
        truncated=torch.zeros(3, dtype=torch.bool),
        lengths=torch.full((3,), 5),
        mask=torch.ones(3, 5, dtype=torch.bool),
        advantages=torch.tensor([0.5, 0.5, -1.0]),
        micro_batch=torch.zeros(3, dtype=torch.long),
    )
    plan = Plan(torch.arange(3), torch.tensor([1, 0, 0]), torch.ones(3, dtype=torch.bool))
    kl = torch.arange(15.0).view(3, 5)
    evidence = Evidence(kl, kl, kl, kl)
    averaged = create_credit_method("by_position", {}).assign(groups, plan, evidence)
    plain = create_credit_method("sc_grpo", {}).assign(groups, plan, evidence)
    assert not torch.equal(averaged.weights, plain.weights)
    torch.testing.assert_close(averaged.weights, plain.weights.mean(0).expand(3, -1))


def test_the_page_of_credit_methods_names_them_all() -> None:
    from scgrpo.credit import credit_method_names

    page = (ROOT / "docs/credit_methods.md").read_text()
    for name in credit_method_names():
        assert f"| `{name}`" in page
