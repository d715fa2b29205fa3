"""Calls a function of the source once per argument list and writes each value, as a line of JSON, to a pipe.

The code could write such lines itself. It would gain nothing: it can return any value as well, and what is expected
is not here.
"""

from __future__ import annotations

import json
import os
from typing import Any

from . import candidate, program


def run(order: dict[str, Any], results: int, stderr: int) -> int:
    """Lines `["ok", value]`; the last one may be `["raise", text]`. The exit code."""
    os.dup2(stderr, 2)
    os.close(stderr)
    try:
        module = program.start("solution", order["source"])
        program.execute(order["source"], module.__dict__)
        function = _find(module.__dict__, order["function"])
        for arguments in order["arguments"]:
            _write(results, ["ok", function(*arguments)])
    except BaseException as error:  # noqa: BLE001 (SystemExit too: a call that exits has no value)
        program.explain(error)
        _write(results, ["raise", candidate.describe(error)])
        return 1
    return 0


def _find(names: dict[str, Any], function: str) -> Any:
    if "Solution" in names and hasattr(names["Solution"], function):
        return getattr(names["Solution"](), function)
    if function not in names:
        raise NameError(f"the source defines neither Solution.{function} nor {function}")
    return names[function]


def _write(results: int, message: list[Any]) -> None:
    line = memoryview(json.dumps(message).encode() + b"\n")
    while line:
        line = line[os.write(results, line) :]
