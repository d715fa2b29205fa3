"""Commands that documentation shows, taken apart the way the programs named would take them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from scgrpo.cli.arguments import Parsed, parse_train

MODULE = "scgrpo.cli.main"


def shell_commands(text: str) -> list[list[str]]:
    """The words of every command in the bash blocks of a page, without variables set before it."""
    commands = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
                words.pop(0)
            if words:
                commands.append(words)
    return commands


@dataclass(frozen=True)
class Launch:
    """`accelerate launch`, as accelerate understands it.

    Attributes:
        args: its resolved settings, those of the configuration file too.
        environment: what it would set for each process.
        train: arguments of `scgrpo train`.
    """

    args: Any
    environment: dict[str, str]
    train: list[str]


def parse_launch(words: Sequence[str]) -> Launch:
    """Of `accelerate launch ...` that starts `scgrpo train`."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    assert list(words[:2]) == ["accelerate", "launch"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(list(words[2:])))
    assert args.module
    assert args.training_script == MODULE
    assert args.training_script_args[0] == "train"
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        own, environment = prepare_deepspeed_cmd_env(args)
        assert own is None, "a launcher of DeepSpeed's own, not torchrun"
    else:
        environment = prepare_multi_gpu_env(args)
    return Launch(args, environment, args.training_script_args[1:])


def parse_of_all(train: Sequence[str], processes: int) -> Parsed:
    """`scgrpo train` arguments, with the batch of that many processes in this one; on any machine."""
    divisible = "221760"  # by whatever one process might have
    one = parse_train([*train, "--dry-run", "--generation_batch_size", divisible]).trainer
    rollouts = one.per_device_train_batch_size * one.gradient_accumulation_steps * processes
    return parse_train([*train, "--dry-run", "--generation_batch_size", str(rollouts)])


def parse_vllm_serve(words: Sequence[str]) -> Any:
    """Of `trl vllm-serve ...`."""
    from trl.scripts.vllm_serve import make_parser

    assert list(words[:2]) == ["trl", "vllm-serve"]
    settings, left = make_parser().parse_args_and_config(list(words[2:]), return_remaining_strings=True)
    assert left == []
    return settings


def parse_verl(words: Sequence[str]) -> dict[str, str]:
    """Overrides of `python -m verl.trainer.main_ppo ...`, without the `+` of new keys."""
    assert list(words[:3]) == ["python", "-m", "verl.trainer.main_ppo"] or list(words[:3]) == [
        "python3",
        "-m",
        "verl.trainer.main_ppo",
    ]
    given, recipe = list(words[3:]), {}
    if given[0] == "--config-dir":
        _, folder, flag, name, *given = given
        assert flag == "--config-name"
        assert (Path(folder) / f"{name}.yaml").is_file()
        recipe = {"trainer.v1.trainer_mode": "scgrpo"}  # tests/cluster/test_recipes.py reads them
    overrides = recipe | dict(word.split("=", 1) for word in given)
    assert overrides["trainer.v1.trainer_mode"] == "scgrpo"
    own = {key for key in overrides if ".scgrpo." in key}
    assert all(key.startswith("+") for key in own), "new keys need a leading + in hydra"
    return {key.lstrip("+"): value for key, value in overrides.items()}


def known_settings() -> set[str]:
    """Names under `trainer.v1.scgrpo`."""
    from scgrpo.integrations.verl.settings import VerlSettings

    return {field.name for field in fields(VerlSettings)}


def check_commands(text: str, root: Path) -> list[str]:
    """Take every command of a page apart; names of the programs.

    Raises:
        AssertionError, SystemExit, ConfigError: one that would not be understood, or that nobody checks.
    """
    seen = []
    for words in shell_commands(text):
        match words:
            case ["accelerate", "launch", *_]:
                launch = parse_launch(words)
                parse_of_all(launch.train, int(launch.args.num_processes))
            case ["python", "-m", "torch.distributed.run", *rest]:
                processes = int(rest[rest.index("--nproc_per_node") + 1])
                assert rest[rest.index("-m") + 1 : rest.index("-m") + 3] == [MODULE, "train"]
                parse_of_all(rest[rest.index("-m") + 3 :], processes)
            case ["scgrpo", "train", *rest]:
                parse_train([*rest, "--dry-run"])
            case ["scgrpo", command, *_]:
                from scgrpo.cli.main import COMMANDS

                assert command in COMMANDS
            case ["trl", *_]:
                parse_vllm_serve(words)
            case ["sbatch", "--nodes", nodes, script, *rest]:
                assert (root / script).is_file()
                parse_of_all(rest, 8 * int(nodes))
            case ["python" | "python3", "-m", "verl.trainer.main_ppo", *_]:
                own = [key.rpartition(".")[2] for key in parse_verl(words) if ".scgrpo." in key]
                assert set(own) <= known_settings(), own
            case ["pip", "install", *_] | ["ray", "start" | "status", *_] | ["export", *_]:
                pass
            case _:
                raise AssertionError(f"nobody checks {words}")
        seen.append(words[0])
    return seen
