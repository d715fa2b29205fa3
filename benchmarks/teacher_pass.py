"""Hidden states of G completions: prompts shared or copied, against a plain student forward. CPU seconds, ratios."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import _common
import torch

from scgrpo.teacher.hidden import rerun_hidden
from scgrpo.teacher.packing import packed_hidden


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["320,256,8", "832,768,8"], help="PROMPT,COMPLETION,G")
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    model = _common.random_qwen3(vocabulary=32_000)
    for shape in args.shapes:
        prompt_length, length, group = map(int, shape.split(","))
        prompt = torch.randint(3, 32_000, (prompt_length,)).tolist()
        completions, lengths = torch.randint(3, 32_000, (group, length)), torch.full((group,), length)
        one, two = [prompt] * group, [prompt] * (group - 1) + [prompt[::-1]]
        short = [prompt[:64]] * group
        candidates: dict[str, Callable[[], object]] = {
            "a copy of the prompt per rollout": partial(rerun_hidden, model, one, completions, lengths),
            "shared, one demonstration": partial(packed_hidden, model, one, completions, lengths),
            "shared, two demonstrations": partial(packed_hidden, model, two, completions, lengths),
            "plain student forward, prompt 64": partial(rerun_hidden, model, short, completions, lengths),
        }
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        with torch.no_grad():
            for repetition in range(args.repetitions + 1):
                for name, candidate in candidates.items():
                    start = time.process_time()
                    candidate()
                    if repetition:  # the first round warms up
                        seconds[name].append(time.process_time() - start)
        base = statistics.median(seconds["a copy of the prompt per rollout"])
        print(f"\nprompt {prompt_length}, completion {length}, G = {group}")
        for name, values in seconds.items():
            print(f"  {name:36s} {_common.summary([value / base for value in values])}")


if __name__ == "__main__":
    main()
