"""When does the paper's weight do better? Question 4 of docs/study.md: description, from committed results alone.

    python studies/when.py results/main results/recover

writes into results/when: `units.csv`, one line per base model, and `problems.csv`, by testbed how the difference on a
held-out problem goes with what the problem is like. Both speak of Avg@8 at the end of the final runs. What a base is
like comes from `bases.jsonl` there, which `scgrpo testbed show NAME --seed S --json` gave, a line each.

Differences are means over seeds (and, by problem, over bases). How hard a problem is, is its pass rate in the runs of
the *other* methods: taken from either side of the difference, chance alone would make the two go together.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from scgrpo.runs.results import RunResult, read_results
from scgrpo.tasks.countdown import solutions
from scgrpo.tasks.maze import moves_to_win
from scgrpo.tasks.reach import MODULUS, OPERATIONS

OUT = Path(__file__).parent.parent / "results" / "when"
METHOD, REFERENCES = "sc_grpo", ("grpo", "permuted")
BASE_FEATURES = ("mean_tokens", "free_frac", "distinct_solutions", "d_small_frac", "auc_d", "auc_entropy")
REPLICATES = 2000


def main(sweeps: Sequence[str]) -> None:
    runs = [run for sweep in sweeps for run in read_results(Path(sweep) / "results.jsonl")]
    runs = [run for run in runs if run.stage == "final" and run.status == "done"]
    testbeds = list(dict.fromkeys(run.testbed for run in runs))
    _write(OUT / "units.csv", [line for testbed in testbeds for line in unit_lines(runs, testbed)])
    _write(OUT / "problems.csv", [line for testbed in testbeds for line in problem_lines(runs, testbed)])


def unit_lines(runs: Iterable[RunResult], testbed: str) -> list[dict[str, object]]:
    """One line per base: differences of the run means, and what the base is like."""
    its = [run for run in runs if run.testbed == testbed]
    measured = [json.loads(line) for line in (OUT / "bases.jsonl").read_text().splitlines()]
    lines = []
    for base in sorted({run.base for run in its}):
        final = {
            method: {
                run.seed: run.curve[-1].avg_at_k or 0.0 for run in its if (run.base, run.method) == (base, method)
            }
            for method in (METHOD, *REFERENCES)
        }
        shown = next(m for m in measured if (m["testbed"], str(m["seed"])) == (testbed, base))
        before = [run.curve[0].avg_at_k or 0.0 for run in its if run.base == base]
        line: dict[str, object] = {"testbed": testbed, "base": base, "before": round(float(np.mean(before)), 4)}
        for reference in REFERENCES:
            seeds = sorted(final[METHOD].keys() & final[reference].keys())
            differences = [final[METHOD][seed] - final[reference][seed] for seed in seeds]
            line[f"minus_{reference}"] = round(float(np.mean(differences)), 4)
            line[f"error_{reference}"] = round(float(np.std(differences, ddof=1) / np.sqrt(len(differences))), 4)
        lines.append(line | {name: round(shown[name], 4) for name in BASE_FEATURES})
    return lines


def problem_lines(runs: Iterable[RunResult], testbed: str) -> list[dict[str, object]]:
    """Rank correlation over problems of the difference with each feature, and the difference by thirds of it."""
    rates: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        if run.testbed != testbed:
            continue
        side = run.method if run.method in (METHOD, *REFERENCES) else "others"
        for problem in run.curve[-1].problems:
            rates.setdefault(side, {}).setdefault(problem.problem_id, []).append(problem.num_solved / problem.n)
    ids = sorted(rates["others"])
    features = {"pass rate of other methods": [float(np.mean(rates["others"][i])) for i in ids]}
    for name, feature in FEATURES.get(testbed, {}).items():
        features[name] = [float(feature(_numbers(i))) for i in ids]
    lines = []
    for reference in REFERENCES:
        differences = np.array([np.mean(rates[METHOD][i]) - np.mean(rates[reference][i]) for i in ids])
        for name, values in features.items():
            low, high = _interval(np.array(values), differences)
            order = np.array_split(differences[np.argsort(values, kind="stable")], 3)
            lines.append(
                {
                    "testbed": testbed,
                    "minus": reference,
                    "feature": name,
                    "problems": len(ids),
                    "rank_correlation": round(rank_correlation(np.array(values), differences), 3),
                    "low": round(low, 3),
                    "high": round(high, 3),
                    **{f"third_{n}": round(float(third.mean()), 4) for n, third in enumerate(order, 1)},
                }
            )
    return lines


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's; ties share their mean rank. NaN where one side is constant."""
    a, b = _ranks(x), _ranks(y)
    if a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[which])


def _interval(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """95 %, percentiles of a bootstrap over problems."""
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(x), (REPLICATES, len(x)))
    low, high = np.nanpercentile([rank_correlation(x[d], y[d]) for d in draws], [2.5, 97.5])
    return float(low), float(high)


def _numbers(problem_id: str) -> list[int]:
    return [int(part) for part in problem_id.split("-") if part.isdigit()]


def _fewest_instructions(numbers: Sequence[int]) -> int:
    """Of a `reach` problem: breadth first from the start."""
    start, target = numbers
    reached, count = {start}, 0
    while target not in reached:
        reached |= {operation(value) % MODULUS for value in reached for operation in OPERATIONS.values()}
        count += 1
    return count


def _fewest_moves(numbers: Sequence[int]) -> int:
    start, key, goal, *lava = numbers
    return moves_to_win({"key": key, "goal": goal, "lava": lava}, start, held=False)


FEATURES: Mapping[str, Mapping[str, Callable[[Sequence[int]], int]]] = {
    "reach": {"fewest instructions": _fewest_instructions},
    "reach-recover": {"fewest instructions": _fewest_instructions},
    "maze": {"fewest moves": _fewest_moves},
    "countdown": {"number of solutions": lambda n: len(solutions(tuple(n[:-1]))[n[-1]])},
    "countdown-undo": {"number of solutions without undo": lambda n: len(solutions(tuple(n[:-1]))[n[-1]])},
}


def _write(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
