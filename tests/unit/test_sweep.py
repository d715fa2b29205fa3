"""What a sweep decides without training: reading studies, the grid, tuning, the folder, the worker processes."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from scgrpo.cli.arguments import parse_train
from scgrpo.cli.sweep import command
from scgrpo.cli.sweep.directory import SweepDirectory
from scgrpo.cli.sweep.display import Estimate
from scgrpo.cli.sweep.plan import Job, Plan, flags, merged
from scgrpo.cli.sweep.pool import Ended, Pool
from scgrpo.cli.sweep.study import parse_study, read_study
from scgrpo.cli.sweep.tuning import choose
from scgrpo.errors import ConfigError, RunError
from scgrpo.runs.results import Compute, Point, RunResult, read_results

RAW: dict[str, Any] = {
    "name": "study",
    "settings": {"max_steps": 6, "eval_problems": 8},
    "testbeds": {
        "reach": {
            "recipe": "reach",
            "bases": {"a": {"model_name_or_path": "tiny"}, "b": {"model_name_or_path": "tiny-random"}},
            "settings": {"max_steps": 5},
        }
    },
    "methods": {"grpo": {"method": "grpo"}, "half": {"method": "sc_grpo", "credit_mix": 0.5}},
    "tune": {
        "learning_rates": ["6e-4", 1.5e-4],
        "seeds": [100, 101],
        "bases": ["a"],
        "settings": {"task_options": {"eval_part": "tune"}, "max_steps": 4},
    },
    "final": {"seeds": [0, 1], "more_seeds": {"grpo": [1, 2]}, "settings": {"task_options": {"eval_part": "final"}}},
}


def changed(**parts: Any) -> dict[str, Any]:
    """RAW with `a__b=value` for RAW["a"]["b"]; ... takes a key out."""
    raw = copy.deepcopy(RAW)
    for path, value in parts.items():
        *way, last = path.split("__")
        part = raw
        for step in way:
            part = part[step]
        if value is ...:
            del part[last]
        else:
            part[last] = value
    return raw


def plan_of(**parts: Any) -> Plan:
    return Plan(parse_study(changed(**parts)))


def ended(job: Job, score: float | None = 0.5, error: str = "", **changes: Any) -> RunResult:
    failed = dataclasses.replace(job.failed(error), **changes)
    if error:
        return failed
    compute = Compute(4, 10, 10, 20, 0, seconds=2.0, cpu_seconds=2.0)
    return dataclasses.replace(failed, status="done", curve=[Point(4, 10, score, score, 8)], compute=compute)


def results_of(*results: RunResult) -> dict[Any, RunResult]:
    return {result.key: result for result in results}


# ---- the YAML ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"methods": ...}, "the sweep lacks methods"),
        ({"methds": {}}, r"unknown key 'methds' \(did you mean methods"),
        ({"final__seed": [1]}, r"final: unknown key 'seed' \(did you mean seeds"),
        ({"final__seeds": []}, "final.seeds is .* at least one"),
        ({"final__seeds": [0, 0]}, "names a value twice"),
        ({"final__seeds": [0, True]}, "integers from 0"),
        ({"tune__learning_rates": [0.0]}, "number above 0"),
        ({"tune__learning_rates": ["fast"]}, "tune.learning_rates holds 'fast'"),
        ({"final__learning_rates": [1e-4]}, "beside tune"),
        ({"settings__learning_rate": 1e-4}, "two places for one number"),
        ({"settings__seed": 1}, "settings.seed: the sweep itself decides"),
        ({"methods__half__credit_mix": None}, "methods.half.credit_mix has no value"),
        ({"methods": {}}, "no methods"),
        ({"methods": {"a/b": {}}}, "cannot name a folder"),
        ({"tune__bases": ["c"]}, "tune.bases names 'c'"),
        ({"final__more_seeds": {"gpo": [3]}}, r"names 'gpo', no method \(did you mean grpo"),
        ({"keep": ["modell"]}, r"did you mean model\?"),
        ({"timeout_s": "soon"}, "timeout_s holds 'soon'"),
        ({"testbeds__reach__bases": {}}, "bases is empty"),
        ({"testbeds__reach": "reach"}, "Give a mapping"),
    ],
)
def test_a_study_that_cannot_be_is_refused_with_its_place(parts: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        parse_study(changed(**parts))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"methods__half__credit_mixx": 1}, r"methods.half: unknown .* credit_mixx \(did you mean credit_mix"),
        ({"methods__half__method": "sc_gpro"}, "tune/reach/a/half: .*'sc_gpro'.* Did you mean 'sc_grpo'"),
        ({"methods__half__loss_type": "luspo"}, "half: .*cannot carry credit per token"),
        ({"methods__half__dtype": "int7"}, "half: argument --dtype: invalid choice: 'int7'"),
        ({"testbeds__reach__recipe": "reech"}, "Did you mean 'reach'"),
        (
            {"tune__settings__task_options": {"eval_part": "final"}},
            "reach: 8 of the 8 problems that learning rates are tuned on",
        ),
        ({"final__settings__task_options": {"prt": 1}}, "has no option 'prt'"),
        ({"settings__eval_problems": 0}, "no held-out problems"),
    ],
)
def test_a_study_that_cannot_train_is_refused_before_anything_runs(parts: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        plan_of(**parts)


def test_files_that_hold_no_study(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Cannot read"):
        read_study(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_study(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(ConfigError, match="Give a mapping"):
        read_study(tmp_path / "list.yaml")


def test_the_documented_study_and_the_shipped_one_can_be_read() -> None:
    root = Path(__file__).resolve().parents[2]
    (example,) = re.findall(r"```yaml\n(.*?)```", (root / "docs" / "sweeps.md").read_text(), re.DOTALL)
    study = parse_study(yaml.safe_load(example))
    assert study.tune is not None
    assert study.tune.learning_rates == [1.5e-4, 3e-4, 6e-4]
    assert study.seeds("final", "grpo") == list(range(8))
    plan = Plan(read_study(root / "benchmarks" / "learning.yaml")[0])
    assert len(plan.jobs({})) == 2 * 3 * 5


# ---- the grid ----------------------------------------------------------------------------------------------


def test_every_combination_is_one_run_and_later_settings_win() -> None:
    plan = plan_of()
    jobs = plan.tune_jobs()
    assert len({job.key for job in jobs}) == len(jobs) == 2 * 2 * 2, "methods, rates, seeds; one base"
    job = next(job for job in jobs if job.key == ("tune", "reach", "a", "half", 1.5e-4, 101))
    parsed = parse_train(job.argv)
    assert (parsed.trainer.learning_rate, parsed.trainer.seed, parsed.trainer.max_steps) == (1.5e-4, 101, 4)
    assert (parsed.trainer.credit, parsed.trainer.credit_mix) == ("sc_grpo", 0.5)
    assert parsed.run.task_settings == {"eval_part": "tune"}
    assert (parsed.run.rollouts_every, parsed.run.compare_with) == (0, ["none"])
    assert job.settings == RAW["methods"]["half"]
    final = plan.final_jobs(("reach", "grpo"), 6e-4)
    assert [(job.base, job.seed) for job in final] == [(base, seed) for base in "ab" for seed in (0, 1, 2)]
    assert parse_train(final[0].argv).trainer.max_steps == 5, "of the testbed, over those of all"
    assert parse_train(final[0].argv).trainer.credit == "uniform", "the method replaces the recipe's credit"
    assert final[0].tuned == [1.5e-4, 6e-4]
    assert final[-1].path == "runs/final/reach/b/grpo/lr-0.0006/seed-2"


def test_rates_without_tuning() -> None:
    untuned = {"tune": ..., "final__settings": {}, "final__more_seeds": {}}
    (recipe,) = {job.learning_rate for job in plan_of(**untuned).jobs({})}
    assert recipe == 6e-4, "the recipe's own"
    several = plan_of(**untuned, final__learning_rates=[1e-3, "3e-4"]).jobs({})
    assert {job.learning_rate for job in several} == {3e-4, 1e-3}
    assert all(job.tuned == [] for job in several)
    own = plan_of(**untuned, methods__half__learning_rate="2e-4").jobs({})
    assert {job.method: job.learning_rate for job in own} == {"grpo": 6e-4, "half": 2e-4}


def test_settings_become_flags() -> None:
    assert flags({"a": True, "b": [1, "x"], "c": {"d": None}, "e": 1e-5}) == [
        *("--a", "true", "--b", "1", "x", "--c", '{"d": null}', "--e", "1e-05"),
    ]
    assert merged({"a": {"b": 1, "c": 2}, "d": 1}, {"a": {"c": 3}, "d": 2}) == {"a": {"b": 1, "c": 3}, "d": 2}


def test_half_a_sweep_has_every_method() -> None:
    plan = plan_of(tune=..., final__settings={}, final__more_seeds={})
    first = plan.jobs({})[:4]
    assert {(job.method, job.base) for job in first} == {(m, b) for m in ("grpo", "half") for b in "ab"}


# ---- tuning ------------------------------------------------------------------------------------------------


def tuned(scores: dict[float, list[float | None]], method: str = "grpo") -> list[RunResult]:
    """Tune runs of a method; a score of None: the run failed."""
    jobs = {(job.learning_rate, job.seed): job for job in plan_of().tune_jobs(("reach", method))}
    return [
        ended(jobs[rate, 100 + place], score, "" if score is not None else "NonFiniteError: NaN")
        for rate, of_rate in scores.items()
        for place, score in enumerate(of_rate)
    ]


@pytest.mark.parametrize(
    ("scores", "rate", "end"),
    [
        ({1.5e-4: [0.2, 0.4], 6e-4: [0.1, 0.6]}, 6e-4, "largest"),
        ({1.5e-4: [0.2, 0.5], 6e-4: [0.1, 0.6]}, 1.5e-4, "smallest"),
        ({1.5e-4: [0.0, 0.0], 6e-4: [0.9, None]}, 1.5e-4, "smallest"),
        ({1.5e-4: [None, None], 6e-4: [0.9, None]}, None, ""),
    ],
    ids=["highest mean", "the smaller of equals", "a rate that failed is none", "none is left"],
)
def test_the_rate_chosen(scores: dict[float, list[float | None]], rate: float | None, end: str) -> None:
    choice = choose([6e-4, 1.5e-4], tuned(scores))
    assert (choice.rate, choice.end) == (rate, end)
    assert list(choice.rates) == [1.5e-4, 6e-4]


def test_a_rate_inside_the_grid_has_nothing_beyond_it() -> None:
    jobs = plan_of(tune__learning_rates=[1e-4, 2e-4, 3e-4]).tune_jobs(("reach", "grpo"))
    choice = choose([1e-4, 2e-4, 3e-4], [ended(job, job.learning_rate == 2e-4) for job in jobs])
    assert (choice.rate, choice.end) == (2e-4, "")


def test_final_runs_follow_the_tuning_of_their_own_method() -> None:
    plan = plan_of()
    assert {job.stage for job in plan.jobs({})} == {"tune"}
    results = results_of(*tuned({1.5e-4: [0.1, 0.2], 6e-4: [0.3, 0.4]}))
    final = [job for job in plan.jobs(results) if job.stage == "final"]
    assert {(job.method, job.learning_rate) for job in final} == {("grpo", 6e-4)}
    assert len(final) == plan.num_final(("reach", "grpo")) == 6


def test_a_method_whose_every_rate_fails_is_reported_as_failed() -> None:
    plan = plan_of()
    results = results_of(*tuned({1.5e-4: [None, 0.2], 6e-4: [0.3, None]}, "half"))
    failures = plan.doomed(results)
    assert {(f.stage, f.method, f.learning_rate, f.status) for f in failures} == {("final", "half", 1.5e-4, "failed")}
    assert len(failures) == plan.num_final(("reach", "half"))
    assert all("every learning rate failed in tuning; the last: NonFiniteError" in f.error for f in failures)
    assert not plan.doomed(results | results_of(*failures)), "told once"


# ---- the folder --------------------------------------------------------------------------------------------


def test_results_survive_and_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    raw = changed(tune=..., final__settings={}, final__more_seeds={})
    plan, directory = Plan(parse_study(raw)), SweepDirectory(tmp_path)
    jobs = plan.jobs({})
    directory.remember(raw, plan)
    for job in jobs:
        directory.add(ended(job))
    again = SweepDirectory(tmp_path)
    assert again.results == directory.results
    assert not again.changed(plan)

    other = copy.deepcopy(raw)
    other["methods"]["half"]["credit_mix"] = 0.25
    other["testbeds"]["reach"]["bases"]["b"]["max_completion_length"] = 16
    differing = again.changed(Plan(parse_study(other)))
    by_cell = {(key[2], key[3]): names for key, names in differing.items()}
    assert by_cell == {
        ("a", "half"): ["credit_mix"],
        ("b", "half"): ["credit_mix", "max_completion_length"],
        ("b", "grpo"): ["max_completion_length"],
    }
    (tmp_path / "sweep.json").unlink()
    assert {key[3] for key in again.changed(Plan(parse_study(other)))} == {"half"}, "a result knows its own method"
    assert again.supersede(differing) == len(differing)
    assert read_results(tmp_path / "results.jsonl") == [again.results[key] for key in again.results]
    assert len(read_results(tmp_path / "superseded.jsonl")) == len(differing)


def test_a_wider_grid_leaves_no_run_of_the_old_choice_behind(tmp_path: Path) -> None:
    plan, directory = plan_of(), SweepDirectory(tmp_path)
    for result in tuned({1.5e-4: [0.1, 0.2], 6e-4: [0.3, 0.4]}):
        directory.add(result)
    for job in plan.final_jobs(("reach", "grpo"), 6e-4):
        directory.add(ended(job))
    assert directory.follow_tuning(plan) == []
    wider = plan_of(tune__learning_rates=[1.5e-4, 6e-4, 1.2e-3])
    assert directory.follow_tuning(wider) == [], "not before the new rate is tried"
    new = [job for job in wider.tune_jobs(("reach", "grpo")) if job.learning_rate == 1.2e-3]
    for job, score in zip(new, (0.2, 0.2), strict=True):
        directory.add(ended(job, score))
    directory.follow_tuning(wider)
    final = [result for result in read_results(tmp_path / "results.jsonl") if result.stage == "final"]
    assert len(final) == 6
    assert all(result.tuned == [1.5e-4, 6e-4, 1.2e-3] for result in final), "the choice stands, among more rates"
    for job in new:
        directory.supersede([job.key])
        directory.add(ended(job, 0.9))
    assert "6 final runs under another learning rate" in directory.follow_tuning(wider)[0]
    assert not [key for key in SweepDirectory(tmp_path).results if key[0] == "final"]


def test_failures_are_tried_again_on_demand(tmp_path: Path) -> None:
    directory = SweepDirectory(tmp_path)
    for result in tuned({1.5e-4: [0.1, None]}):
        directory.add(result)
    assert directory.forget_failures() == 1
    assert [result.status for result in SweepDirectory(tmp_path).results.values()] == ["done"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        SweepDirectory(tmp_path).locked(),
        pytest.raises(RunError, match="Another process"),
        SweepDirectory(tmp_path).locked(),
    ):
        pass
    with SweepDirectory(tmp_path).locked():
        pass


# ---- the whole command, without training --------------------------------------------------


class NoTraining:
    """In place of the pool: every job ends at once with the score that a test gives it."""

    score: Callable[[Job], float | None]

    def __init__(self, *_: Any, **__: Any) -> None:
        self.running: list[dict[str, Any]] = []
        self.idle = True

    def __enter__(self) -> NoTraining:
        return self

    def __exit__(self, *_: object) -> None:
        assert not self.running

    def submit(self, job: dict[str, Any]) -> None:
        self.running.append(job)
        self.idle = len(self.running) < 3

    def wait(self, seconds: float) -> Ended:
        given = self.running.pop()
        self.idle = True
        job = Job(**given["job"])
        score = type(self).score(job)
        if score is None:
            return Ended(given, None, "the worker process ended (signal SIGKILL)", 1.0)
        return Ended(given, ended(job, score).to_record(), "", 1.0)


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    monkeypatch.setattr(command, "Pool", NoTraining)

    def run(score: Callable[[Job], float | None], *options: str, **parts: Any) -> int:
        monkeypatch.setattr(NoTraining, "score", staticmethod(score), raising=False)
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(changed(**parts)))
        return command.sweep_command([str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out"), *options])

    return run


def final_rates(out: Path) -> set[tuple[str, float, str]]:
    results = read_results(out / "results.jsonl")
    return {(r.method, r.learning_rate, r.status) for r in results if r.stage == "final"}


def test_a_wider_grid_takes_effect_in_the_same_start(sweep: Callable[..., int], tmp_path: Path) -> None:
    assert sweep(lambda job: 100 * job.learning_rate) == 0
    assert final_rates(tmp_path / "out") == {(method, 6e-4, "done") for method in ("grpo", "half")}
    assert sweep(lambda job: 100 * job.learning_rate, tune__learning_rates=[1.5e-4, 6e-4, 1.2e-3]) == 0
    assert final_rates(tmp_path / "out") == {(method, 1.2e-3, "done") for method in ("grpo", "half")}
    results = read_results(tmp_path / "out" / "results.jsonl")
    assert {tuple(result.tuned) for result in results if result.stage == "final"} == {(1.5e-4, 6e-4, 1.2e-3)}
    assert len(read_results(tmp_path / "out" / "superseded.jsonl")) == 6 + 4


def test_failed_runs_stay_failed_until_they_are_tried_again(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def flaky(job: Job) -> float | None:
        return None if job.method == "half" else 0.5

    assert sweep(flaky) == 1
    shown = capsys.readouterr().out
    assert "every rate failed" in shown
    assert "8 run(s) failed" in shown
    assert ("half", 1.5e-4, "failed") in final_rates(tmp_path / "out")
    assert sweep(lambda job: 0.5) == 1, "not by themselves"
    assert sweep(lambda job: 0.5, "--retry-failed") == 0
    assert final_rates(tmp_path / "out") == {(method, 1.5e-4, "done") for method in ("grpo", "half")}


def test_a_changed_study_is_refused_or_made_again(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert sweep(lambda job: 0.5) == 0
    other = {"methods__half": {"method": "sc_grpo", "credit_mix": 0.25}}
    with pytest.raises(RunError, match=r"8 finished run\(s\).*/half: credit_mix"):
        sweep(lambda job: 0.7, **other)
    assert sweep(lambda job: 0.7, "--redo-changed", **other) == 0
    assert "8 run(s) with other settings will be made again" in capsys.readouterr().out
    scores = {(r.method, r.curve[-1].avg_at_k) for r in read_results(tmp_path / "out" / "results.jsonl")}
    assert scores == {("grpo", 0.5), ("half", 0.7)}
    assert sweep(lambda job: None, methods={"half": other["methods__half"]}, final__more_seeds={}) == 0
    assert "other result(s) in results.jsonl are no longer part of this study" in capsys.readouterr().out


# ---- the workers -------------------------------------------------------------------------------------------


def test_a_device_or_a_core_for_each_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "usable_cores", lambda: 8)
    assert command._environments(True, None) == [{"OMP_NUM_THREADS": "1"}] * 8
    assert command._environments(True, 2) == [{"OMP_NUM_THREADS": "4"}] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [e["CUDA_VISIBLE_DEVICES"] for e in command._environments(False, None)] == ["2", "5"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in command._environments(False, 3)] == ["2", "5", "2"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(command.torch.cuda, "device_count", lambda: 3)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in command._environments(False, None)] == ["0", "1", "2"]


def test_the_time_left_comes_from_runs_that_have_ended() -> None:
    estimate = Estimate(workers=2)
    group, other = ("reach", "grpo"), ("reach", "half")
    assert estimate.left(group, 0, 0) == 0
    assert math.isnan(estimate.left(group, 1, 0))
    estimate.seen("tune", group, 10.0)
    assert estimate.left(group, 2, 2) == 20, "final runs as tune runs, while there is nothing better"
    assert estimate.left(other, 0, 2) == 10
    estimate.seen("final", group, 30.0)
    assert estimate.left(group, 2, 2) == 40


WORKER = """
import json, os, sys, threading, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    exec(job["code"])
    print(json.dumps({"pid": os.getpid(), "name": os.environ.get("NAME")}), flush=True)
