"""Digests of weights are remembered for as long as a file is untouched, and no longer."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path

import pytest

from conftest import eventually
from headpond.errors import ModelFileError
from headpond_workers.engines.formats import weights_digest
from headpond_workers.engines.formats.weights_digest import remembered_digest_of


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    settle(path)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "new" / "digests"


def settle(path: Path) -> None:
    """Wait until a change of the file cannot show the time of the last one."""
    until_ns = path.stat().st_ctime_ns + weights_digest._SETTLED_NS
    eventually(lambda: time.time_ns() > until_ns, what="the file being old enough")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def the_entry(cache: Path) -> Path:
    (entry,) = cache.iterdir()
    return entry


def forge(cache: Path) -> None:
    """Let the cache hold another digest, so that a test can tell whether it was asked."""
    entry = the_entry(cache)
    entry.write_text(json.dumps(json.loads(entry.read_text()) | {"sha256": "f" * 64}))


def test_a_digest_is_of_the_bytes_and_is_then_remembered(weights: Path, cache: Path) -> None:
    assert remembered_digest_of(weights, digest_cache=cache) == sha256(b"weights")
    forge(cache)
    assert remembered_digest_of(weights, digest_cache=cache) == "f" * 64


def test_a_file_that_was_written_just_now_is_not_remembered(weights: Path, cache: Path) -> None:
    weights.write_bytes(b"changed")
    assert remembered_digest_of(weights, digest_cache=cache) == sha256(b"changed")
    assert list(cache.iterdir()) == []


def test_a_link_shares_the_digest_of_its_file(weights: Path, cache: Path) -> None:
    remembered_digest_of(weights, digest_cache=cache)
    forge(cache)
    link = weights.with_name("link")
    link.symlink_to(weights)
    assert remembered_digest_of(link, digest_cache=cache) == "f" * 64


def test_only_the_owner_may_read_the_cache(weights: Path, cache: Path) -> None:
    remembered_digest_of(weights, digest_cache=cache)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert the_entry(cache).stat().st_mode & 0o777 == 0o600


def test_a_file_that_changed_is_read_again_even_if_it_claims_the_old_time(weights: Path, cache: Path) -> None:
    remembered_digest_of(weights, digest_cache=cache)
    before = weights.stat()
    weights.write_bytes(b"changed")  # of the same size, and the same inode
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert remembered_digest_of(weights, digest_cache=cache) == sha256(b"changed")


def test_a_file_that_was_replaced_is_read_again(weights: Path, cache: Path) -> None:
    remembered_digest_of(weights, digest_cache=cache)
    new = weights.with_name("new.tmp")
    new.write_bytes(b"changed")
    new.replace(weights)
    settle(weights)
    assert remembered_digest_of(weights, digest_cache=cache) == sha256(b"changed")
    forge(cache)
    assert remembered_digest_of(weights, digest_cache=cache) == "f" * 64


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"sha256": 7}', b"\xff", b"[" * 100_000, b'{"unknown": 1}'],
    ids=["empty", "cut", "list", "null", "fields missing", "no UTF-8", "deep", "unknown field"],
)
def test_a_mangled_entry_is_made_anew(weights: Path, cache: Path, content: bytes) -> None:
    remembered_digest_of(weights, digest_cache=cache)
    sound = the_entry(cache).read_bytes()
    the_entry(cache).write_bytes(content)
    assert remembered_digest_of(weights, digest_cache=cache) == sha256(b"weights")
    assert the_entry(cache).read_bytes() == sound


@pytest.mark.parametrize("digest", ["", "g" * 63, 7, None])
def test_an_entry_without_a_digest_is_made_anew(weights: Path, cache: Path, digest: object) -> None:
    remembered_digest_of(weights, digest_cache=cache)
    entry = the_entry(cache)
    entry.write_text(json.dumps(json.loads(entry.read_text()) | {"sha256": digest}))
    assert remembered_digest_of(weights, digest_cache=cache) == sha256(b"weights")


def test_a_cache_that_others_may_write_is_not_believed(
    weights: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remembered_digest_of(weights, digest_cache=cache)
    forge(cache)
    cache.chmod(0o777)
    assert remembered_digest_of(weights, digest_cache=cache) == sha256(b"weights")
    assert "digest_cache_unusable" in caplog.text


def test_a_cache_that_cannot_be_made_costs_time_alone(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert remembered_digest_of(weights, digest_cache=tmp_path / "file" / "digests") == sha256(b"weights")
    assert "digest_cache_unusable" in caplog.text


def test_a_digest_that_cannot_be_stored_costs_time_alone(
    weights: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remembered_digest_of(weights, digest_cache=cache)
    entry = the_entry(cache)
    entry.unlink()
    entry.mkdir()  # so that nothing can be renamed to it
    assert remembered_digest_of(weights, digest_cache=cache) == sha256(b"weights")
    assert "digest_not_remembered" in caplog.text
    assert list(cache.iterdir()) == [entry]


def test_a_file_that_changes_while_it_is_read_is_refused(
    weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = weights_digest._sha256

    def read_and_append(file: object) -> str:
        found = reading(file)  # type: ignore[arg-type]
        with weights.open("ab") as other:
            other.write(b"more")
        return found

    monkeypatch.setattr(weights_digest, "_sha256", read_and_append)
    with pytest.raises(ModelFileError, match="changed while it was read"):
        remembered_digest_of(weights, digest_cache=cache)
    assert list(cache.iterdir()) == []


def test_a_missing_file_is_named(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ModelFileError, match=r"No file at .*gone"):
        remembered_digest_of(tmp_path / "gone", digest_cache=cache)


def test_large_files_are_logged_when_they_are_hashed(
    weights: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_digest, "_LOGGED_FROM_BYTES", 7)
    with caplog.at_level(logging.INFO):
        remembered_digest_of(weights, digest_cache=cache)
        remembered_digest_of(weights, digest_cache=cache)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("weights_hashed file='model.safetensors' gb=0.0 seconds=")
