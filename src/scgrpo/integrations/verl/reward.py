"""verl's reward function for data sets of `scgrpo verl-data`.

    reward:
      custom_reward_function:
        path: pkg://scgrpo.integrations.verl.reward     # verl imports modules of installed packages by pkg://
        name: compute_score
        reward_kwargs: {}                               # keyword arguments of `compute_score`

verl's reward managers `naive` and `dapo` call it in threads of their `reward.num_workers` processes. What verl is
told beside the reward: `verdicts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scgrpo.integrations.verl.data import read_problem
from scgrpo.integrations.verl.verdicts import DEADLINE_S, checked, failed, graded, opened_task, reward_fields


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    task_options: Mapping[str, Mapping[str, Any]] | None = None,
    success_threshold: float | None = None,
    deadline_s: float = DEADLINE_S,
    **_: Any,
) -> dict[str, Any]:
    """Grade a completion by the verifier of the task that its row is from.

    Never raises: a verifier that crashes, hangs or cannot be made is the verdict `error` or `timeout`, and `detail`
    says why.

    Args:
        data_source, ground_truth: verl's; not looked at.
        solution_str: the completion, without special tokens.
        extra_info: the row's, as `data.verl_row` makes it.
        task_options: options by the names of tasks, for this machine: `{"code": {"num_workers": 16}}`.
        success_threshold: score from which `acc` is 1. Default: the task's.
        deadline_s: wall-clock seconds for a verdict, waiting for a free worker included.

    Returns:
        `verdicts.reward_fields`: score, acc, acc_graded, graded, verdict, detail, problem_id.
    """
    try:
        problem = read_problem(extra_info)
        task = opened_task(problem, task_options)
    except Exception as error:  # noqa: BLE001 (a task's module and factory may be anything)
        problem_id = extra_info.get("problem_id", "") if isinstance(extra_info, Mapping) else ""
        return reward_fields(checked(failed(error), str(data_source)), 0.0, problem_id)
    verdict = graded(task, solution_str, problem.row, deadline_s)
    threshold = task.success_threshold if success_threshold is None else success_threshold
    return reward_fields(verdict, threshold, problem.row["problem_id"])
