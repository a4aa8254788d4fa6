"""The disk takes what is written while more of it comes, and an error of it is never lost."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from conftest import DEADLINE_S, eventually
from headpond.errors import ModelFileError
from headpond_workers.checkpoints.pulls import early_sync
from headpond_workers.checkpoints.pulls.early_sync import EarlySync
from headpond_workers.checkpoints.pulls.pull import pull
from memory_blobs import MemoryBlobs
from stored_versions import bytes_of, put_version

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files in the order in which they were synced, each on the real disk."""
    files: list[Path] = []
    sync = early_sync.sync_data

    def told(file: Path) -> None:
        sync(file)
        files.append(file)

    monkeypatch.setattr(early_sync, "sync_data", told)
    return files


def test_each_step_of_written_bytes_is_synced_while_more_is_written(synced: list[Path], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for file in (one, two):
        file.write_bytes(b"x" * 100)
    with EarlySync(step_bytes=100) as early:
        early.wrote(two, 50)
        early.wrote(one, 49)
        early.wrote(two, 1)
        eventually(lambda: synced == [one, two], what="the sync of both files")
        early.wrote(one, 100)
        eventually(lambda: synced == [one, two, one], what="the sync of the file that grew")
        early.wrote(two, 99)
    assert synced == [one, two, one]  # the rest is synced at the end, with all of the folder


def test_what_the_disk_refused_is_raised_by_the_next_write_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refused = threading.Event()

    def full(_file: Path) -> None:
        refused.set()
        raise FULL

    def write_once() -> None:
        with EarlySync(step_bytes=1) as early:
            early.wrote(tmp_path, 1)

    def write_on() -> None:
        with EarlySync(step_bytes=1) as early:
            early.wrote(tmp_path, 1)
            eventually(lambda: early.wrote(tmp_path, 1), what="an error")

    def fail_otherwise() -> None:
        with EarlySync(step_bytes=1) as early:
            early.wrote(tmp_path, 1)
            assert refused.wait(DEADLINE_S)
            raise KeyError

    monkeypatch.setattr(early_sync, "sync_data", full)
    for write in (write_once, write_on):
        with pytest.raises(OSError, match="No space left"):
            write()
    with pytest.raises(KeyError):
        fail_otherwise()


def test_a_pull_that_the_disk_refuses_meanwhile_gives_no_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version = put_version(MemoryBlobs(), "m", {"w.bin": bytes_of("w", 40_000)})
    monkeypatch.setattr(early_sync, "STEP_BYTES", 1)
    sync = early_sync.sync_data

    def full(_file: Path) -> None:
        raise FULL

    monkeypatch.setattr(early_sync, "sync_data", full)
    with pytest.raises(ModelFileError, match=r"Cannot pull m@1 into .*: No space left on device. Free some space"):
        pull(version.registry, 1, tmp_path / "w", progress=lambda stage, done, total: None)
    assert not (tmp_path / "w").exists()
    monkeypatch.setattr(early_sync, "sync_data", sync)
    pull(version.registry, 1, tmp_path / "w", progress=lambda stage, done, total: None)
    assert (tmp_path / "w" / "w.bin").read_bytes() == bytes_of("w", 40_000)
