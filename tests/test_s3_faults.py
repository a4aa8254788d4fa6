"""S3Blobs on a real server behind a proxy that loses, delays and damages; and with no server at all."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from conftest import eventually
from cutting_proxy import Cut, CuttingProxy
from headpond.errors import BlobChanged, BlobCorrupt, ConfigError, ModelFileError, StorageUnavailable
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.s3_client import S3Timeouts
from headpond_workers.storage.s3_uploads import PartSizes
from headpond_workers.storage.settings import StorageAddress
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


@pytest.fixture(scope="module")
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


def in_parts(seaweed: SeaweedProcess, url: str, timeouts: S3Timeouts | None = None) -> S3Blobs:
    """Parts as small as S3 allows."""
    return S3Blobs(
        StorageAddress(url, seaweed.bucket, seaweed.region, seaweed.access_key, seaweed.secret_key, "the test"),
        timeouts=timeouts,
        parts=PartSizes(single_bytes=1 << 20, part_bytes=5 << 20, parallel=2),
    )


@pytest.fixture
def uploads(seaweed: SeaweedProcess, proxy: CuttingProxy) -> S3Blobs:
    return in_parts(seaweed, proxy.url, BRISK)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of two parts."""
    path = tmp_path / "weights"
    path.write_bytes(secrets.token_bytes((6 << 20) + 1))
    return path


def read_back(blobs: S3Blobs, key: str, size: int) -> bytes:
    buffer = bytearray(size)
    blobs.read_into(key, memoryview(buffer))
    return bytes(buffer)


def completed(key: str) -> str:
    return f"POST /headpond/{key}?uploadId="


@pytest.mark.slow
@pytest.mark.parametrize("fault", STORED_BUT_NOT_SAID)
def test_an_upload_that_was_completed_but_not_acknowledged_is_found_stored(
    fault: Cut, proxy: CuttingProxy, uploads: S3Blobs, direct: S3Blobs, key: str, weights: Path
) -> None:
    proxy.cut(fault, completed(key))
    uploads.put_file(key, weights)
    assert proxy.done == [fault]
    assert read_back(direct, key, weights.stat().st_size) == weights.read_bytes()
    assert sum(line.startswith(f"POST /headpond/{key}?uploads") for line in proxy.requests) == 1, "nothing sent anew"
    assert direct.abort_uploads(key, older_than_s=0) == 0


@pytest.mark.slow
def test_a_complete_that_the_server_never_got_is_sent_again(
    proxy: CuttingProxy, uploads: S3Blobs, direct: S3Blobs, key: str, weights: Path
) -> None:
    proxy.cut(Cut.LOSE_REQUEST, completed(key), count=2)
    uploads.put_file(key, weights)
    assert proxy.done == [Cut.LOSE_REQUEST] * 2
    assert read_back(direct, key, weights.stat().st_size) == weights.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Cut.LOSE_REPLY, Cut.LOSE_REQUEST, Cut.ANSWER_503, Cut.DAMAGE_REQUEST])
def test_a_part_that_was_lost_or_damaged_on_its_way_is_sent_again(
    fault: Cut, proxy: CuttingProxy, uploads: S3Blobs, direct: S3Blobs, key: str, weights: Path
) -> None:
    proxy.cut(fault, f"{put(key)}?uploadId=")
    uploads.put_file(key, weights)
    assert proxy.done == [fault]
    assert read_back(direct, key, weights.stat().st_size) == weights.read_bytes()


@pytest.mark.slow
def test_an_upload_whose_parts_get_no_answer_is_given_up_and_leaves_none_open(
    proxy: CuttingProxy, uploads: S3Blobs, direct: S3Blobs, key: str, weights: Path
) -> None:
    proxy.cut(Cut.LOSE_REQUEST, f"{put(key)}?uploadId=", count=1000)
    with pytest.raises(StorageUnavailable):
        uploads.put_file(key, weights)
    assert direct.size_of(key) is None
    assert any(line.startswith(f"DELETE /headpond/{key}?uploadId=") for line in proxy.requests)
    assert direct.abort_uploads(key, older_than_s=0) == 0
    proxy.forget()
    uploads.put_file(key, weights)
    assert read_back(direct, key, weights.stat().st_size) == weights.read_bytes()


