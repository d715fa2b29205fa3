"""What it costs, measured: `python -m benchmarks run [case ...]`. Never part of the tests."""

import os

# One thread, so that CPU seconds mean work and not waiting; before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
