"""`scgrpo compare` on synthetic sweeps with known effects."""

from __future__ import annotations

import csv
import dataclasses
import html
import re
from pathlib import Path
from statistics import fmean

import pytest
from synthetic_sweep import GRID, fail, make_results, write_sweep

from scgrpo.cli.main import main
from scgrpo.errors import ConfigError, RunError
from scgrpo.report.compare import Options, write_comparison
from scgrpo.report.compare.charts import forests, learning_charts
from scgrpo.report.compare.contrasts import Family
from scgrpo.report.compare.ranking import rank, rate_warnings
from scgrpo.report.compare.sources import read_sources
from scgrpo.report.compare.study import Rates, gather
from scgrpo.report.compare.words import p_text, sentence
from scgrpo.runs import RunDirectory
from scgrpo.runs.results import FILE_NAME, RunResult

EFFECTS = {"grpo": 0.0, "sc_grpo": -0.08, "dapo": 0.08, "rlsd": 0.0}
FAST = Options(replicates=400)


def words_of(page: Path) -> str:
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", page.read_text()).split()))


def rows_of(page: Path, name: str = "contrasts.csv") -> list[dict[str, str]]:
    with (page.parent / name).open(newline="") as file:
        return list(csv.DictReader(file))


def compare(folder: Path, results: list[RunResult], options: Options = FAST) -> Path:
    return write_comparison([write_sweep(folder, results)], None, options).page


def contrasts(folder: Path, results: list[RunResult], options: Options = FAST) -> list[Family]:
    return write_comparison([write_sweep(folder, results)], None, options).families


def final(families: list[Family], method: str, testbed: str | None = "reach") -> str:
    """The sentence on a method."""
    found = [c for f in families if f.testbed == testbed for c in f.contrasts if c.method == method]
    return sentence(found[0], FAST.margin)


def test_known_effects_are_found(tmp_path: Path) -> None:
    results = make_results(EFFECTS, testbeds=("reach", "countdown"))
    page = compare(tmp_path / "sweep", results)
    assert page == tmp_path / "sweep" / "compare" / "index.html"
    words, source = words_of(page), page.read_text()
    assert re.search(r"On reach \(3 bases × 5 seeds, 40 problems\) sc_grpo ends 0\.\d{3} below grpo \[0\.", words)
    assert re.search(r"Over all testbeds \(2 testbeds, 6 units of testbed and base, 30 pairs\) dapo ends", words)
    assert "No run failed." in words
    assert "No pair is missing." in words
    assert "<script" not in source
    assert "http" not in source
    rows = rows_of(page)
    verdicts = {(r["outcome"], r["testbed"], r["method"]): r["verdict"] for r in rows}
    for testbed in ("reach", "countdown"):
        for outcome in ("final", "area_steps", "area_tokens"):
            assert verdicts[outcome, testbed, "sc_grpo"] == "lower"
            assert verdicts[outcome, testbed, "dapo"] == "higher"
        assert verdicts["final", testbed, "rlsd"] == "not shown"
    # 6 units, 3 contrasts: 2 / 64 * 3 is above 0.05
    assert verdicts["final", "pooled", "dapo"] == "not shown"
    assert "6 paired units cannot give a p below .031, .094 after correction for 3 contrasts" in words
    for name in ("curves.png", "forest.png"):
        assert (page.parent / name).read_bytes().startswith(b"\x89PNG")


def test_the_difference_is_the_mean_of_the_pairs(tmp_path: Path) -> None:
    results = make_results(EFFECTS, testbeds=("reach", "countdown"))
    rows = rows_of(compare(tmp_path, results))
    ends = {(r.testbed, r.method, r.base, r.seed): r.curve[-1].avg_at_k or 0.0 for r in results}
    pairs = {
        testbed: [v - ends[t, "grpo", b, s] for (t, m, b, s), v in ends.items() if m == "dapo" and t == testbed]
        for testbed in ("reach", "countdown")
    }
    found = {r["testbed"]: float(r["difference"]) for r in rows if (r["outcome"], r["method"]) == ("final", "dapo")}
    assert found["reach"] == pytest.approx(fmean(pairs["reach"]))
    assert found["pooled"] == pytest.approx(fmean(pairs["reach"] + pairs["countdown"]))
    runs = rows_of(tmp_path / "compare" / "index.html", "runs.csv")
    assert len(runs) == len(results)
    assert {float(r["final"]) for r in runs} == set(ends.values())
    # straight lines between evaluations at equal distances
    curve = [p.avg_at_k or 0.0 for p in results[0].curve]
    first = next(
        r for r in runs if (r["testbed"], r["method"], r["base"], r["seed"]) == ("reach", "grpo", "base-0", "0")
    )
    assert float(first["area_steps"]) == pytest.approx((sum(curve) - (curve[0] + curve[-1]) / 2) / 4)
    assert float(first["area_tokens"]) == pytest.approx(float(first["area_steps"]))


