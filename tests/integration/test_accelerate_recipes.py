"""The configurations under recipes/accelerate, read by accelerate itself."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from commands import Launch, check_commands, parse_launch, parse_of_all, parse_vllm_serve

from scgrpo.cli.main import main
from scgrpo.integrations.trl.evidence import offloads_weights, shares_weights

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes/accelerate"
CONFIGS = {"ddp": DistributedType.MULTI_GPU, "fsdp2": DistributedType.FSDP, "zero3": DistributedType.DEEPSPEED}
TRAIN = ["-m", "scgrpo.cli.main", "train", "--config", "dapo-math-qwen3-8b"]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Launch]:
    """`accelerate launch` with a configuration; afterwards this process has the environment it would give."""
    monkeypatch.chdir(ROOT)

    def launch(name: str, *flags: str) -> Launch:
        parsed = parse_launch(["accelerate", "launch", "--config_file", str(FOLDER / f"{name}.yaml"), *flags, *TRAIN])
        for variable in parsed.environment.keys() - os.environ.keys():
            monkeypatch.setenv(variable, parsed.environment[variable])
        return parsed

    return launch


def test_there_are_no_others() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_reads_it_and_knows_every_key(name: str, launched: Callable[..., Launch]) -> None:
    path = FOLDER / f"{name}.yaml"
    config = load_config_from_file(str(path))  # raises for unknown keys of the first level
    assert config.distributed_type == CONFIGS[name]
    assert (config.num_machines, config.num_processes, config.mixed_precision) == (1, 8, "bf16")
    parser = launched(name).args
    for section in ("fsdp_config", "deepspeed_config"):
        for key, value in yaml.safe_load(path.read_text()).get(section, {}).items():
            assert getattr(parser, key) == value, "a key that the launcher does not know is dropped without a word"


def test_fsdp2_is_fsdp_2(launched: Callable[..., Launch]) -> None:
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import OffloadPolicy
    from torch.distributed.fsdp.fully_sharded_data_parallel import StateDictType

    launched("fsdp2")
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert type(plugin.cpu_offload) is OffloadPolicy  # none; CPUOffloadPolicy is one of its kind
    assert plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT
    assert "transformer_auto_wrap_policy" in str(plugin.auto_wrap_policy)


def test_zero3_is_stage_3_without_offloading(
    launched: Callable[..., Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import DeepSpeedPlugin
    from accelerate.utils import imports

    # Without DeepSpeed too: the plugin reads settings alone.
    monkeypatch.setattr(imports, "is_deepspeed_available", lambda: True)
    monkeypatch.setattr("accelerate.utils.dataclasses.DeepSpeedPlugin.set_deepspeed_weakref", lambda self: None)
    launched("zero3")
    plugin = DeepSpeedPlugin()
    zero = plugin.deepspeed_config["zero_optimization"]
    assert (plugin.zero_stage, zero["stage"]) == (3, 3)
    assert zero["offload_param"]["device"] == "none"
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    assert plugin.zero3_init_flag is True
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED, state=SimpleNamespace(deepspeed_plugin=plugin)
    )
    assert shares_weights(accelerator)  # type: ignore[arg-type]
    assert not offloads_weights(accelerator)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("machines", [1, 2, 4])
def test_more_machines_by_flags(name: str, machines: int, launched: Callable[..., Launch]) -> None:
    flags = ["--num_machines", str(machines), "--num_processes", str(8 * machines)]
    where = ["--machine_rank", str(machines - 1), "--main_process_ip", "10.0.0.1", "--main_process_port", "29511"]
    args = launched(name, *flags, *where).args
    assert int(args.nproc_per_node) == 8
    if machines > 1:
        assert (int(args.nnodes), args.node_rank) == (machines, machines - 1)
        assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", "10.0.0.1:29511")


@pytest.mark.parametrize("processes", [8, 16, 32])
def test_the_update_keeps_its_rollouts(processes: int) -> None:
    """64, by the rule that the page gives."""
    steps = ["--gradient_accumulation_steps", str(64 // processes)]
    trainer = parse_of_all([*TRAIN[3:], *steps], processes).trainer
    assert trainer.generation_batch_size == 64
    assert trainer.num_generations == 8


@pytest.mark.parametrize(
    "options",
    [
        ["--gradient_accumulation_steps", "8"],
        ["--vllm_mode", "server", "--vllm_server_base_url", "http://localhost:8000", "--use_vllm", "true"],
    ],
    ids=["colocated", "vllm server"],
)
def test_a_dry_run_of_what_they_start_passes(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TRAIN[2:], *options, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "ok  right answer" in shown
    if "server" in options:
        assert "vllm_mode: 'server'" in shown
        assert "vllm_server_base_url: 'http://localhost:8000'" in shown


def test_the_commands_of_the_page_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    seen = check_commands((FOLDER / "README.md").read_text(), ROOT)
    assert {"accelerate", "trl", "sbatch", "python"} <= set(seen)


# ---- SLURM ----


def stand_in(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{script}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Runs train.sbatch with stand-ins for what it starts; returns what was started, where."""
    folder, log = tmp_path / "bin", tmp_path / "log"
    folder.mkdir()
    stand_in(folder, "scontrol", 'printf "%s\\n" ${3//,/ }\n')
    # srun OPTIONS COMMAND: the command once per node of --nodelist.
    stand_in(
        folder,
        "srun",
        "while [[ $1 == --* ]]; do if [[ $1 == *=* ]]; then shift; else\n"
        "  [[ $1 == --nodelist ]] && list=$2; shift 2; fi; done\n"
        'id=0; for node in ${list//,/ }; do SLURM_NODEID=$id NODE=$node "$@"; id=$((id + 1)); done\n',
    )
    program = "import json, os, sys; print(json.dumps([os.environ['NODE'], *sys.argv[1:]]))"
    for name in ("accelerate", "trl"):
        stand_in(folder, name, f'python3 -c "{program}" {name} "$@" >> {log}\n')

    def run(nodes: str, *arguments: str, **variables: str) -> list[dict[str, Any]]:
        log.write_text("")
        environment = {**os.environ, **variables, "PATH": f"{folder}:{os.environ['PATH']}"}
        script = str(FOLDER / "train.sbatch")
        subprocess.run(
            ["bash", script, *arguments],
            env={**environment, "SLURM_JOB_NODELIST": nodes},
            check=True,
            timeout=120,
            cwd=ROOT,
        )
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        return [{"node": node, "words": words} for node, *words in lines]

    monkeypatch.chdir(ROOT)
    return run


