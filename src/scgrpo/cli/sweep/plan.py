"""From a study to runs: what each is given, which are still to do, and what tuning decides between them."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch

from scgrpo.cli.arguments import Parsed, find_recipe, known_keys, parse_train, read_recipe
from scgrpo.cli.setup import load_problem, make_task
from scgrpo.cli.sweep.study import Settings, Study, check_keys
from scgrpo.cli.sweep.tuning import Choice, choose
from scgrpo.errors import ConfigError
from scgrpo.runs.results import RunKey, RunResult, Stage


@dataclass(frozen=True)
class Cell:
    """Runs that differ in learning rate and seed alone."""

    stage: Stage
    testbed: str
    base: str
    method: str

    def __str__(self) -> str:
        return f"{self.stage}/{self.testbed}/{self.base}/{self.method}"


@dataclass(frozen=True)
class Job:
    """One run, in values that JSON has.

    Attributes:
        argv: arguments of `scgrpo train` that make the run.
        settings, tuned: as in `RunResult`.
        path: its run directory, relative to the sweep's.
    """

    stage: Stage
    testbed: str
    base: str
    method: str
    learning_rate: float
    seed: int
    argv: list[str]
    settings: Settings
    tuned: list[float]
    path: str

    @property
    def key(self) -> RunKey:
        return (self.stage, self.testbed, self.base, self.method, self.learning_rate, self.seed)

    @property
    def group(self) -> tuple[str, str]:
        """What is tuned together."""
        return (self.testbed, self.method)

    def failed(self, error: str) -> RunResult:
        """The result of a run that came to nothing."""
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "argv"}
        return RunResult(**{**named, "path": ""}, status="failed", error=error, curve=[], compute=None)


class Plan:
    """Every run of a study, each combination parsed as `scgrpo train` will.

    Attributes:
        settings: of every cell, by its name: the recipe's with those of the study on top.
        use_cpu: whether all runs ask for the CPU.
        models: every starting model by the name its settings give it.

    Raises:
        ConfigError: a combination that cannot be trained, with its place in the study.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        check_keys(study, known_keys())
        self._recipes = {bed.recipe: read_recipe(find_recipe(bed.recipe)) for bed in study.testbeds.values()}
        self._given = {cell: self._merged(cell) for cell in self.cells()}
        self.settings = {str(cell): {**self._recipe(cell), **given} for cell, given in self._given.items()}
        self._parsed = {cell: self._parse(cell) for cell in self.cells()}
        self.use_cpu = all(bool(settings.get("use_cpu")) for settings in self.settings.values())
        self.models = list(dict.fromkeys(parsed.model.model_name_or_path for parsed in self._parsed.values()))
        _check_held_out(self._parsed)

    def cells(self) -> Iterator[Cell]:
        for stage in self.study.stages:
            for testbed in self.study.testbeds:
                for base in self.study.bases(stage, testbed):
                    for method in self.study.methods:
                        yield Cell(stage, testbed, base, method)

    def groups(self) -> list[tuple[str, str]]:
        """Testbed and method of every pair that is tuned on its own."""
        return [(testbed, method) for testbed in self.study.testbeds for method in self.study.methods]

    def tune_jobs(self, group: tuple[str, str] | None = None) -> list[Job]:
        """Runs that try learning rates, of one group or of all."""
        rates = self.study.tune.learning_rates if self.study.tune else []
        return self._jobs("tune", [group] if group else self.groups(), rates, [])

    def final_jobs(self, group: tuple[str, str], rate: float | None) -> list[Job]:
        """Runs of one group that count, with the rate that tuning has chosen (None: the study's own)."""
        if rate is not None:
            tuned = self.study.tune.learning_rates if self.study.tune else []
            return self._jobs("final", [group], [rate], tuned)
        return self._jobs("final", [group], self.study.final.learning_rates, [])

    def choice(self, group: tuple[str, str], results: Mapping[RunKey, RunResult]) -> Choice | None:
        """What tuning came to; None while runs of it are missing."""
        jobs = self.tune_jobs(group)
        if not all(job.key in results for job in jobs):
            return None
        return choose(sorted({job.learning_rate for job in jobs}), [results[job.key] for job in jobs])

    def jobs(self, results: Mapping[RunKey, RunResult]) -> list[Job]:
        """All runs that are known by now, in the order to run them: those of the final stage once their rate is
        chosen; where every rate failed, under the smallest."""
        jobs = self.tune_jobs()
        for group in self.groups():
            if self.study.tune is None:
                jobs += self.final_jobs(group, None)
            elif (choice := self.choice(group, results)) is not None:
                jobs += self.final_jobs(group, min(choice.rates) if choice.rate is None else choice.rate)
        # Seeds before methods, so that half a sweep has every method; tuning first, as others wait for it.
        order = {stage: self._all_seeds(stage) for stage in self.study.stages}
        return sorted(jobs, key=lambda job: (job.stage == "final", order[job.stage].index(job.seed)))

    def num_final(self, group: tuple[str, str]) -> int:
        """Runs of a group that count, whether their rate is known or not."""
        any_rate = 1.0 if self.study.tune else None
        return len(self.final_jobs(group, any_rate))

    def doomed(self, results: Mapping[RunKey, RunResult]) -> list[RunResult]:
        """Failures of the final runs for which every learning rate failed in tuning."""
        failures = []
        for group in self.groups() if self.study.tune else ():
            choice = self.choice(group, results)
            if choice is None or choice.rate is not None:
                continue
            errors = [results[job.key].error for job in self.tune_jobs(group) if results[job.key].error]
            why = f"every learning rate failed in tuning; the last: {errors[-1] if errors else 'no score'}"
            failures += [job.failed(why) for job in self.final_jobs(group, min(choice.rates))]
        return [failure for failure in failures if failure.key not in results]

    def _all_seeds(self, stage: Stage) -> list[int]:
        return list(dict.fromkeys(seed for method in self.study.methods for seed in self.study.seeds(stage, method)))

    def _jobs(
        self, stage: Stage, groups: Collection[tuple[str, str]], rates: Collection[float] | None, tuned: list[float]
    ) -> list[Job]:
        jobs = []
        for testbed, method in groups:
            for base in self.study.bases(stage, testbed):
                cell = Cell(stage, testbed, base, method)
                for rate in [self._parsed[cell].trainer.learning_rate] if rates is None else rates:
                    for seed in self.study.seeds(stage, method):
                        jobs.append(self._job(cell, float(rate), seed, tuned))
        return jobs

    def _job(self, cell: Cell, rate: float, seed: int, tuned: list[float]) -> Job:
        path = f"runs/{cell}/lr-{rate!r}/seed-{seed}"
        return Job(
            *(cell.stage, cell.testbed, cell.base, cell.method),
            learning_rate=rate,
            seed=seed,
            argv=[*self._argv(cell), "--learning_rate", repr(rate), "--seed", str(seed)],
            settings=self.study.methods[cell.method],
            tuned=tuned,
            path=path,
        )

    def _argv(self, cell: Cell) -> list[str]:
        own = {"compare_with": ["none"], "save_strategy": "no"}
        if "rollouts" not in self.study.keep:
            own["rollouts_every"] = 0  # type: ignore[assignment]
        return ["--config", self.study.testbeds[cell.testbed].recipe, *flags({**self._given[cell], **own})]

    def _recipe(self, cell: Cell) -> Settings:
        return self._recipes[self.study.testbeds[cell.testbed].recipe]

    def _merged(self, cell: Cell) -> Settings:
        layers = self.study.layers(cell.stage, cell.testbed, cell.base, cell.method).values()
        given = {key for layer in layers for key in layer}
        # A mapping adds to the recipe's, as it does to those of the layers between.
        below = {k: v for k, v in self._recipe(cell).items() if isinstance(v, Mapping) and k in given}
        return merged(below, *layers)

    def _parse(self, cell: Cell) -> Parsed:
        # This process only looks: it should not take an accelerator that workers will need.
        only_look = ["--use_cpu", "true"] if torch.accelerator.is_available() else []
        said = io.StringIO()
        try:
            with redirect_stderr(said):
                return parse_train([*self._argv(cell), *only_look])
        except ConfigError as error:
            raise ConfigError(f"{cell}: {error.problem}", error.remedy) from error
        except SystemExit as error:  # argparse: a value that is none of its choices, or no number
            reason = said.getvalue().strip().rsplit("error: ", 1)[-1]
            raise ConfigError(f"{cell}: {reason}.", "See `scgrpo train --help`.") from error