def test_the_order_of_lines_is_irrelevant(tmp_path: Path) -> None:
    results = make_results({"grpo": 0.0, "dapo": 0.05}, bases=2, seeds=3)
    there, back = compare(tmp_path / "a", results), compare(tmp_path / "b", results[::-1])
    for name in ("index.html", "contrasts.csv", "runs.csv"):
        assert (there.parent / name).read_bytes() == (back.parent / name).read_bytes()


def test_swapping_method_and_reference_flips_the_signs(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, make_results({"grpo": 0.0, "dapo": 0.05}))
    there, back = (
        write_comparison([folder], tmp_path / name, Options(reference=name, replicates=400)).families[0].contrasts[0]
        for name in ("grpo", "dapo")
    )
    assert (there.method, back.method) == ("dapo", "grpo")
    ends = [there.difference.value, there.difference.low, there.difference.high]
    assert ends == pytest.approx([-back.difference.value, -back.difference.high, -back.difference.low], abs=1e-9)
    assert there.difference.p == back.difference.p
    assert (there.verdict, back.verdict) == ("higher", "lower")


def test_failed_runs_and_missing_pairs_are_told(tmp_path: Path) -> None:
    results = make_results(EFFECTS, bases=2, seeds=4)
    gone = [r for r in results if (r.method, r.base, r.seed) != ("grpo", "base-1", 0)]
    broken = [fail(r) if (r.method, r.base, r.seed) == ("sc_grpo", "base-0", 2) else r for r in gone]
    families = contrasts(tmp_path, broken)
    text = final(families, "sc_grpo")
    assert "(2 bases, 6 pairs, 40 problems)" in text
    assert "1 run of sc_grpo failed and is not in it. 2 pairs are missing." in text
    assert "1 pair is missing." in final(families, "dapo")
    words = words_of(tmp_path / "compare" / "index.html")
    assert "sc_grpo on reach, base base-0, seed 2: failed (NonFiniteError: the loss is NaN)" in words
    assert "base base-1, seed 0: grpo has no run" in words
    assert "sc_grpo against grpo on reach: 2 without a pair" in words
    row = next(r for r in rows_of(tmp_path / "compare" / "index.html") if r["method"] == "sc_grpo")
    assert (row["pairs"], row["failed_method"], row["failed_reference"]) == ("6", "1", "0")
    assert [r["status"] for r in rows_of(tmp_path / "compare" / "index.html", "runs.csv")].count("failed") == 1


def test_a_method_that_always_fails_has_no_number(tmp_path: Path) -> None:
    results = [fail(r) if r.method == "rlsd" else r for r in make_results(EFFECTS, bases=1, seeds=6)]
    text = final(contrasts(tmp_path, results), "rlsd")
    assert "rlsd and grpo have no pair of runs: nothing is known. 6 runs of rlsd failed and are not in it." in text
    assert "rlsd: no run ended with a result." in words_of(tmp_path / "compare" / "index.html")
    # what was not tested does not enter the correction
    assert {r["family_size"] for r in rows_of(tmp_path / "compare" / "index.html")} == {"2"}


def test_untuned_methods_are_not_ranked(tmp_path: Path) -> None:
    page = compare(tmp_path, make_results(EFFECTS, tuned=[]))
    words = words_of(page)
    assert "All methods: same learning rate for all (0.0003), not tuned: no ranking." in words
    assert "Both at the same learning rate, not tuned: it speaks of this rate only." in words
    assert "<ol" not in page.read_text()
    # tables keep the order of the names
    assert [r["method"] for r in rows_of(page) if r["outcome"] == "final"] == ["dapo", "rlsd", "sc_grpo"]