def meanwhile(blobs: S3Blobs, operation: str, act: Callable[[], object]) -> S3Blobs:
    """Do something, once, just before the client sends its first request of that operation."""
    acts = [act]

    def first(**_: object) -> None:
        if acts:
            acts.pop()()

    blobs._bucket.client.meta.events.register(f"before-call.s3.{operation}", first)
    return blobs


@pytest.mark.slow
def test_an_upload_that_lost_to_the_same_file_is_stored_and_to_another_is_corrupt(
    seaweed: SeaweedProcess, direct: S3Blobs, key: str, weights: Path
) -> None:
    complete = "CompleteMultipartUpload"
    others = in_parts(seaweed, seaweed.url)
    own = meanwhile(in_parts(seaweed, seaweed.url), complete, lambda: others.put_file(key, weights))
    own.put_file(key, weights)
    assert read_back(direct, key, weights.stat().st_size) == weights.read_bytes()

    other = weights.with_name("other")
    other.write_bytes(weights.read_bytes()[::-1])
    late = meanwhile(in_parts(seaweed, seaweed.url), complete, lambda: others.put_file(key + "-2", other))
    with pytest.raises(BlobCorrupt, match="other content"):
        late.put_file(key + "-2", weights)
    assert read_back(direct, key + "-2", other.stat().st_size) == other.read_bytes()
    assert direct.abort_uploads(key, older_than_s=0) == 0, "what was refused is not left open"


@pytest.mark.slow
def test_an_upload_that_a_collector_aborted_is_sent_anew(
    seaweed: SeaweedProcess, direct: S3Blobs, key: str, weights: Path
) -> None:
    aborted: list[int] = []
    blobs = meanwhile(
        in_parts(seaweed, seaweed.url),
        "CompleteMultipartUpload",
        lambda: aborted.append(direct.abort_uploads(key, older_than_s=0)),
    )
    blobs.put_file(key, weights)
    assert aborted == [1]
    assert read_back(direct, key, weights.stat().st_size) == weights.read_bytes()


UPLOADER = """
import os, sys
from pathlib import Path
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.s3_uploads import PartSizes
from headpond_workers.storage.settings import StorageAddress

url, bucket, key, path = sys.argv[1:]
address = StorageAddress(url, bucket, "us-east-1", os.environ["S3_KEY"], os.environ["S3_SECRET"])
S3Blobs(address, parts=PartSizes(1 << 20, 5 << 20, 1)).put_file(key, Path(path))
"""


@pytest.mark.slow
def test_what_a_killed_process_left_of_its_upload_is_found_and_aborted(
    seaweed: SeaweedProcess, proxy: CuttingProxy, direct: S3Blobs, key: str, weights: Path
) -> None:
    proxy.cut(Cut.HOLD, f"{put(key)}?uploadId=", skip=1)
    child = subprocess.Popen(
        [sys.executable, "-c", UPLOADER, proxy.url, seaweed.bucket, key, str(weights)],
        env={**os.environ, "S3_KEY": seaweed.access_key, "S3_SECRET": seaweed.secret_key},
    )
    try:
        eventually(lambda: proxy.done, what="the second part being on its way")
    finally:
        child.kill()
        child.wait(30)
    assert direct.size_of(key) is None
    assert direct.abort_uploads(key, older_than_s=3600) == 0, "it is not old yet"
    assert direct.abort_uploads(key + "-other", older_than_s=0) == 0
    assert direct.abort_uploads(key, older_than_s=0) == 1
    assert direct.abort_uploads(key, older_than_s=0) == 0
    in_parts(seaweed, seaweed.url).put_file(key, weights)
    assert read_back(direct, key, weights.stat().st_size) == weights.read_bytes()


@pytest.mark.slow
def test_a_file_that_becomes_shorter_while_it_is_sent_is_refused_and_not_stored(
    uploads: S3Blobs, direct: S3Blobs, key: str, weights: Path
) -> None:
    meanwhile(uploads, "CreateMultipartUpload", lambda: os.truncate(weights, 100))
    with pytest.raises(ModelFileError, match=f"{weights}.*shorter"):
        uploads.put_file(key, weights)
    assert direct.size_of(key) is None
    assert direct.abort_uploads(key, older_than_s=0) == 0


