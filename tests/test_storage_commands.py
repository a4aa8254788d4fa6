"""`headpond storage` and `headpond models delete`, on a real storage."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bucket_policy import Policy, policies
from headpond.cli.app import build_app
from headpond.cli.exits import exit_code
from headpond.errors import HeadpondError
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.collection.gc import GRACE_MS, Collector
from headpond_workers.checkpoints.collection.scrub import scrub
from headpond_workers.checkpoints.delete import delete_version
from headpond_workers.checkpoints.document_io import now_ms
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.storage_status import storage_status
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from model_pusher import push

pytestmark = pytest.mark.slow
HEADPOND = [sys.executable, "-c", "from headpond.cli import main; main()"]


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


def open_bucket(seaweed: SeaweedProcess, bucket: str) -> S3Blobs:
    return S3Blobs(
        StorageAddress(seaweed.url, bucket, seaweed.region, seaweed.access_key, seaweed.secret_key, "the test")
    )


@dataclass
class Said:
    returncode: int
    stdout: str
    stderr: str


class Shell:
    """Commands in a folder whose configuration names a bucket of this test alone."""

    def __init__(self, seaweed: SeaweedProcess, folder: Path, bucket: str) -> None:
        self.folder = folder
        self.blobs = open_bucket(seaweed, bucket)
        self.blobs.ensure_bucket()
        for name, value in (("access", seaweed.access_key), ("secret", seaweed.secret_key)):
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(value)
        (folder / "headpond.toml").write_text(
            f'[storage]\nendpoint_url = "{seaweed.url}"\nbucket = "{bucket}"\n'
            f'access_key = {{file = "{folder / "access"}"}}\nsecret_key = {{file = "{folder / "secret"}"}}\n'
            # A table that cannot be used is none of these commands' business.
            '[models.broken]\nengine = "llamacpp"\n'
        )

    def command(self, *arguments: str) -> Said:
        done = CliRunner().invoke(build_app(), [*arguments, "--config", str(self.folder / "headpond.toml")])
        if isinstance(done.exception, HeadpondError):
            return Said(exit_code(done.exception), done.stdout, f"{done.stderr}{done.exception}")
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return Said(done.exit_code, done.stdout, done.stderr)

    def json(self, *arguments: str) -> dict[str, Any]:
        done = self.command(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    @property
    def registry(self) -> Registry:
        return Registry(self.blobs, "chat", writer="the test")


@pytest.fixture
def shell(seaweed: SeaweedProcess, tmp_path: Path) -> Shell:
    shell = Shell(seaweed, tmp_path, f"b{secrets.token_hex(6)}")
    push(shell.blobs, "chat", [b"shared" * 1000, b"first" * 1000])
    push(shell.blobs, "chat", [b"shared" * 1000, b"second" * 1000])
    return shell


def test_a_deleted_version_is_collected_by_two_runs_a_grace_apart(shell: Shell) -> None:
    assert shell.json("models", "delete", "chat", "1") == {"model": "chat", "version": 1, "state": "deleted"}
    preview = shell.json("storage", "gc", "--dry-run")
    assert (preview["condemned"], preview["dry_run"]) == (2, True)
    assert shell.json("storage", "status")["rounds"] == []
    first = shell.json("storage", "gc", "--grace", "0", "--overtake-pushes")
    assert (first["condemned"], first["deleted"], first["round"]) == (2, 0, 1)
    second = shell.json("storage", "gc")
    assert (second["deleted"], second["rounds"]) == (2, [1])
    assert second["deleted_bytes"] > 5000
    assert shell.registry.manifest_of(shell.registry.complete(2)).objects
    left = [key for key in shell.blobs.list_keys("chunks/")]
    assert len(left) == 2


def test_the_default_grace_deletes_nothing_on_the_same_day(shell: Shell) -> None:
    shell.command("models", "delete", "chat", "1")
    told = shell.command("storage", "gc")
    assert told.returncode == 0
    assert "condemned: 2 objects" in told.stderr
    assert "none due" in told.stderr
    assert shell.json("storage", "gc")["deleted"] == 0


def test_a_short_grace_takes_a_flag(shell: Shell) -> None:
    refused = shell.command("storage", "gc", "--grace", "0.5")
    assert refused.returncode == 2
    assert "--overtake-pushes" in refused.stderr
    assert shell.json("storage", "status")["epoch"] == 1, "nothing was begun"


def test_a_version_in_use_is_not_deleted_and_it_is_said_why(shell: Shell) -> None:
    aliases = Aliases(shell.registry)
    for number in (1, 2):
        aliases.move("prod", to=number, left=None, who="the test")
    refused = shell.command("models", "delete", "chat", "2")
    assert refused.returncode != 0
    assert "'prod' names it" in refused.stderr
    assert "--force" in shell.command("models", "delete", "chat", "1").stderr
    assert shell.command("models", "delete", "chat", "1", "--force").returncode == 0
    assert shell.command("models", "delete", "chat", "7").returncode != 0
    assert shell.command("models", "delete", "Chat", "1").returncode == 2


def test_the_status_shows_what_is_stored(shell: Shell) -> None:
    found = shell.json("storage", "status")
    assert found["versions"] == {"complete": 2}
    assert found["stored"] == {"objects": 3, "bytes": 17_000}
    assert found["version_bytes"] == 23_000
    assert found["dedup_ratio"] == pytest.approx(23 / 17)
    told = shell.command("storage", "status").stdout
    assert "versions: 2 complete" in told
    assert "dedup ratio: 1.35" in told


def test_a_scrub_says_what_is_bad_and_leaves_with_one(shell: Shell) -> None:
    whole = shell.json("storage", "scrub")
    assert (whole["versions"], whole["objects"], whole["findings"]) == (2, 3, [])
    manifest = shell.registry.manifest_of(shell.registry.complete(1))
    key = manifest.objects[0].key
    body = bytearray(shell.blobs.get(key).body)
    body[1234] ^= 1
    shell.blobs.delete(key)
    shell.blobs.put_new(key, bytes(body))
    bad = shell.command("storage", "scrub")
    assert bad.returncode == 1
    assert f"BAD: {key}" in bad.stderr
    assert "chat@1" in bad.stderr
    assert "scrub: 100%" in bad.stderr
    done = shell.command("storage", "scrub", "--json")
    assert (done.returncode, json.loads(done.stdout)["findings"]) == (0, [])


def test_a_traceback_never_reaches_the_shell(shell: Shell) -> None:
    shell.blobs.delete(shell.registry.complete(1).manifest)
    done = subprocess.run(
        [*HEADPOND, "storage", "gc"], cwd=shell.folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "headpond models delete chat 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_collection_that_was_killed_is_gone_on_with_at_once(shell: Shell) -> None:
    shell.command("models", "delete", "chat", "1")
    killed = subprocess.Popen([*HEADPOND, "storage", "gc"], cwd=shell.folder, stderr=subprocess.PIPE, text=True)
    assert killed.stderr is not None
    assert killed.stderr.readline() == "mark\n"
    killed.kill()
    killed.wait(30)
    killed.stderr.close()
    assert shell.command("storage", "gc").returncode == 0
    found = shell.json("storage", "status")
    assert (found["holder"], found["condemned"]["objects"]) == ("", 2)


def test_each_part_does_with_the_rights_that_the_manual_gives_it(seaweed: SeaweedProcess) -> None:
    """Of real code, the quarantine by a worker included."""
    manual = (Path(__file__).parents[1] / "docs" / "security.md").read_text(encoding="utf-8")
    _, worker, pusher, collector, *_ = (policy for _, policy in policies(manual))
    bucket = f"b{secrets.token_hex(6)}"
    open_bucket(seaweed, bucket).ensure_bucket()

    def registry(policy: Policy) -> Registry:
        for statement in policy.statements:
            statement["Resource"] = json.loads(json.dumps(statement["Resource"]).replace(":headpond", f":{bucket}"))
        blobs = open_bucket(seaweed, bucket)
        policy.guard(blobs._bucket.client)
        return Registry(blobs, "chat", writer="the test")

    mover = registry(pusher)
    for text in (b"one", b"two", b"three"):
        push(mover.blobs, "chat", [b"shared", text])
    Aliases(mover).move("prod", to=3, left=0, who="the test")
    delete_version(Aliases(mover), 1)
    loader = registry(worker)
    assert loader.quarantine(2, reason="a chunk is damaged")
    assert Aliases(loader).resolve("prod").number == 3
    runner = registry(collector).blobs
    assert storage_status(runner, writer="the test").versions == {"complete": 1, "deleted": 1, "quarantined": 1}
    for ahead_ms in (0, GRACE_MS):
        Collector(runner, writer="c", now_ms=lambda ahead_ms=ahead_ms: now_ms() + ahead_ms).collect()  # type: ignore[misc]
    assert len(list(runner.list_keys("chunks/"))) == 3
    runner.delete(mover.manifest_of(mover.complete(3)).objects[0].key)
    assert scrub(runner, writer="the test").findings[0].quarantined == ("chat@3",)


def test_each_command_has_examples_in_its_help() -> None:
    for command in (["storage", name] for name in ("status", "gc", "scrub")):
        done = CliRunner().invoke(build_app(), [*command, "--help"])
        assert done.exit_code == 0
        assert f"headpond {' '.join(command)}" in done.stdout
    done = CliRunner().invoke(build_app(), ["models", "delete", "--help"])
    assert "headpond models delete chat 2" in done.stdout