def test_only_methods_tuned_alike_stand_in_one_order(tmp_path: Path) -> None:
    results = (
        make_results(EFFECTS) + make_results({"late": 0.2}, tuned=[3e-4, 1e-3]) + make_results({"raw": 0.3}, tuned=[])
    )
    testbeds, _ = gather(results, FAST)
    rankings, reasons = rank(testbeds[0])
    assert [place.method for place in rankings[0].places][0::3] == ["dapo", "sc_grpo"]
    assert {place.method for place in rankings[0].places} == set(EFFECTS)
    assert reasons == [
        "late: no other method was tuned over the same learning rates (0.0003, 0.001).",
        "raw: its learning rate was not tuned, or not in one way; it is in no order.",
    ]
    assert rate_warnings(testbeds[0]) == [
        "late: the learning rate 0.0003 is at an end of those tried (0.0003, 0.001); a better one may lie beyond."
    ]
    assert "Their learning rates were not tuned alike" in final(contrasts(tmp_path, results), "late")


def test_methods_are_ranked_over_what_all_have() -> None:
    results = make_results({"grpo": 0.0, "dapo": 0.1}, bases=1, seeds=3)
    results[0] = fail(results[0])  # grpo, seed 0
    (ranking,), _ = rank(gather(results, FAST)[0][0])
    ends = [r.curve[-1].avg_at_k for r in results if r.method == "dapo" and r.seed > 0]
    assert ranking.num_cells == 2
    assert ranking.places[0].mean == pytest.approx(fmean(e for e in ends if e is not None))
    assert (ranking.places[1].method, ranking.places[1].num_failed) == ("grpo", 1)


def test_likeness_of_learning_rates() -> None:
    grid, other = tuple(GRID), (1e-4, 3e-4)
    tuned = Rates((3e-4,), (grid,))
    assert tuned.like(Rates((1e-3,), (grid,))) == "tuned"
    assert tuned.like(Rates((3e-4,), (other,))) == "unlike"
    assert tuned.like(Rates((3e-4,), (grid, other))) == "unlike"
    given = Rates((3e-4,), ((),))
    assert given.like(given) == "same_rate"
    assert given.like(Rates((1e-3,), ((),))) == "unlike"
    assert given.like(tuned) == "unlike"
    assert Rates((3e-4, 1e-3), (grid,)).at_an_end
    assert not tuned.at_an_end


def test_five_pairs_show_nothing_and_say_so(tmp_path: Path) -> None:
    text = final(contrasts(tmp_path, make_results({"grpo": 0.0, "dapo": 0.2}, bases=1)), "dapo")
    assert "not shown either way" in text
    assert "Nothing could be shown here: 5 paired units cannot give a p below .062; at least 6 are needed." in text
    one = final(contrasts(tmp_path / "one", make_results({"grpo": 0.0, "dapo": 0.2}, bases=1, seeds=1)), "dapo")
    assert "grpo no interval, Holm p 1.000: not shown either way; one unit says nothing of the spread." in one


def test_bases_that_stand_for_others_are_the_units(tmp_path: Path) -> None:
    options = dataclasses.replace(FAST, bases="random")
    families = contrasts(tmp_path, make_results({"grpo": 0.0, "dapo": 0.2}, bases=7, seeds=2), options)
    assert families[0].contrasts[0].difference.num_units == 7
    assert families[0].contrasts[0].verdict == "higher"
    assert "bases are drawn, with their seeds" in words_of(tmp_path / "compare" / "index.html")


def test_an_excluded_margin_is_said(tmp_path: Path) -> None:
    results = make_results({"grpo": 0.0, "rlsd": 0.0}, spread=0.0, problems=300, k=32)
    text = final(contrasts(tmp_path, results), "rlsd")
    assert "not shown either way; a difference of more than 0.02 in either direction is excluded." in text


def test_results_by_problem_may_be_missing(tmp_path: Path) -> None:
    families = write_comparison(
        [write_sweep(tmp_path, make_results({"grpo": 0.0, "dapo": 0.1}, every_problem=False))], None, FAST
    )
    assert families.families[0].contrasts[0].num_problems == 40
    rows = {r["outcome"]: r for r in rows_of(families.page)}
    assert (rows["final"]["problems"], rows["area_steps"]["problems"]) == ("40", "0")
    assert "The interval is over runs alone" in rows["area_steps"]["sentence"]


def test_problems_that_not_all_runs_have_are_left_out(tmp_path: Path) -> None:
    results = make_results({"grpo": 0.0, "dapo": 0.1})
    last = results[0].curve[-1]
    short = dataclasses.replace(last, problems=last.problems[:30])
    results[0] = dataclasses.replace(results[0], curve=[*results[0].curve[:-1], short])
    assert "10 problems are left out that not all its runs have." in final(contrasts(tmp_path, results), "dapo")


