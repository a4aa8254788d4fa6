"""The port Blobs: one suite for every implementation."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from headpond.errors import BlobChanged, BlobCorrupt, BlobMissing, ConfigError
from headpond.settings import load_settings
from headpond_workers.persistence import s3
from headpond_workers.persistence.blobs import Blobs
from headpond_workers.persistence.s3 import S3Blobs
from headpond_workers.persistence.storage_settings import StorageAddress, configured_storage
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from memory_blobs import MemoryBlobs

WRITERS = 8


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


def open_s3(seaweed: SeaweedProcess) -> S3Blobs:
    return S3Blobs(
        StorageAddress(
            seaweed.url,
            seaweed.bucket,
            seaweed.region,
            seaweed.access_key,
            seaweed.secret_key,
            configured_in="the test",
        )
    )


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def blobs(request: pytest.FixtureRequest) -> Blobs:
    if request.param == "memory":
        return MemoryBlobs()
    seaweed: SeaweedProcess = request.getfixturevalue("seaweed")
    return open_s3(seaweed)


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return f"test/{secrets.token_hex(8)}/thing"


def race(writers: list[Callable[[], str]]) -> list[str]:
    """Run all at once; the names of those that were not refused."""

    def run(writer: Callable[[], str]) -> str | None:
        try:
            return writer()
        except BlobChanged:
            return None

    with ThreadPoolExecutor(len(writers)) as pool:
        return [name for name in pool.map(run, writers) if name is not None]


def test_what_is_put_is_read_with_the_etag_that_put_returned(blobs: Blobs, key: str) -> None:
    body = bytes(range(256)) * 5000
    etag = blobs.put_new(key, body)
    found = blobs.get(key)
    assert found.body == body
    assert found.etag == etag


def test_an_object_that_is_not_there_is_missing(blobs: Blobs, key: str) -> None:
    with pytest.raises(BlobMissing) as caught:
        blobs.get(key)
    assert caught.value.key == key


def test_put_new_leaves_an_existing_object_alone(blobs: Blobs, key: str) -> None:
    blobs.put_new(key, b"first")
    with pytest.raises(BlobChanged):
        blobs.put_new(key, b"second")
    assert blobs.get(key).body == b"first"


def test_put_if_replaces_only_what_was_read(blobs: Blobs, key: str) -> None:
    first = blobs.put_new(key, b"first")
    second = blobs.put_if(key, b"second", etag=first)
    assert second != first
    with pytest.raises(BlobChanged):
        blobs.put_if(key, b"third", etag=first)
    assert blobs.get(key).body == b"second"


def test_put_if_of_an_object_that_is_gone_is_refused(blobs: Blobs, key: str) -> None:
    etag = blobs.put_new(key, b"first")
    blobs.delete(key)
    with pytest.raises(BlobChanged):
        blobs.put_if(key, b"second", etag=etag)
    with pytest.raises(BlobMissing):
        blobs.get(key)


def test_put_once_may_be_repeated_but_never_with_other_content(blobs: Blobs, key: str) -> None:
    blobs.put_once(key, b"content")
    blobs.put_once(key, b"content")
    with pytest.raises(BlobCorrupt):
        blobs.put_once(key, b"tnetnoc")
    assert blobs.get(key).body == b"content"


def test_an_object_longer_than_the_reader_allows_is_refused(blobs: Blobs, key: str) -> None:
    blobs.put_new(key, b"x" * 1000)
    with pytest.raises(BlobCorrupt, match="1000 bytes; at most 999"):
        blobs.get(key, max_bytes=999)
    assert len(blobs.get(key, max_bytes=1000).body) == 1000


def test_an_empty_object_is_an_object(blobs: Blobs, key: str) -> None:
    blobs.put_new(key, b"")
    assert blobs.get(key).body == b""


def test_delete_removes_one_object_and_may_be_repeated(blobs: Blobs, key: str) -> None:
    blobs.put_new(key, b"body")
    blobs.put_new(key + "-2", b"body")
    blobs.delete(key)
    blobs.delete(key)
    with pytest.raises(BlobMissing):
        blobs.get(key)
    assert blobs.get(key + "-2").body == b"body"


def test_a_listing_is_sorted_and_whole_over_many_pages(blobs: Blobs, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "LIST_PAGE_KEYS", 3)
    keys = [f"{key}/{number:02d}" for number in range(7)]
    for name in reversed(keys):
        blobs.put_new(name, name.encode())
    blobs.put_new(key.replace("thing", "think"), b"another prefix")
    assert list(blobs.list_keys(key + "/")) == keys
    assert list(blobs.list_keys(key + "/07")) == []


def test_of_many_writers_that_create_one_key_exactly_one_wins(blobs: Blobs, key: str) -> None:
    for number in range(10):
        name = f"{key}-{number}"

        def create(writer: str, name: str = name) -> str:
            blobs.put_new(name, writer.encode())
            return writer

        won = race([partial(create, f"writer-{n}") for n in range(WRITERS)])
        assert len(won) == 1
        assert blobs.get(name).body == won[0].encode()


def test_a_counter_that_many_writers_swap_loses_no_update(blobs: Blobs, key: str) -> None:
    blobs.put_new(key, b"0 start")
    rounds = 5

    def count(writer: int) -> int:
        done = 0
        while done < rounds:
            found = blobs.get(key)
            body = f"{int(found.body.split()[0]) + 1} {writer}-{secrets.token_hex(8)}".encode()
            try:
                blobs.put_if(key, body, etag=found.etag)
                done += 1
            except BlobChanged:
                continue
        return done

    with ThreadPoolExecutor(WRITERS) as pool:
        assert sum(pool.map(count, range(WRITERS))) == WRITERS * rounds
    assert int(blobs.get(key).body.split()[0]) == WRITERS * rounds


@pytest.mark.slow
def test_what_was_acknowledged_outlives_the_kill_of_the_server(tmp_path: Path) -> None:
    with running_seaweed(tmp_path) as seaweed:
        blobs = open_s3(seaweed)
        etags = {}
        for number in range(20):
            etags[number] = blobs.put_new(f"kept/{number}", b"%d" % number * 500)
        seaweed.kill()
        seaweed.start()
        for number, etag in etags.items():
            found = blobs.get(f"kept/{number}")
            assert (found.body, found.etag) == (b"%d" % number * 500, etag)


@pytest.mark.slow
def test_ensure_bucket_makes_the_bucket_and_may_be_repeated(seaweed: SeaweedProcess, key: str) -> None:
    address = StorageAddress(seaweed.url, "another", seaweed.region, seaweed.access_key, seaweed.secret_key)
    blobs = S3Blobs(address)
    blobs.ensure_bucket()
    blobs.ensure_bucket()
    blobs.put_new(key, b"in another bucket")
    assert blobs.get(key).body == b"in another bucket"
    with pytest.raises(BlobMissing):
        open_s3(seaweed).get(key)


def test_the_configured_storage_is_resolved_and_shows_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_S3_KEY", "the-access-key")
    (tmp_path / "secret").write_text("the-secret-key\n")
    config = tmp_path / "headpond.toml"
    config.write_text(
        '[storage]\nendpoint_url = "http://127.0.0.1:9"\nbucket = "pond"\n'
        f'access_key = {{env = "TEST_S3_KEY"}}\nsecret_key = {{file = "{tmp_path / "secret"}"}}\n'
    )
    address = configured_storage(load_settings(config))
    assert address is not None
    assert (address.endpoint_url, address.bucket) == ("http://127.0.0.1:9", "pond")
    assert (address.access_key, address.secret_key) == ("the-access-key", "the-secret-key")
    assert str(config) in address.configured_in
    assert "the-" not in repr(address)


def test_a_missing_secret_is_named_with_its_place(tmp_path: Path) -> None:
    config = tmp_path / "headpond.toml"
    config.write_text(
        '[storage]\nendpoint_url = "http://127.0.0.1:9"\n'
        'access_key = {env = "TEST_S3_UNSET"}\nsecret_key = {env = "TEST_S3_UNSET"}\n'
    )
    with pytest.raises(ConfigError, match=r"headpond\.toml \[storage\] access_key.*TEST_S3_UNSET is not set"):
        configured_storage(load_settings(config))
    config.write_text('[storage]\nendpoint_url = "http://127.0.0.1:9"\naccess_key = {env = "TEST_S3_UNSET"}\n')
    with pytest.raises(ConfigError, match="access_key and secret_key, or neither"):
        configured_storage(load_settings(config))