def test_slurm_starts_a_launcher_on_every_node(slurm: Callable[..., list[dict[str, Any]]]) -> None:
    started = slurm("n1,n2,n3", "--config", "dapo-math-qwen3-8b", "--note", "two words")
    assert [one["node"] for one in started] == ["n1", "n2", "n3"]
    for rank, one in enumerate(started):
        launch = parse_launch(one["words"])
        assert (int(launch.args.nnodes), launch.args.node_rank, int(launch.args.nproc_per_node)) == (3, rank, 8)
        assert launch.args.rdzv_endpoint == "n1:29500"
        assert launch.environment["FSDP_VERSION"] == "2"
        assert launch.train == ["--config", "dapo-math-qwen3-8b", "--note", "two words"]


def test_slurm_with_a_server_leaves_it_the_first_node(slurm: Callable[..., list[dict[str, Any]]]) -> None:
    started = slurm(
        *("n1,n2,n3", "--config", "dapo-math-qwen3-8b"),
        SCGRPO_VLLM="1",
        SCGRPO_ACCELERATE="recipes/accelerate/zero3.yaml",
    )
    (server,) = (one for one in started if one["words"][0] == "trl")
    training = [one for one in started if one["words"][0] == "accelerate"]
    assert server["node"] == "n1"
    settings = parse_vllm_serve(server["words"])
    assert (settings.tensor_parallel_size, settings.port) == (8, 8000)
    assert [one["node"] for one in training] == ["n2", "n3"]
    launches = [parse_launch(one["words"]) for one in training]
    assert [launch.args.node_rank for launch in launches] == [0, 1]
    assert all(launch.args.use_deepspeed for launch in launches)
    assert all(launch.args.rdzv_endpoint == "n2:29500" for launch in launches)
    trainer = parse_of_all(launches[0].train, 16).trainer
    assert (trainer.use_vllm, trainer.vllm_mode) == (True, "server")
    assert trainer.vllm_server_base_url == "http://n1:8000"