def test_of_lines_with_one_key_the_last_counts(tmp_path: Path) -> None:
    results = make_results({"grpo": 0.0, "dapo": 0.1}, bases=1, seeds=2)
    folder = write_sweep(tmp_path / "a", [fail(results[0]), *results])
    assert read_sources([folder])[0] == sorted(results, key=lambda r: r.key)
    other = write_sweep(tmp_path / "b", [fail(results[0])])
    found, notes = read_sources([folder, other])
    assert [r.status for r in found].count("failed") == 1
    assert notes == ["Runs of which several sweeps have different results: 1. Those of the last sweep given count."]
    assert read_sources([folder, folder / FILE_NAME]) == (read_sources([folder])[0], [])


def test_damage_is_told(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, make_results({"grpo": 0.0, "dapo": 0.1}, bases=1, seeds=2))
    path = folder / FILE_NAME
    whole = path.read_text()
    path.write_text(whole + '{"schema_version": 1, "st')
    assert read_sources([folder])[1] == [f"{tmp_path.name}: results.jsonl, line 5: cut short by a crash, left out."]
    path.write_text("nonsense\n" + whole)
    with pytest.raises(RunError, match="line 1 is not a JSON object"):
        write_comparison([folder])
    path.write_text('{"schema_version": 1, "step": 3}\n' + whole)
    with pytest.raises(RunError, match="is not a result"):
        write_comparison([folder])
    with pytest.raises(RunError, match="There is no"):
        write_comparison([tmp_path / "gone"])


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    results = make_results({"grpo": 0.0, "dapo": 0.1}, bases=1, seeds=2)
    folder = write_sweep(tmp_path / "a", results)
    for options, message in (
        (Options(reference="ppo"), "No run is of the method 'ppo'"),
        (Options(methods=("grpo", "ppo")), "No run is of the method 'ppo'"),
        (Options(methods=("grpo",)), "only the method 'grpo'"),
    ):
        with pytest.raises(ConfigError, match=message):
            write_comparison([folder], None, options)
    with pytest.raises(ConfigError, match="replicates must be"):
        Options(replicates=10)
    twice = write_sweep(tmp_path / "b", [*results, dataclasses.replace(results[0], learning_rate=1e-2)])
    with pytest.raises(ConfigError, match=r"grpo has runs at the learning rates 0\.0003 and 0\.01 on reach"):
        write_comparison([twice])
    tuning = write_sweep(tmp_path / "c", [dataclasses.replace(r, stage="tune") for r in results])
    with pytest.raises(ConfigError, match="no run that counts"):
        write_comparison([tuning])


def test_tuning_runs_and_other_methods_are_left_out_and_told(tmp_path: Path) -> None:
    results = make_results(EFFECTS, bases=1, seeds=2)
    tuning = [dataclasses.replace(r, stage="tune", learning_rate=1e-3) for r in results]
    page = compare(tmp_path, results + tuning, dataclasses.replace(FAST, methods=("sc_grpo", "grpo", "dapo")))
    words = words_of(page)
    assert "8 runs that served to choose learning rates are not in any result." in words
    assert "Not asked for, and left out: rlsd (2) (runs)." in words
    assert [r["method"] for r in rows_of(page) if r["outcome"] == "final"] == ["sc_grpo", "dapo"]


def test_a_second_reference_has_its_own_tables(tmp_path: Path) -> None:
    families = contrasts(tmp_path, make_results(EFFECTS), dataclasses.replace(FAST, against=("dapo",)))
    assert [(f.reference, len(f.contrasts), f.contrasts[0].family) for f in families] == [
        ("grpo", 3, 3),
        ("dapo", 3, 3),
    ]


def test_names_are_text(tmp_path: Path) -> None:
    nasty = '=<b>"$x_1$"</b>'
    page = compare(tmp_path, make_results({"grpo": 0.0, nasty: 0.1}, testbeds=("<i>t</i>",)))
    assert "<b>" not in page.read_text()
    assert nasty in words_of(page)
    assert {r["method"] for r in rows_of(page)} == {f"'{nasty}"}


def test_many_methods_are_spread_over_charts() -> None:
    names = {f"method_{i:02d}": 0.0 for i in range(12)} | {"grpo": 0.0}
    (testbed,), _ = gather(make_results(names, bases=1, seeds=2, problems=5), FAST)
    charts = learning_charts(testbed, "grpo", "step")
    assert [len(chart.lines) for chart in charts] == [6, 6, 3]
    assert all(chart.lines[0].name == "grpo, 2 runs" for chart in charts)
    assert len({chart.y_range for chart in charts}) == 1


