"""Run by test_launching.py under torchrun: `worker.py FOLDER SECONDS`. The second process never joins the first."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed


def main() -> None:
    folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
    distributed.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    rank = int(os.environ["RANK"])
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    if rank == 1:
        time.sleep(3600)
    distributed.all_reduce(torch.zeros(1))


if __name__ == "__main__":
    main()