"""


@pytest.fixture
def work(tmp_path: Path) -> Callable[..., list[Ended]]:
    """What becomes of jobs, one after the other on one worker."""

    def run(*codes: str, worker: str = WORKER, **options: Any) -> list[Ended]:
        found: list[Ended] = []
        program = (sys.executable, "-c", worker)
        with Pool([{"NAME": "first"}], tmp_path / "workers", worker=program, **options) as pool:
            for code in codes:
                pool.submit({"code": code})
                while pool.running:
                    event = pool.wait(0.05)
                    found += [event] if event else []
        return found

    return run


def test_jobs_run_in_one_process_until_it_dies(work: Callable[..., list[Ended]]) -> None:
    crash = "print('no room', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)"
    one, two, three, four = work("pass", "pass", crash, "pass")
    assert one.answer is not None
    assert two.answer is not None
    assert four.answer is not None
    assert one.answer["pid"] == two.answer["pid"] != four.answer["pid"]
    assert one.answer["name"] == "first"
    assert three.answer is None
    assert "SIGKILL" in three.error
    assert "no room" in three.error


def test_a_hung_job_ends_at_its_limit(work: Callable[..., list[Ended]]) -> None:
    hung, after = work("time.sleep(60)", "pass", timeout_s=0.5)
    assert "longer than timeout_s=0.5" in hung.error
    assert hung.seconds < 30
    assert after.answer is not None


def test_a_worker_that_cannot_start_stops_the_sweep(work: Callable[..., list[Ended]]) -> None:
    with pytest.raises(RunError, match=r"could not start: .*exit code 3.*broken install"):
        work("pass", worker="import sys; print('broken install', file=sys.stderr); sys.exit(3)")


def test_workers_end_with_the_sweep(tmp_path: Path) -> None:
    with Pool([{}], tmp_path, worker=(sys.executable, "-c", WORKER)) as pool:
        pool.submit({"code": "time.sleep(60)"})
    assert pool._workers[0].process.poll() is not None


def test_a_worker_whose_sweep_is_killed_ends_in_the_middle_of_a_run() -> None:
    import subprocess

    code = (
        "import sys, time; from scgrpo.cli.sweep.worker import _jobs; lines = _jobs(sys.stdin); "
        "print(lines.get(), flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout:
        process.stdin.write(json.dumps({"job": 1}).encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == {"job": 1}
        start = time.monotonic()
        process.stdin.close()
        assert process.wait(timeout=30) == 1
    assert time.monotonic() - start < 20


def test_runs_from_other_weights_are_not_mixed_in(tmp_path: Path) -> None:
    directory = SweepDirectory(tmp_path)
    directory.check_models({"testbed:reach:1": "aa"})
    directory.check_models({"testbed:reach:1": "aa", "testbed:reach:2": "bb"})
    with pytest.raises(RunError, match="testbed:reach:2 came out with other weights"):
        SweepDirectory(tmp_path).check_models({"testbed:reach:1": "aa", "testbed:reach:2": "cc"})
