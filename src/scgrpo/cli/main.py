"""The commands of `scgrpo`. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence

from scgrpo.errors import ScgrpoError


def _train(argv: Sequence[str]) -> int:
    from scgrpo.cli.loading import heavy_imports

    with heavy_imports():
        from scgrpo.cli.train import train_command

    return train_command(argv)


def _sweep(argv: Sequence[str]) -> int:
    from scgrpo.cli.loading import heavy_imports

    with heavy_imports():
        from scgrpo.cli.sweep.command import sweep_command

    return sweep_command(argv)


def _eval(argv: Sequence[str]) -> int:
    from scgrpo.cli.evaluate import eval_command

    return eval_command(argv)


def _report(argv: Sequence[str]) -> int:
    from scgrpo.cli.report import report_command

    return report_command(argv)


def _compare(argv: Sequence[str]) -> int:
    from scgrpo.cli.compare import compare_command

    return compare_command(argv)


def _tiny(argv: Sequence[str]) -> int:
    from scgrpo.cli.tiny import tiny_command

    return tiny_command(argv)


def _tasks(argv: Sequence[str]) -> int:
    from scgrpo.cli.tasks import tasks_command

    return tasks_command(argv)


def _testbed(argv: Sequence[str]) -> int:
    from scgrpo.cli.testbed import testbed_command

    return testbed_command(argv)


def _sandbox(argv: Sequence[str]) -> int:
    from scgrpo.cli.sandbox import sandbox_command

    return sandbox_command(argv)


def _appworld(argv: Sequence[str]) -> int:
    from scgrpo.cli.appworld import appworld_command

    return appworld_command(argv)


def _verl_data(argv: Sequence[str]) -> int:
    from scgrpo.cli.verl_data import verl_data_command

    return verl_data_command(argv)


def _doctor(argv: Sequence[str]) -> int:
    from scgrpo.cli.doctor import doctor_command

    return doctor_command(argv)


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (_train, "train a model: --config RECIPE [any GRPOConfig or SCGRPOConfig flag] [--dry-run]"),
    "sweep": (_sweep, "train methods x seeds x learning rates x testbeds of one YAML, in parallel, resumable"),
    "eval": (_eval, "evaluate a model on tasks: Avg@k and Pass@k with intervals, resumable; --compare two of them"),
    "report": (_report, "write the HTML page (or --png curves) of a run"),
    "compare": (_compare, "compare the methods of sweeps: differences with intervals, tests, curves, forest plot"),
    "tasks": (_tasks, "what can be trained on: `tasks list | show NAME | check NAME`"),
    "tiny": (_tiny, "the embedded tiny model: `tiny build` makes it again, `tiny path` says where it is"),
    "sandbox": (_sandbox, "the sandbox for untrusted code: `sandbox check` attacks it, `--bench` measures it"),
    "testbed": (_testbed, "tasks with a known first error and fresh base models: `testbed list | build | show`"),
    "doctor": (_doctor, "what is installed here; `doctor --verl [settings]`: whether verl would train with us"),
    "appworld": (_appworld, "the benchmark AppWorld: `appworld setup` installs it, `appworld check` plays a task"),
    "verl-data": (_verl_data, "write a task's rows as the data set verl trains on"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 1 interrupted or found wanting, 2 an error the user can act on."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"scgrpo {version('scgrpo')}")
        return 0
    if arguments[0] not in COMMANDS:
        print(f"scgrpo: unknown command {arguments[0]!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    return run_command(COMMANDS[arguments[0]][0], arguments[1:])


def run_command(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a command as a process of its own needs it; its exit code, see `main`."""
    # Must precede the import of torch: idle OpenMP threads that spin cost a busy machine an order of magnitude.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # transformers announces the renaming of settings that TRL still uses.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        return command(argv)
    except ScgrpoError as error:
        print(f"error{_where()}: {error.problem}\n{error.remedy}".rstrip(), file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "scgrpo").startswith("scgrpo"):
            raise
        print(f"error{_where()}: this command needs {error.name!r}, which is not installed.", file=sys.stderr)
        print('Install it with: pip install "scgrpo[all]"', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was written so far is kept", file=sys.stderr)
        return 1


def _where() -> str:
    """Which of several processes speaks, unless it is the first; what fails on all of them is said by each."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f" (process {rank})"


def _usage() -> str:
    lines = [f"  {name:9s} {text}" for name, (_, text) in COMMANDS.items()]
    return "usage: scgrpo COMMAND ...\n\n" + "\n".join(lines) + "\n\nscgrpo COMMAND --help lists its options."


if __name__ == "__main__":
    sys.exit(main())
