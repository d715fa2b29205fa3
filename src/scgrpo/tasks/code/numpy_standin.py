"""What the tests of HumanEval+ and MBPP+ use of numpy, for a sandbox that has none."""

from __future__ import annotations

import re

_IMPORT = re.compile(r"^import numpy as np[ \t]*$", re.MULTILINE)
# allclose is numpy's |a - b| <= atol + rtol |b|, without broadcasting: shapes that differ are not close.
_STANDIN = """\
class np:
    class ndarray:
        pass
    float32 = float64 = float
    @staticmethod
    def allclose(a, b, rtol=1e-05, atol=1e-08):
        if isinstance(b, (list, tuple)):
            if not isinstance(a, (list, tuple)) or len(a) != len(b):
                return False
            return all(np.allclose(x, y, rtol, atol) for x, y in zip(a, b))
        if not isinstance(a, (int, float, complex)):
            raise TypeError(f"not a number: {a!r}")
        return a == b or (abs(b) != float("inf") and abs(a - b) <= atol + rtol * abs(b))
"""


def without_numpy(source: str) -> str:
    """A test's source with a stand-in for numpy where it imports it."""
    return _IMPORT.sub(_STANDIN, source)
