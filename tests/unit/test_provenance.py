"""Where a run came from: every start, no secret, the right revision."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scgrpo.runs import RunDirectory
from scgrpo.runs.provenance import _revision, hide_secret_arguments, hide_secrets


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run")


def test_provenance_records_every_start(run: RunDirectory) -> None:
    run.write_provenance(["scgrpo", "train"], {"seed": 3, "evaluation": 4})
    run.write_provenance(["scgrpo", "train", "--resume_from_checkpoint", "last"], {"seed": 3})
    first, second = run.provenance()["starts"]
    assert first["command"] == ["scgrpo", "train"]
    assert first["seeds"] == {"seed": 3, "evaluation": 4}
    assert second["command"][-1] == "last"
    assert first["packages"]["pyarrow"]
    assert first["python"] == sys.version.split()[0]
    assert first["hardware"]["cpus"] >= 1
    assert first["time"].endswith("Z")


def test_provenance_holds_no_secret(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PRIVATE_THING", "environment-value-1234")
    secret = "hf_" + "a" * 30
    command = [
        "scgrpo",
        "train",
        "--hub_token",
        secret,
        "--api-key=not-to-be-seen",
        "--note",
        f"see {secret}",
        "--eos_token",
        "<e>",
    ]
    run.write_provenance(command, {"seed": 1})
    run.write_config(
        {"train": {"hub_token": "plain-token", "eos_token": "<e>"}, "model": {"name": "https://me:pw@host/x"}}
    )
    text = (run.path / "provenance.json").read_text() + (run.path / "config.resolved.json").read_text()
    for hidden in (secret, "environment-value-1234", "not-to-be-seen", "plain-token", "me:pw"):
        assert hidden not in text
    assert run.config()["train"] == {"hub_token": "<hidden>", "eos_token": "<e>"}
    assert run.config()["model"]["name"] == "https://<hidden>@host/x"


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["--hub_token", "x", "--seed", "1"], ["--hub_token", "<hidden>", "--seed", "1"]),
        (["--push_to_hub_token=x"], ["--push_to_hub_token=<hidden>"]),
        (["--password", "--seed", "1"], ["--password", "--seed", "1"]),
        (["--max_tokens", "5", "--pad_token", "<p>"], ["--max_tokens", "5", "--pad_token", "<p>"]),
        ([], []),
    ],
)
def test_secret_arguments(command: list[str], shown: list[str]) -> None:
    assert hide_secret_arguments(command) == shown


def test_hiding_keeps_the_rest() -> None:
    settings = {"a": [1, {"token": "x"}], "token": None, "n": 2.5, "b": True}
    assert hide_secrets(settings) == {"a": [1, {"token": "<hidden>"}], "token": None, "n": 2.5, "b": True}


def test_the_revision_is_of_a_checkout_that_tracks_the_folder(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    assert _revision(tmp_path) is None
    git("init", "-q")
    (tmp_path / "kept").write_text("1")
    git("add", "kept")
    git("commit", "-q", "-m", "one")
    assert _revision(tmp_path) == {"revision": git("rev-parse", "HEAD"), "modified": False}
    (tmp_path / "kept").write_text("2")
    assert _revision(tmp_path) == {"revision": git("rev-parse", "HEAD"), "modified": True}
    (tmp_path / "installed").mkdir()
    assert _revision(tmp_path / "installed") is None
