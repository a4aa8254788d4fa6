"""S3Blobs on a real server behind a proxy that loses, delays and damages; and with no server at all."""

from __future__ import annotations

import hashlib
import logging
import secrets
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from conftest import eventually
from cutting_proxy import Cut, CuttingProxy
from headpond.errors import BlobChanged, BlobCorrupt, ConfigError, StorageUnavailable
from headpond_workers.persistence.s3 import S3Blobs
from headpond_workers.persistence.s3_client import S3Timeouts
from headpond_workers.persistence.storage_settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed

STORED_BUT_NOT_SAID = [Cut.LOSE_REPLY, Cut.ANSWER_503, Cut.ANSWER_409]
BRISK = S3Timeouts(connect_s=2.0, unreachable_s=2.5, read_s=1.0, deadline_s=3.0)


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


@pytest.fixture
def proxy(seaweed: SeaweedProcess) -> Iterator[CuttingProxy]:
    with CuttingProxy(urlsplit(seaweed.url).port or 0) as proxy:
        yield proxy


def open_s3(seaweed: SeaweedProcess, url: str, timeouts: S3Timeouts | None = None) -> S3Blobs:
    return S3Blobs(
        StorageAddress(url, seaweed.bucket, seaweed.region, seaweed.access_key, seaweed.secret_key, "the test"),
        timeouts=timeouts,
    )


@pytest.fixture
def direct(seaweed: SeaweedProcess) -> S3Blobs:
    return open_s3(seaweed, seaweed.url)


@pytest.fixture
def cut(seaweed: SeaweedProcess, proxy: CuttingProxy) -> S3Blobs:
    return open_s3(seaweed, proxy.url, BRISK)


@pytest.fixture
def key() -> str:
    return f"test/{secrets.token_hex(8)}"


def put(key: str) -> str:
    return f"PUT /headpond/{key}"


@pytest.mark.slow
@pytest.mark.parametrize("fault", STORED_BUT_NOT_SAID)
def test_a_put_new_that_was_stored_but_not_acknowledged_succeeds(
    fault: Cut, proxy: CuttingProxy, cut: S3Blobs, direct: S3Blobs, key: str
) -> None:
    proxy.cut(fault, put(key))
    etag = cut.put_new(key, b"mine")
    found = direct.get(key)
    assert (found.body, found.etag) == (b"mine", etag)
    assert list(direct.list_keys(key)) == [key]
    assert proxy.done == [fault]
    assert proxy.requests.count(put(key)) == 2, "it was sent again under the same condition"


@pytest.mark.slow
@pytest.mark.parametrize("fault", STORED_BUT_NOT_SAID)
def test_a_put_if_that_was_stored_but_not_acknowledged_succeeds(
    fault: Cut, proxy: CuttingProxy, cut: S3Blobs, direct: S3Blobs, key: str
) -> None:
    first = direct.put_new(key, b"first")
    proxy.cut(fault, put(key))
    second = cut.put_if(key, b"second", etag=first)
    assert direct.get(key).body == b"second"
    assert proxy.done == [fault]
    # The etag that was found out is good for the next swap.
    cut.put_if(key, b"third", etag=second)
    assert direct.get(key).body == b"third"


@pytest.mark.slow
def test_a_put_that_the_server_never_got_is_sent_again(
    proxy: CuttingProxy, cut: S3Blobs, direct: S3Blobs, key: str
) -> None:
    proxy.cut(Cut.LOSE_REQUEST, put(key), count=2)
    cut.put_new(key, b"mine")
    assert direct.get(key).body == b"mine"
    assert proxy.done == [Cut.LOSE_REQUEST] * 2


@pytest.mark.slow
def test_a_put_new_that_lost_to_another_writer_is_not_taken_for_its_own(
    proxy: CuttingProxy, cut: S3Blobs, direct: S3Blobs, key: str
) -> None:
    direct.put_new(key, b"their")
    proxy.cut(Cut.LOSE_REPLY, put(key))
    with pytest.raises(BlobChanged):
        cut.put_new(key, b"mine!")
    assert direct.get(key).body == b"their"


@pytest.mark.slow
def test_a_swap_that_was_stored_and_replaced_before_its_reply_is_reported_as_changed(
    proxy: CuttingProxy, cut: S3Blobs, direct: S3Blobs, key: str
) -> None:
    first = direct.put_new(key, b"first")
    # The reply to the first try is lost, then every request until another writer has gone on from it.
    proxy.cut(Cut.LOSE_REPLY, put(key))
    proxy.cut(Cut.LOSE_REQUEST, put(key), count=1000)
    with ThreadPoolExecutor(1) as pool:
        swap = pool.submit(cut.put_if, key, b"second", etag=first)
        eventually(lambda: direct.get(key).body == b"second", what="the first try being stored")
        direct.put_if(key, b"theirs", etag=direct.get(key).etag)
        proxy.forget()
        with pytest.raises(BlobChanged):
            swap.result(30)
    assert direct.get(key).body == b"theirs"


