"""Requests to AppWorld's environment server: JSON over HTTP on the loopback interface, each with a hard deadline."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from typing import Any

from scgrpo.errors import VerifierError

# Of one answer. What a model's code prints comes in one; more than this is not an answer.
MAX_ANSWER_BYTES = 64 * 2**20
_DETAIL_CHARS = 300


class ServerTimeoutError(VerifierError, TimeoutError):
    """The server did not answer in time."""


def post(port: int, endpoint: str, arguments: dict[str, Any], timeout_s: float) -> Any:
    """POST /endpoint, and what its answer has under `output`.

    Args:
        timeout_s: for the whole exchange, however slowly bytes come.

    Raises:
        ServerTimeoutError: no answer by then.
        VerifierError: no connection, a status other than 200, or an answer that is not one of AppWorld's.
    """
    body = json.dumps(arguments).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    expired = threading.Event()

    sockets: list[socket.socket] = []

    def expire() -> None:
        expired.set()
        for used in sockets:
            with contextlib.suppress(OSError):
                used.shutdown(socket.SHUT_RDWR)  # ends the wait of the other thread

    timer = threading.Timer(timeout_s, expire)
    timer.daemon = True
    timer.start()
    try:
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.connect()
        sockets.append(connection.sock)  # the connection forgets it when the answer begins
        connection.request("POST", f"/{endpoint}", body, headers)
        response = connection.getresponse()
        status, answer = response.status, response.read(MAX_ANSWER_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        if expired.is_set() or isinstance(error, TimeoutError):
            raise ServerTimeoutError(f"AppWorld did not answer /{endpoint} within {timeout_s:g} s.") from error
        raise VerifierError(f"AppWorld's server broke off at /{endpoint}: {error!r}.") from error
    finally:
        timer.cancel()
        connection.close()
    if expired.is_set():  # cut off by us: what came is not whole
        raise ServerTimeoutError(f"AppWorld did not answer /{endpoint} within {timeout_s:g} s.")
    return _output(endpoint, status, answer)


def _output(endpoint: str, status: int, answer: bytes) -> Any:
    said = answer[:_DETAIL_CHARS].decode(errors="replace")
    if status != 200:
        raise VerifierError(f"AppWorld answered /{endpoint} with status {status}: {said}")
    if len(answer) > MAX_ANSWER_BYTES:
        raise VerifierError(f"AppWorld's answer to /{endpoint} has more than {MAX_ANSWER_BYTES} bytes.")
    try:
        return json.loads(answer)["output"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise VerifierError(f"AppWorld's answer to /{endpoint} is not one of its own: {said!r}") from error
