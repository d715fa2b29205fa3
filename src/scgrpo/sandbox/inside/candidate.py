"""The candidate's side of `judge`: defines what the source defines, and answers what the tests ask of it.

Nothing here protects anything: the code could patch all of it. What it gains is to answer with values of its choice,
which it can do anyway.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from . import program, wire

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "attribute": getattr,
    "set_attribute": setattr,
    "item": operator.getitem,
    "set_item": operator.setitem,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
}


def run(order: dict[str, Any], channel: int) -> int:
    """Serve until the tests' process goes away, or this one is killed."""
    peer = _Candidate(channel)
    try:
        module = program.start("solution", order["source"])
        program.execute(order["source"], module.__dict__)
    except BaseException as error:  # noqa: BLE001 (SystemExit too)
        wire.send(channel, ["failed", describe(error)])
        return 1
    peer.names = module.__dict__
    wire.send(channel, ["ready"])
    try:
        while True:
            peer.serve(wire.receive(channel))
    except wire.ChannelError:
        return 0


def describe(error: BaseException) -> str:
    """One line, whatever the exception is like."""
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except BaseException:  # noqa: BLE001
        return type(error).__name__


class _Candidate:
    def __init__(self, channel: int) -> None:
        self.channel = channel
        self.names: dict[str, Any] = {}
        self.objects: list[Any] = []  # those the tests hold, for ever: their numbers are indices
        self.numbers: dict[int, int] = {}

    def serve(self, request: list[Any]) -> None:
        """Do what is asked and answer it."""
        try:
            answer = self._answer(*request)
        except BaseException as error:  # noqa: BLE001 (it is the tests' to handle)
            bases = [base.__name__ for base in type(error).__mro__ if base.__module__ == "builtins"]
            answer = ["raise", bases, describe(error).partition(": ")[2], describe(error)]
        wire.send(self.channel, answer)

    def _answer(self, operation: str, target: Any, given: list[Any], named: dict[str, Any]) -> list[Any]:
        if operation == "name":
            return ["ok", wire.encode(self.names[target], self.keep), None]
        args = [wire.decode(item, self.find) for item in given]
        kwargs = {name: wire.decode(item, self.find) for name, item in named.items()}
        value = _OPERATIONS[operation](wire.decode(target, self.find), *args, **kwargs)
        encoded = wire.encode(value, self.keep)
        before = [*given, *named.values()]
        if not any(isinstance(item, list) for item in before):
            return ["ok", encoded, None]
        after = [wire.encode(item, self.keep) for item in (*args, *kwargs.values())]
        return ["ok", encoded, after if after != before else None]

    def keep(self, value: Any) -> list[Any]:
        if isinstance(value, _TestFunction):
            return ["function", value.number]
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        return ["object", number]

    def find(self, tag: str, number: Any) -> Any:
        if tag == "type":
            return wire.builtin_type(number)
        return self.objects[number] if tag == "object" else _TestFunction(self, number)


class _TestFunction:
    """A function of the tests, given to the candidate."""

    def __init__(self, peer: _Candidate, number: int) -> None:
        self.peer, self.number = peer, number

    def __call__(self, *args: Any) -> Any:
        peer = self.peer
        wire.send(peer.channel, ["call", self.number, [wire.encode(item, peer.keep) for item in args]])
        while True:
            answer = wire.receive(peer.channel)
            if answer[0] == "ok":
                return wire.decode(answer[1], peer.find)
            if answer[0] == "raise":
                raise RuntimeError(answer[1])
            peer.serve(answer)