@pytest.mark.slow
def test_a_range_whose_stream_was_cut_goes_on_from_there(
    proxy: CuttingProxy, cut: S3Blobs, direct: S3Blobs, key: str
) -> None:
    body = secrets.token_bytes(3 << 20)
    direct.put_new(key, body)
    buffer = bytearray(2 << 20)
    proxy.cut(Cut.CUT_REPLY, f"GET /headpond/{key}", count=3)
    cut.read_into(key, memoryview(buffer), offset=1 << 20)
    assert buffer == body[1 << 20 :]
    assert proxy.done == [Cut.CUT_REPLY] * 3
    ranges = [line for head in proxy.heads for line in head.split("\r\n") if line.startswith("Range: ")]
    starts = [int(line.removeprefix("Range: bytes=").split("-")[0]) for line in ranges]
    assert starts[0] == 1 << 20
    assert starts == sorted(set(starts)), "each try goes on where the last one ended"


@pytest.mark.slow
def test_a_range_of_an_object_that_was_replaced_between_two_tries_is_of_one_object(
    proxy: CuttingProxy, cut: S3Blobs, direct: S3Blobs, key: str
) -> None:
    etag = direct.put_new(key, b"a" * 100_000)
    swaps = [lambda: direct.put_if(key, b"b" * 100_000, etag=etag)]

    def second_try(**_: object) -> None:
        if proxy.done and swaps:
            swaps.pop()()

    cut._bucket.client.meta.events.register("before-call.s3.GetObject", second_try)
    proxy.cut(Cut.CUT_REPLY, f"GET /headpond/{key}")
    buffer = bytearray(100_000)
    cut.read_into(key, memoryview(buffer))
    assert not swaps
    assert buffer == b"b" * 100_000


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Cut.LOSE_REPLY, Cut.LOSE_REQUEST, Cut.ANSWER_503, Cut.CUT_REPLY])
def test_a_read_that_got_no_whole_answer_is_repeated(
    fault: Cut, proxy: CuttingProxy, cut: S3Blobs, direct: S3Blobs, key: str
) -> None:
    body = secrets.token_bytes(300_000)
    direct.put_new(key, body)
    proxy.cut(fault, f"GET /headpond/{key}")
    assert cut.get(key).body == body
    proxy.cut(fault, f"GET /headpond/{key}")
    assert read_back(cut, key, len(body)) == body
    assert proxy.done == [fault] * 2


@pytest.mark.slow
def test_a_range_that_never_comes_whole_is_storage_unavailable(
    proxy: CuttingProxy, cut: S3Blobs, direct: S3Blobs, key: str
) -> None:
    direct.put_new(key, b"body")
    proxy.cut(Cut.LOSE_REPLY, f"GET /headpond/{key}", count=1000)
    with pytest.raises(StorageUnavailable, match="no complete reply"):
        cut.read_into(key, memoryview(bytearray(4)))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 1 << 20], ids=["small", "large"])
def test_a_body_damaged_on_its_way_is_refused_by_the_server_and_sent_again(
    size: int, proxy: CuttingProxy, cut: S3Blobs, direct: S3Blobs, key: str
) -> None:
    body = secrets.token_bytes(size)
    proxy.cut(Cut.DAMAGE_REQUEST, put(key))
    cut.put_new(key, body)
    assert proxy.done == [Cut.DAMAGE_REQUEST]
    assert direct.get(key).body == body


@pytest.mark.slow
def test_a_bit_that_flipped_in_storage_is_noticed_by_get(seaweed: SeaweedProcess, key: str) -> None:
    direct = open_s3(seaweed, seaweed.url, BRISK)
    body = secrets.token_bytes(50_000)
    direct.put_new(key, body)
    flipped = 0
    for path in seaweed.folder.rglob("*.dat"):
        data = path.read_bytes()
        at = data.find(body[:64])
        if at >= 0:
            with path.open("r+b") as volume:
                volume.seek(at + 25_000)
                volume.write(bytes([data[at + 25_000] ^ 1]))
            flipped += 1
    assert flipped == 1
    with pytest.raises((BlobCorrupt, StorageUnavailable)):
        direct.get(key)
