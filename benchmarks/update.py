"""The update step of TRL's trainer with given rollouts, every group scored: SC-GRPO's variants against GRPO."""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Any

import _common

VARIANTS: dict[str, dict[str, Any]] = {
    "GRPO": {"credit": "uniform"},
    "shared demonstration, in the loss": {"credit_demonstrations": "shared", "teacher_timing": "loss"},
    "uniform demonstrations, in the loss": {"teacher_timing": "loss"},
    "shared demonstration, own pass": {"credit_demonstrations": "shared"},
    "no sharing, own pass": {"teacher_prefix_sharing": "off"},
}


def step_seconds(settings: dict[str, Any], vocabulary: int, length: int, checkpointing: bool) -> list[float]:
    """CPU seconds of each step but the first."""
    from transformers import TrainerCallback

    def completion(batch: int, row: int) -> list[int]:
        words = random.Random(f"{batch}/{row}")
        first = _common.FIRST_WORD + (row % 8 >= 4)  # half of each group is solved
        return [first, *(words.randrange(_common.FIRST_WORD + 2, vocabulary) for _ in range(length - 2)), _common.EOS]

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seconds.append(time.process_time() - self.start)

    trainer = _common.given_rollouts_trainer(
        _common.random_qwen3(vocabulary),
        vocabulary,
        completion,
        max_completion_length=length,
        max_steps=3,
        gradient_checkpointing=checkpointing,
        **settings,
    )
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return clock.seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--completion", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    for checkpointing in (False, True):
        seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for _ in range(args.repetitions):
            for name, settings in VARIANTS.items():
                seconds[name] += step_seconds(settings, args.vocabulary, args.completion, checkpointing)
        base = statistics.median(seconds["GRPO"])
        print(f"\n{'gradient checkpointing' if checkpointing else 'plain'}")
        for name, values in seconds.items():
            print(f"  {name:36s} {_common.summary([value / base for value in values])}", flush=True)


if __name__ == "__main__":
    main()