def merged(*layers: Mapping[str, Any]) -> Settings:
    """Later layers win; where both have a mapping, key by key."""
    result: Settings = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = {**result[key], **value} if both else value
    return result


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as arguments of `scgrpo train`."""
    arguments = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            values = [json.dumps(value)]
        elif isinstance(value, bool):
            values = [str(value).lower()]
        else:
            values = [str(item) for item in (value if isinstance(value, list) else [value])]
        arguments += [f"--{key}", *values]
    return arguments


def _check_held_out(parsed: Mapping[Cell, Parsed]) -> None:
    """Raise ConfigError unless every run has held-out problems, and those of tuning are not among the final ones."""
    problems: dict[str, set[str]] = {}
    seen: dict[str, dict[str, set[str]]] = {}
    for cell, settings in parsed.items():
        run = settings.run
        if run.task is None or not run.eval_problems:
            raise ConfigError(f"{cell}: no held-out problems to compare on.", "Set task, and eval_problems above 0.")
        data = (run.task_options, run.dataset_name, run.dataset_config, run.dataset_test_split)
        name = json.dumps([run.task, *data, run.eval_problems], sort_keys=True, default=str)
        if name not in problems:
            task = make_task(settings)
            assert task is not None
            try:
                rows = load_problem(settings, task).eval_rows
            finally:
                task.close()
            problems[name] = {json.dumps(row["prompt"], default=str) for row in rows}
        seen.setdefault(cell.testbed, {}).setdefault(cell.stage, set()).update(problems[name])
    for testbed, stages in seen.items():
        shared = stages.get("tune", set()) & stages["final"]
        if shared:
            raise ConfigError(
                f"{testbed}: {len(shared)} of the {len(stages['tune'])} problems that learning rates are tuned on "
                "are among the final ones.",
                "Give tune.settings and final.settings task_options whose held-out problems differ.",
            )