@pytest.mark.slow
def test_a_swap_that_arrives_after_it_was_sent_again_changes_nothing(
    proxy: CuttingProxy, cut: S3Blobs, direct: S3Blobs, key: str
) -> None:
    first = direct.put_new(key, b"first")
    proxy.cut(Cut.HOLD, put(key))
    second = cut.put_if(key, b"second", etag=first)
    cut.put_if(key, b"third", etag=second)
    proxy.release()
    eventually(lambda: proxy.held_replies, what="the held request being answered")
    assert b" 412 " in proxy.held_replies[0] + b" "
    assert direct.get(key).body == b"third"


@pytest.mark.slow
def test_a_put_without_any_reply_is_storage_unavailable_within_its_deadline(
    proxy: CuttingProxy, cut: S3Blobs, direct: S3Blobs, key: str
) -> None:
    proxy.cut(Cut.LOSE_REPLY, put(key), count=1000)
    started = time.monotonic()
    with pytest.raises(StorageUnavailable, match="no complete reply") as caught:
        cut.put_new(key, b"mine")
    assert time.monotonic() - started < BRISK.deadline_s + BRISK.read_s
    assert caught.value.url == proxy.url
    # The outcome is unknown to the caller: here it was stored, and asking again finds that out.
    proxy.forget()
    assert cut.put_new(key, b"mine") == direct.get(key).etag


@pytest.mark.slow
def test_a_reply_damaged_on_the_wire_is_read_again(
    proxy: CuttingProxy, cut: S3Blobs, direct: S3Blobs, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    body = secrets.token_bytes(1000)
    direct.put_new(key, body)
    proxy.cut(Cut.DAMAGE, f"GET /headpond/{key}")
    with caplog.at_level(logging.WARNING):
        assert cut.get(key).body == body
    assert f"storage_checksum_failed key={key}" in caplog.text
    assert proxy.done == [Cut.DAMAGE]


@pytest.mark.slow
def test_an_object_that_always_fails_its_checksum_is_corrupt(
    proxy: CuttingProxy, cut: S3Blobs, direct: S3Blobs, key: str
) -> None:
    direct.put_new(key, b"as it was written")
    proxy.cut(Cut.DAMAGE, f"GET /headpond/{key}", count=1000)
    with pytest.raises(BlobCorrupt, match="SHA-256") as caught:
        cut.get(key)
    assert caught.value.key == key


@pytest.mark.slow
def test_sixteen_megabytes_survive_a_lost_reply(
    proxy: CuttingProxy, seaweed: SeaweedProcess, direct: S3Blobs, key: str
) -> None:
    body = secrets.token_bytes(16 << 20)
    proxy.cut(Cut.LOSE_REPLY, put(key))
    open_s3(seaweed, proxy.url).put_new(key, body)
    assert hashlib.sha256(direct.get(key).body).digest() == hashlib.sha256(body).digest()
    assert proxy.done == [Cut.LOSE_REPLY]


@pytest.mark.slow
def test_wrong_keys_are_a_configuration_error_that_shows_none(seaweed: SeaweedProcess) -> None:
    wrong = "wrong" * 10
    address = StorageAddress(
        seaweed.url, seaweed.bucket, seaweed.region, seaweed.access_key, wrong, "headpond.toml [storage]"
    )
    blobs = S3Blobs(address)
    for call in (lambda: blobs.get("key"), lambda: blobs.put_new("key", b"body"), blobs.ensure_bucket):
        with pytest.raises(ConfigError, match=r"headpond\.toml \[storage\].*refused") as caught:
            call()
        assert wrong not in str(caught.value)
        assert seaweed.access_key not in str(caught.value)
    assert wrong not in repr(address) + repr(blobs)
    assert seaweed.access_key not in repr(address) + repr(blobs)


def test_a_server_that_is_not_there_is_named_within_five_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    blobs = S3Blobs(StorageAddress(f"http://127.0.0.1:{port}", "b", "us-east-1", "key", "secret-value", "here.toml"))
    started = time.monotonic()
    with pytest.raises(StorageUnavailable) as caught:
        blobs.get("key")
    assert time.monotonic() - started < 5
    assert f"http://127.0.0.1:{port}" in str(caught.value)
    assert "here.toml" in str(caught.value)
    assert "secret-value" not in str(caught.value)
    assert caught.value.retry


def test_a_server_that_swallows_connections_is_named_within_five_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        # Nobody accepts: once the backlog is full, the kernel answers no further connection.
        waiting = [socket.socket() for _ in range(4)]
        try:
            for caller in waiting:
                caller.setblocking(False)
                caller.connect_ex(("127.0.0.1", port))
            blobs = S3Blobs(StorageAddress(f"http://127.0.0.1:{port}", "b", "us-east-1", "key", "secret", "here.toml"))
            started = time.monotonic()
            with pytest.raises(StorageUnavailable, match=rf"127\.0\.0\.1:{port}.*here\.toml"):
                blobs.put_new("key", b"body")
            assert 2 <= time.monotonic() - started < 5
        finally:
            for caller in waiting:
                caller.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:8333", "http://HOST:PORT"),
        ("ftp://host/", "http://HOST:PORT"),
        ("http://name:hunter2@host", "holds a password"),
        ("http://[::1", "not a URL"),
    ],
)
def test_an_endpoint_that_is_no_address_is_a_configuration_error(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        S3Blobs(StorageAddress(url, "bucket", configured_in="here.toml"))
    assert caught.value.where == "here.toml"
    assert "hunter2" not in str(caught.value)
