"""The tests' side of `judge`. Only trusted code runs here; bytes from the candidate become plain values or handles.

A handle stands for an object in the candidate's process. It offers only what cannot be turned into a success: the
candidate may compute an answer, but never learns what it is compared with. So comparisons, arithmetic and `in` with a
handle are decided here, without the candidate.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from . import program, wire
from .candidate import describe

CANDIDATE_GONE = 3  # exit code


class _Unsuited(BaseException):
    """The tests do what this judge cannot carry over: no verdict."""


class _Gone(BaseException):
    """The candidate's process ended or broke the protocol. Not an Exception: tests must not catch it by accident."""


def run(order: dict[str, Any], report: int, channel: int) -> int:
    """Run the tests, and write to `report` what they say, with the secret of this run."""
    peer = _Judge(channel)
    passed, detail = _verdict(order, peer)
    if passed and peer.trouble is not None:  # swallowed by an `except:` in the tests
        passed, detail = peer.trouble
    message = {"secret": order["secret"], "passed": passed, "detail": detail, "gone": peer.gone}
    os.write(report, json.dumps(message).encode())
    return CANDIDATE_GONE if peer.gone else 0


def _verdict(order: dict[str, Any], peer: _Judge) -> tuple[bool | None, str]:
    try:  # apart from running them: a SyntaxError may be the candidate's
        code = compile(order["tests"], "tests.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return None, f"the tests do not compile: {describe(error)}"
    try:
        hello = peer.receive()
        if hello[0] != "ready":
            return False, f"the candidate does not load: {hello[1]}"
        program.start(wire.TESTS, "")
        random.seed()  # not that of programs: a candidate must not foresee what random tests ask
        names = _Names(peer, frozenset(order["entry_points"]))
        exec(code, names)
    except _Unsuited as error:
        return peer.trouble or (None, str(error))
    except _Gone as error:
        return False, str(error)
    except BaseException as error:  # noqa: BLE001 (a test that fails, in whatever way)
        return False, _place(error, order["tests"]) + describe(error)
    return True, ""


def _place(error: BaseException, tests: str) -> str:
    lines = tests.splitlines()
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == "tests.py":
            place = number
    try:
        return f"line {place}, {lines[place - 1].strip()[:300]}: "
    except (NameError, IndexError):
        return ""


class _Names(dict[str, Any]):
    """Globals of the tests. Entry points, and names that neither they nor Python define, are the candidate's."""

    def __init__(self, peer: _Judge, entry_points: frozenset[str]) -> None:
        super().__init__(__name__=wire.TESTS, __builtins__=builtins)
        self.peer, self.entry_points = peer, entry_points

    def __missing__(self, name: str) -> Any:
        if name not in self.entry_points:
            if hasattr(builtins, name):
                raise KeyError(name)
            if name in sys.stdlib_module_names:  # used without an import: never the candidate's idea of it
                return importlib.import_module(name)
        try:
            return self.peer.ask("name", name)
        except KeyError:
            raise NameError(f"name {name!r} is not defined") from None


class _Judge:
    def __init__(self, channel: int) -> None:
        self.channel = channel
        self.handles: dict[int, Handle] = {}
        self.functions: list[Callable[..., Any]] = []
        self.trouble: tuple[bool | None, str] | None = None
        self.gone = False
        self.questions = 0  # asked so far, apart from those for the items of an object
        self.named: set[type] = set()  # Python's types that the candidate has sent

    def ask(self, operation: str, target: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Have the candidate do something; its value or its exception."""
        self.questions += operation not in ("iter", "next")
        given = [self.encode(item) for item in args]
        named = {name: self.encode(item) for name, item in kwargs.items()}
        destination = target if operation == "name" else self.encode(target)
        self._send([operation, destination, given, named])
        while True:
            answer = self.receive()
            try:
                if answer[0] == "call":
                    self._call_back(*answer[1:])
                    continue
                if answer[0] == "ok":
                    value = wire.decode(answer[1], self._find)
                    if answer[2] is not None:
                        self._refresh([*args, *kwargs.values()], answer[2])
                    return value
                error = _exception(*answer[1:])
                if isinstance(error, StopIteration) and operation != "next":
                    error = RuntimeError("StopIteration")  # it would end the tests' own loops
            except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, RecursionError) as problem:
                raise self._fail(f"the candidate's answer makes no sense: {describe(problem)}") from None
            raise error

    def _refresh(self, given: list[Any], changed: list[Any]) -> None:
        for old, new in zip(given, changed, strict=True):
            wire.refresh(old, wire.decode(new, self._find))

    def _call_back(self, number: int, given: list[Any]) -> None:
        args = [wire.decode(item, self._find) for item in given]
        function = self.functions[number]
        try:
            answer = ["ok", self.encode(function(*args)), None]
        except Exception as error:  # noqa: BLE001 (it is the candidate's to handle)
            answer = ["raise", describe(error)]
        self._send(answer)

    def receive(self) -> list[Any]:
        try:
            message = wire.receive(self.channel)
        except wire.ChannelError as error:
            raise self._fail(str(error)) from None
        if (
            not isinstance(message, list)
            or not message
            or message[0] not in ("ok", "raise", "call", "ready", "failed")
        ):
            raise self._fail("the candidate's process does not keep to the protocol")
        return message

    def _send(self, message: list[Any]) -> None:
        try:
            wire.send(self.channel, message)
        except wire.ChannelError as error:
            raise self._fail(str(error)) from None

    def _fail(self, detail: str) -> _Gone:
        self.gone = True
        self.trouble = (False, detail)
        return _Gone(detail)

    def encode(self, value: Any) -> Any:
        return wire.encode(value, self._keep)

    def _keep(self, value: Any) -> list[Any]:
        if isinstance(value, Handle):
            return ["object", object.__getattribute__(value, "_number")]
        if callable(value) and not isinstance(value, type):
            self.functions.append(value)
            return ["function", len(self.functions) - 1]
        detail = f"the tests give the candidate a {type(value).__name__}, which cannot be sent to another process"
        # One made by a type that the candidate has passed off as its own is no fault of the tests.
        self.trouble = (False if type(value) in self.named else None, detail)
        raise _Unsuited(detail)

    def _find(self, tag: str, number: Any) -> Any:
        if tag == "type":
            kind = wire.builtin_type(number)
            self.named.add(kind)
            return kind
        if type(number) is not int or number < 0:
            raise ValueError(f"no object {number!r}")
        if tag == "function":
            return self.functions[number]
        if tag != "object":
            raise ValueError(f"no tag {tag!r}")
        if number not in self.handles:
            self.handles[number] = Handle(self, number)
        return self.handles[number]


def _exception(bases: list[str], message: str, full: str) -> Exception:
    for name in bases:
        kind = wire.exception_type(name)
        if kind is not None:
            try:
                return kind(str(message))
            except Exception:  # noqa: BLE001 (some need other arguments)
                break
    return RuntimeError(str(full))


class Handle:
    """An object of the candidate's. Equal to itself only; see the module for what it can be asked.

    It is no number: tests that compute with one twice must not get two. What it iterates over stays the same while
    nothing else is asked.
    """

    __slots__ = ("_number", "_over", "_peer", "_seen")
    _number: int
    _peer: _Judge
    _seen: tuple[int, list[Any]]  # when it was iterated over, and what came so far
    _over: bool  # an iterator that has come to its end

    def __init__(self, peer: _Judge, number: int) -> None:
        for name, value in (("_peer", peer), ("_number", number), ("_seen", (0, [])), ("_over", False)):
            object.__setattr__(self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer.ask("call", self, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._peer.ask("attribute", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("set_attribute", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._peer.ask("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._peer.ask("set_item", self, key, value)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._peer.ask("iter", self)
        if not isinstance(iterator, Handle):
            raise TypeError("what it iterates over is not an iterator")
        if iterator is self:
            yield from _following(self)
            return
        if self._seen[0] != self._peer.questions:
            object.__setattr__(self, "_seen", (self._peer.questions, []))
        items, place = self._seen[1], 0
        for item in _following(iterator):
            if place == len(items):
                items.append(item)
            yield items[place]
            place += 1
        yield from items[place:]

    def __next__(self) -> Any:
        if self._over:
            raise StopIteration
        try:
            return self._peer.ask("next", self)
        except StopIteration:
            object.__setattr__(self, "_over", True)
            raise

    def __len__(self) -> int:
        return self._of_type(int, "len")

    def __bool__(self) -> bool:
        return self._of_type(bool, "bool")

    def __str__(self) -> str:
        return self._of_type(str, "str")

    def __repr__(self) -> str:
        return self._of_type(str, "repr")

    def _of_type(self, kind: type, operation: str) -> Any:
        value = self._peer.ask(operation, self)
        if type(value) is not kind:
            raise TypeError(f"{operation} gave a {type(value).__name__}")
        return value


def _following(iterator: Handle) -> Iterator[Any]:
    """What an iterator has left."""
    while True:
        try:
            item = iterator.__next__()
        except StopIteration:
            return
        yield item
