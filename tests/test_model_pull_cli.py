"""`headpond models pull` and `verify` as people and programs call them, on a real server."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from headpond.cli import main
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from reading_blobs import flip
from stored_versions import CHUNK_BYTES, bytes_of, put_alias, put_version
from test_pull import open_s3

HEADPOND = (sys.executable, "-c", "from headpond.cli import main; main()")
DEADLINE_S = 60


def files_of(model: str) -> dict[str, bytes]:
    """Of other bytes for each model: tests that damage objects share a server."""
    return {"config.json": b"{}", "w/model.safetensors": bytes_of(model, 20 * CHUNK_BYTES)}


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


@pytest.fixture(scope="module")
def blobs(seaweed: SeaweedProcess) -> S3Blobs:
    return open_s3(seaweed)


@pytest.fixture
def folder(seaweed: SeaweedProcess, tmp_path: Path) -> Path:
    """Of a configuration, one table of which is wrong: versions are no table's."""
    for name, secret in (("access", seaweed.access_key), ("secret", seaweed.secret_key)):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(secret)
    (tmp_path / "headpond.toml").write_text(
        f'[storage]\nendpoint_url = "{seaweed.url}"\nbucket = "{seaweed.bucket}"\n'
        f'access_key = {{file = "{tmp_path}/access"}}\nsecret_key = {{file = "{tmp_path}/secret"}}\n'
        '[models.wrong]\nengine = "scripted"\nslots = 0\n'
    )
    return tmp_path


@dataclass
class Called:
    """What a command said."""

    returncode: int
    stdout: str
    stderr: str


def headpond(folder: Path, *arguments: str) -> Called:
    """Call the command line, with `folder` as working folder."""
    out, err = io.StringIO(), io.StringIO()
    # This process goes on.
    interrupts = signal.getsignal(signal.SIGINT)
    with (
        contextlib.chdir(folder),
        patch.object(sys, "unraisablehook", sys.unraisablehook),
        patch.object(sys, "argv", ["headpond", "models", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as left,
    ):
        main()
    signal.signal(signal.SIGINT, interrupts)
    return Called(int(left.value.code or 0), out.getvalue(), err.getvalue())


def test_the_commands_say_how_they_are_called(tmp_path: Path) -> None:
    for command in ("pull", "verify"):
        shown = headpond(tmp_path, command, "--help")
        assert shown.returncode == 0
        assert f"headpond models {command} chat@3" in shown.stdout
        assert "Exit codes:" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pull", "chat@", "w"), "'chat@' names no version"),
        (("pull", "Chat@3", "w"), "'Chat' cannot name a model"),
        (("verify", "chat@0"), "'chat@0' names no version"),
        (("verify", "chat@3"), "there is no headpond.toml here or in a folder above"),
    ],
)
def test_wrong_input_is_told_in_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    refused = headpond(tmp_path, *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_a_version_is_pulled_and_verified_by_number_and_by_alias(blobs: S3Blobs, folder: Path) -> None:
    version = put_version(blobs, "chat", files_of("chat"), number=1)
    put_alias(blobs, "chat", "prod", 1)
    pulled = headpond(folder, "pull", "chat@1", "w")
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout.startswith(f"chat@1  {folder}/w  1.3 MB in ")
    assert pulled.stderr == "chat@1: pulling (1.3 MB)\n"
    assert {str(p.relative_to(folder / "w")) for p in (folder / "w").rglob("*") if p.is_file()} == set(version.files)

    as_json = headpond(folder, "pull", "chat", "again", "--json")
    found = json.loads(as_json.stdout)
    assert found.pop("seconds") > 0
    assert found == {
        "version": "chat@1", "folder": f"{folder}/again", "model_digest": version.document.model_digest, "files": 2,
        "bytes": version.manifest.size_bytes,
    }  # fmt: skip

    twice = headpond(folder, "pull", "chat@1", "w")
    assert (twice.returncode, twice.stdout) == (2, "")
    assert "is there already" in twice.stderr

    verified = headpond(folder, "verify", "chat@prod")
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.startswith("chat@1 is as it was pushed: 2 files, 21 chunks, 1.3 MB in ")
    found = json.loads(headpond(folder, "verify", "chat@1", "--json").stdout)
    assert (found["sound"], found["damage"], found["chunks"]) == (True, [], 21)

    missing = headpond(folder, "verify", "chat@next")
    assert missing.returncode == 1
    assert "headpond models promote chat 1 --alias next" in missing.stderr


@pytest.mark.slow
def test_a_damaged_version_ends_both_commands_with_1(blobs: S3Blobs, folder: Path) -> None:
    first = put_version(blobs, "bad", files_of("bad"), number=1)
    key = first.key_of("w/model.safetensors", 3)
    flip(blobs, key, at=4 * CHUNK_BYTES)
    damaged = headpond(folder, "verify", "bad@1", "--json")
    assert damaged.returncode == 1
    found = json.loads(damaged.stdout)
    assert (found["sound"], len(found["damage"])) == (False, 1)
    assert found["damage"][0].startswith(key)
    refused = headpond(folder, "pull", "bad@1", "w")
    assert refused.returncode == 1
    assert "bad@1: the version is quarantined" in refused.stderr
    flip(blobs, put_version(blobs, "worse", files_of("worse")).key_of("config.json"))
    shown = headpond(folder, "verify", "worse@1")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert "damaged: chunks/" in shown.stderr
    assert "it is damaged in storage, and quarantined" in shown.stderr
    assert not (folder / "w").exists()


@pytest.mark.slow
def test_a_terminal_is_shown_a_bar_with_its_rate(blobs: S3Blobs, folder: Path) -> None:
    put_version(blobs, "bar", files_of("bar"), number=1)
    controller, terminal = pty.openpty()
    child = subprocess.Popen(
        [*HEADPOND, "models", "pull", "bar@1", "w"], cwd=folder, stdout=subprocess.DEVNULL, stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(terminal)
    shown = bytearray()
    try:
        while part := os.read(controller, 1 << 16):
            shown += part
    except OSError:  # the terminal is closed: the command has ended
        pass
    os.close(controller)
    assert child.wait(DEADLINE_S) == 0
    assert b"bar@1: pulling" in shown
    assert b"/s" in shown
