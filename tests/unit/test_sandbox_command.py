"""`scgrpo sandbox check`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scgrpo.cli import sandbox as command
from scgrpo.cli.main import main
from scgrpo.sandbox.escapes import Finding


def findings(*held: bool | None) -> Iterator[Finding]:
    for number, outcome in enumerate(held):
        yield Finding(f"attack {number}", "files", "exit", f"[seen] {number}", outcome)


@pytest.fixture
def safe() -> None:
    from scgrpo.sandbox import probe

    if probe().level == "none":
        pytest.skip("no safe sandbox here")


@pytest.mark.parametrize(
    ("held", "code", "said"),
    [((True, True), 0, "2 held"), ((True, False), 1, "1 ESCAPED"), ((True, None), 1, "1 NO ANSWER")],
)
def test_the_exit_code_says_whether_all_was_held(
    safe: None,
    held: tuple[bool | None, ...],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "run_corpus", lambda _: findings(*held))
    assert main(["sandbox", "check", "--num_workers", "1"]) == code
    printed = capsys.readouterr().out
    assert said in printed
    assert "[seen] 1" in printed


def test_bench_prints_times(safe: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", "check", "--no_attacks", "--bench", "--num_runs", "3"]) == 0
    printed = capsys.readouterr().out
    assert "run a program" in printed
    assert "judge a candidate" in printed


def test_plain_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rich.console", None)
    command._show_table(["a", "b"], [["1", "2"]])
    assert capsys.readouterr().out == "a\tb\n1\t2\n"


def test_bad_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", "check", "--backend", "remote"]) == 2
    assert "url" in capsys.readouterr().err


def test_what_cannot_be_timed_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    remote = ["--backend", "remote", "--url", "http://127.0.0.1:1/run_code", "--no_attacks", "--bench"]
    assert main(["sandbox", "check", *remote]) == 2
    assert "refused" in capsys.readouterr().err
    assert main(["sandbox", "check", *remote, "--num_runs", "0"]) == 2
    assert "num_runs=0" in capsys.readouterr().err
