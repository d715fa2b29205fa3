"""`scgrpo train` with the model split between processes on a CPU: run by test_train_distributed.py under torchrun."""

from __future__ import annotations

import sys

from sharding import shard_on_the_cpu

if __name__ == "__main__":
    shard_on_the_cpu()
    from scgrpo.cli.main import main

    sys.exit(main(["train", *sys.argv[1:]]))