def test_curves_are_means_over_the_range_of_all_runs() -> None:
    results = make_results({"grpo": 0.0, "dapo": 0.0}, bases=1, seeds=2, steps=(0, 50, 100))
    results[0] = dataclasses.replace(results[0], curve=results[0].curve[:2])  # ends at 50
    (testbed,), _ = gather(results, FAST)
    line = learning_charts(testbed, "grpo", "step")[0].lines[0]
    assert line.steps == [0, 50]
    ends = [r.curve[1].avg_at_k or 0.0 for r in results if r.method == "grpo"]
    assert line.values[1] == pytest.approx(fmean(ends))
    assert line.low is not None
    # t quantile of one degree of freedom, times half the distance of two values
    assert line.values[1] - line.low[1] == pytest.approx(12.7062 * abs(ends[0] - ends[1]) / 2, rel=1e-4)


def test_a_forest_marks_what_is_shown_and_what_is_not_alike(tmp_path: Path) -> None:
    families = contrasts(tmp_path, make_results(EFFECTS) + make_results({"raw": 0.0}, tuned=[]))
    rows = {row.label: row.is_shown for row in forests(families, 0.02)[0].differences}
    assert rows == {"dapo": True, "rlsd": False, "raw †": False, "sc_grpo": True}


def test_p_values_read_as_in_papers() -> None:
    assert [p_text(p) for p in (0.0004, 0.0123, 0.5, 1.0)] == ["< .001", ".012", ".500", "1.000"]


def write_run(path: Path, label: str, seed: int, scores: list[float], ended: bool = True) -> Path:
    run = RunDirectory.create(path)
    train = {"learning_rate": 1e-3, "seed": seed}
    run.write_config(
        {"label": label, "train": train, "task": {"name": "reach"}, "model": {"name_or_path": "/models/tiny"}}
    )
    for step, name in ((0, "before"), (10, "after" if ended else "during")):
        problems = [
            {"problem_id": f"p{i}", "n": 8, "num_solved": 1, "mean_score": s * step / 10, "num_errors": 0}
            for i, s in enumerate(scores)
        ]
        average = {"value": fmean(scores) * step / 10, "low": None, "high": None}
        run.log_eval(
            {"step": step, "label": name, "task": "reach", "k": 8, "avg_at_k": average, "per_problem": problems}
        )
    return path


def test_run_directories_compare_too(tmp_path: Path) -> None:
    runs = [
        write_run(
            tmp_path / f"{label}-{seed}", label, seed, [base + 0.01 * seed, base], ended=(label, seed) != ("dapo", 3)
        )
        for label, base in (("grpo", 0.5), ("dapo", 0.7))
        for seed in range(4)
    ]
    written = write_comparison(runs, tmp_path / "out", FAST)
    (contrast,) = written.families[0].contrasts
    assert (contrast.testbed, contrast.num_pairs, contrast.failed) == ("reach", 3, (1, 0))
    assert contrast.difference.value == pytest.approx(0.2)
    assert contrast.likeness == "same_rate"
    assert "areas over tokens" not in words_of(written.page)
    row = rows_of(written.page, "runs.csv")[0]
    assert (row["base"], row["area_tokens"], row["tokens_sampled"]) == ("tiny", "", "")
    write_run(tmp_path / "again", "grpo", 0, [0.5, 0.5])
    with pytest.raises(RunError, match="are both grpo on reach, tiny, seed 0"):
        write_comparison([*runs, tmp_path / "again"])
    RunDirectory.create(tmp_path / "bare")
    with pytest.raises(RunError, match="learning rate and seed"):
        write_comparison([tmp_path / "bare"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path, make_results({"grpo": 0.0, "[bold]sc": -0.1}, seeds=3))
    out = tmp_path / "elsewhere"
    assert main(["compare", str(folder), "--out", str(out), "--replicates", "400", "--margin", "0.05"]) == 0
    printed = capsys.readouterr().out
    assert str(out / "index.html") in printed
    assert "[bold]sc" in printed
    assert "lower" in printed
    assert main(["compare", str(folder), "--reference", "ppo"]) == 2
    assert "Choose of: [bold]sc, grpo." in capsys.readouterr().err
