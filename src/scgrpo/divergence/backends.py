"""Which fold runs: eager PyTorch, compiled, or the Triton kernel. All give the same statistics, see `fold`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from scgrpo.divergence.fold import fold_eager, fold_plain
from scgrpo.errors import ConfigError

Backend = Literal["auto", "eager", "compile", "triton"]
# (logits (2, n, w), lead, entropy) -> statistics (3 or 4, n); may overwrite the logits.
Fold = Callable[[Tensor, int, bool], Tensor]

# Measured on one core of a server CPU. Compiling pays back after their quotient: some 2e10 logit pairs, for example
# 130 thousand tokens with a vocabulary of 152 thousand; a tiny model never gets there.
COMPILE_S = 20.0
SAVED_S_PER_PAIR = 1e-9


def choose_fold(backend: str, device: torch.device, num_pairs: int, dtype: torch.dtype = torch.float32) -> Fold:
    """The fold for a call that covers `num_pairs` = tokens x words, for logits of `dtype`.

    `auto` takes Triton on a GPU that has it. On a CPU it starts eagerly and compiles once this process has done so
    much work that compiling at the start would have paid; without a C++ compiler it stays eager.

    Raises:
        ConfigError: unknown backend, or Triton asked for where it is not installed or cannot run.
    """
    if backend not in ("auto", "eager", "compile", "triton"):
        raise ConfigError(f"Unknown backend {backend!r}.", "Choose auto, eager, compile or triton.")
    if backend == "triton" and not has_triton():
        raise ConfigError("The Triton backend needs Triton, which is not installed.", "Use backend='auto'.")
    if backend == "triton" and device.type == "cpu" and not interpreted():
        raise ConfigError(
            "The Triton backend needs a GPU, and these tensors are on the CPU.",
            "Use backend='auto'; to test the kernel, set TRITON_INTERPRET=1 before Python starts.",
        )
    if backend == "auto":
        if device.type == "cuda":
            backend = "triton" if has_triton() and dtype == torch.float32 else "eager"
        else:
            backend = "compile" if _work.pays(num_pairs) and has_compiler() else "eager"
    if backend == "triton":
        from scgrpo.divergence.triton_fold import fold_triton

        return fold_triton
    return _fold_compiled if backend == "compile" else fold_eager


@cache
def has_triton() -> bool:
    """Whether Triton can be imported; it is not imported here."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on tensors of any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def has_compiler() -> bool:
    """Whether a C++ compiler is at hand, which `torch.compile` needs on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


class _Work:
    """Logit pairs this process has folded: the compiler is bought once renting has cost as much."""

    def __init__(self) -> None:
        self.num_pairs = 0

    def pays(self, num_pairs: int) -> bool:
        self.num_pairs += num_pairs
        return self.num_pairs * SAVED_S_PER_PAIR > COMPILE_S


_work = _Work()


@cache
def _compiled() -> Fold:
    return torch.compile(fold_plain, dynamic=True)


class _Broken:
    """Remembers that compiling failed, so that it is tried and reported once."""

    compiler = False


def _fold_compiled(tile: Tensor, lead: int, entropy: bool) -> Tensor:
    if _Broken.compiler:
        return fold_eager(tile, lead, entropy)
    try:
        return _compiled()(tile, lead, entropy)
    except Exception as error:  # noqa: BLE001  whatever a toolchain throws; the eager fold gives the same numbers
        _Broken.compiler = True
        warnings.warn(
            f"torch.compile failed ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "token evidence is computed eagerly from now on: the same numbers, a little slower.",
            RuntimeWarning,
            stacklevel=2,
        )
        return fold_eager(tile, lead, entropy)
