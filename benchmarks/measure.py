"""Clocks, peak memory and the floor: interleaved in one process, so that what disturbs one candidate disturbs all."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Candidate = Callable[[], Any]


@dataclass(frozen=True)
class Clock:
    """Seconds of work: of this process on a CPU (which neighbours do not disturb), of the device on a GPU."""

    device: torch.device

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    def seconds(self, candidate: Candidate) -> float:
        start = self.now()
        candidate()
        return self.now() - start


def interleaved(
    candidates: dict[str, Candidate], clock: Clock, repetitions: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of every repetition: each runs every candidate once, in rotated order."""
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(-warmup, repetitions):
        turn = repetition % len(names)
        for name in names[turn:] + names[:turn]:
            spent = clock.seconds(candidates[name])
            if repetition >= 0:
                seconds[name].append(spent)
    return seconds


class PeakMemory:
    """Bytes in use at the highest point between `start` and `stop`, above those at the start."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.known = device.type == "cuda" or sys.platform == "linux"
        self.before = 0

    def start(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        elif self.known:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # resets VmHWM
            self.before = _resident("VmRSS")

    def stop(self) -> int | None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _resident("VmHWM") - self.before if self.known else None

    def of(self, candidate: Candidate, runs: int = 3) -> int | None:
        """The lowest of several runs: what the allocator happens to do comes on top."""
        found = []
        for _ in range(runs):
            self.start()
            candidate()
            found.append(self.stop())
        return min((peak for peak in found if peak is not None), default=None)


def _resident(field: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024


@dataclass(frozen=True)
class Work:
    """What a computation cannot do without: floating-point operations and bytes moved."""

    flops: float
    bytes: float = 0.0


@dataclass(frozen=True)
class Floor:
    """What the machine gives, measured in the same run.

    Attributes:
        gemm: floating-point operations per second of a large product, by dtype.
        bandwidth: bytes per second of a large copy, reads and writes counted.
    """

    gemm: dict[str, float]
    bandwidth: float

    def seconds(self, work: Work, dtype: torch.dtype) -> float:
        """No implementation can be faster: roofline of the work."""
        return max(work.flops / self.gemm[_name(dtype)], work.bytes / self.bandwidth)

    def text(self) -> str:
        rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in self.gemm.items())
        return f"floor of this run: products {rates}; copies {self.bandwidth / 1e9:,.1f} GB/s"


def measure_floor(device: torch.device, dtypes: tuple[torch.dtype, ...], size: int) -> Floor:
    """Best of several runs: square products of `size`, and a copy of 64 times as many bytes as one of them has."""
    clock, gemm = Clock(device), {}
    for dtype in dtypes:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty(size, size, device=device, dtype=dtype)
        best = _best(clock, lambda a=left, b=right, c=out: torch.mm(a, b, out=c))
        gemm[_name(dtype)] = 2 * size**3 / best
    source = torch.zeros(64 * size * size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Floor(gemm, 2 * source.numel() / _best(clock, lambda: target.copy_(source)))


def _best(clock: Clock, candidate: Candidate, runs: int = 5) -> float:
    candidate()
    return min(clock.seconds(candidate) for _ in range(runs))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def ratios(seconds: list[float], base: list[float]) -> tuple[float, float, float]:
    """Median, lowest and highest ratio to the base of the same repetition."""
    values = [a / b for a, b in zip(seconds, base, strict=True)]
    return statistics.median(values), min(values), max(values)
