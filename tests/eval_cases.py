"""What tests of evaluations share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scgrpo.evaluation import EvalResult
from scgrpo.tasks import Canned, Row, Split, Task, Verdict

LETTERS = "abcdefgh"


class Letters(Task):
    """Graded by the first letter; counts what it grades."""

    name = "letters"

    def __init__(self) -> None:
        self.num_graded = 0

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        prompts = [" ".join(LETTERS[: n + 1]) for n in range(len(LETTERS))]
        return [{"problem_id": f"p{n}", "prompt": prompt} for n, prompt in enumerate(prompts)][:limit]

    def verify(self, completions: Sequence[str], rows: Sequence[Any]) -> list[Verdict]:
        self.num_graded += len(completions)
        return [
            Verdict.error("a digit") if c[:1].isdigit() else Verdict(float("a" <= c[:1] <= "m")) for c in completions
        ]

    def canned(self) -> Canned:
        return Canned(self.rows("eval")[0], ("a",), ("z",))


def numbers(result: EvalResult) -> dict[str, Any]:
    """All but the times."""
    record = result.to_record(0, "eval")
    return {name: value for name, value in record.items() if name not in ("seconds", "tokens_per_s")}


def interrupted_after(count: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= count:
            raise KeyboardInterrupt

    return progress
