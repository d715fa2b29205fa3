"""The remote back-end against small servers that speak like SandboxFusion and Piston."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from scgrpo.errors import ConfigError, SandboxError
from scgrpo.sandbox import Limits, Outcome, Program, Sandbox, open_sandbox
from scgrpo.sandbox import remote as remote_module

AMPLE = Limits(wall_s=60.0)


def execute(source: str, stdin: str, args: list[str], files: dict[str, str], timeout_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text)
        command = [sys.executable, "-I", "-S", "-c", source, *args]
        try:
            done = subprocess.run(command, input=stdin.encode(), capture_output=True, timeout=timeout_s, cwd=folder)
        except subprocess.TimeoutExpired:
            return {"code": None, "out": "", "err": ""}
        return {"code": done.returncode, "out": done.stdout.decode(), "err": done.stderr.decode()}


def fusion(body: dict[str, Any]) -> dict[str, Any]:
    files = {name: base64.b64decode(text).decode() for name, text in body["files"].items()}
    done = execute(body["code"], body["stdin"], [], files, body["run_timeout"])
    late = done["code"] is None
    return {
        "status": "Success" if done["code"] == 0 else "Failed",
        "message": "",
        "run_result": {
            "status": "TimeLimitExceeded" if late else "Finished",
            "execution_time": 0.1,
            "return_code": done["code"],
            "stdout": done["out"],
            "stderr": done["err"],
        },
    }


def piston(body: dict[str, Any]) -> dict[str, Any]:
    main, *others = body["files"]
    files = {item["name"]: item["content"] for item in others}
    done = execute(main["content"], body["stdin"], body["args"], files, body["run_timeout"] / 1000)
    late = done["code"] is None
    run = {"stdout": done["out"], "stderr": done["err"], "code": done["code"], "signal": "SIGKILL" if late else None}
    return {"run": run, "language": "python", "version": "3"}


class Handler(BaseHTTPRequestHandler):
    broken: bytes | None = None
    status = 200

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = self.broken
        if answer is None:
            answer = json.dumps((fusion if self.path == "/run_code" else piston)(body)).encode()
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["/run_code", "/api/v2/execute"])
def remote(address: str, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with open_sandbox("remote", url=address + request.param) as sandbox:
        yield sandbox


def test_programs(remote: Sandbox) -> None:
    assert remote.level == "remote"
    programs = [
        Program("print(input())", stdin="hé\n"),
        Program("import sys; print(1); sys.exit(3)"),
        Program("print(open('a.txt').read())", files={"a.txt": "text"}),
        Program("1 / 0"),
    ]
    hello, code, file, error = remote.run_many([(program, AMPLE) for program in programs])
    assert (hello.outcome, hello.stdout, hello.exit_code) == (Outcome.OK, "hé\n", 0)
    assert (code.outcome, code.stdout, code.exit_code) == (Outcome.EXIT, "1\n", 3)
    assert file.stdout == "text\n"
    assert error.detail == "ZeroDivisionError: division by zero"


def test_limits(remote: Sandbox) -> None:
    assert remote.run(Program("import time; time.sleep(99)"), Limits(wall_s=1.0)).outcome is Outcome.TIMEOUT
    cut = remote.run(Program("print('x' * 1000)"), Limits(wall_s=60.0, output_bytes=10))
    assert (cut.outcome, cut.stdout) == (Outcome.OUTPUT, "x" * 10)
    assert remote.run(Program("import os; os.kill(os.getpid(), 9)"), AMPLE).outcome is Outcome.KILLED


def test_calls(remote: Sandbox) -> None:
    source = "class Solution:\n    def f(self, x):\n        print('noise')\n        return (1 // x,)"
    found = remote.call(source, "f", [[1], [0], [1]], AMPLE)
    assert [item.outcome for item in found] == [Outcome.OK, Outcome.EXIT]
    assert found[0].value == [1]
    assert "ZeroDivisionError" in found[1].detail
    assert remote.call("import os\nos._exit(0)", "f", [[1]], AMPLE)[0].outcome is Outcome.EXIT
    assert remote.call("def f(x):\n    return x", "f", [], AMPLE) == []


def test_it_does_not_judge(remote: Sandbox) -> None:
    with pytest.raises(SandboxError, match="apart"):
        remote.judge("def f(): return 1", "assert f() == 1")


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"not json", 200),
        (b"[]", 200),
        (b"{}", 200),
        (b'{"message": "no such runtime"}', 400),
        (b"", 500),
        (b"[" * 200_000, 200),
        (b'{"run": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", 200),
        (b'{"status": "SandboxError", "message": "down", "run_result": null, "run": {"status": "XX"}}', 200),
        (b'{"status": "x", "run_result": {"status": "Finished"}, "run": {}}', 200),
    ],
)
def test_a_runner_that_fails_gives_no_verdict(
    remote: Sandbox, answer: bytes, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "broken", answer)
    monkeypatch.setattr(Handler, "status", status)
    result = remote.run(Program("print(1)"), AMPLE)
    assert (result.outcome, result.exit_code) == (Outcome.ERROR, None)
    assert result.detail.startswith("the remote runner")
    assert remote.call("def f(): return 1", "f", [[]], AMPLE)[0].outcome is Outcome.ERROR


RUNNER = b'{"status": "Success", "run_result": {"status": "Finished", "return_code": 0, "stdout": "1\\n"}}'
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def says(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server of one reply, byte by byte as the test says, and its address."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 16)
                for part in request.param:
                    connection.sendall(part)
                    time.sleep(0.1 if len(request.param) > 1 else 0)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):  # else what is unread would reset the connection
                    pass

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/run_code"


@pytest.mark.parametrize(
    ("says", "detail"),
    [
        ([b"\0\xff what\r\n\r\n"], "BadStatusLine"),
        ([HEAD + b"A: " + b"x" * 100_000 + b"\r\n\r\n" + RUNNER], "LineTooLong"),
        ([HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + RUNNER], "IncompleteRead"),
        ([HEAD + b"Content-Length: 1000\r\n\r\n" + RUNNER], "cut off"),
        ([b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/run_code\r\n\r\n"], "302 it is at http://127.0.0.1:9"),
        ([b"HTTP/1.1 307 Found\r\nLocation: file:///etc/passwd\r\n\r\n"], "307 it is at file:///etc/passwd"),
        ([HEAD + b"\r\n", *[b" "] * 600, RUNNER], "too long"),
    ],
    indirect=["says"],
)
def test_a_runner_that_speaks_no_proper_http_gives_no_verdict(
    says: str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "_NETWORK_S", 1.0 if detail == "too long" else 60.0)
    with open_sandbox("remote", url=says) as sandbox:
        result = sandbox.run(Program("print(1)"), Limits(wall_s=1.0))
    assert (result.outcome, result.stdout) == (Outcome.ERROR, ""), result
    assert detail in result.detail


def test_a_runner_that_is_not_there(address: str) -> None:
    with open_sandbox("remote", url="http://127.0.0.1:1/run_code") as sandbox:
        assert sandbox.run(Program("print(1)")).outcome is Outcome.ERROR
    with pytest.raises(SandboxError, match="closed"):
        sandbox.run(Program("print(1)"))


@pytest.mark.parametrize(
    "url", ["localhost:80/run_code", "ftp://host/run_code", "http://host/", "file:///etc/run_code"]
)
def test_addresses(url: str) -> None:
    with pytest.raises(ConfigError):
        open_sandbox("remote", url=url)
