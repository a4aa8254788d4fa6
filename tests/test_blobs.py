"""The port Blobs: one suite for every implementation, and for the one on S3 also behind a network that fails often."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cutting_proxy import Cut, CuttingProxy
from headpond.errors import BlobChanged, BlobCorrupt, BlobMismatch, BlobMissing, ConfigError, ModelFileError
from headpond.settings import load_settings
from headpond_workers.storage import s3
from headpond_workers.storage.blobs import Blobs
from headpond_workers.storage.byte_rate import ByteRate, Rates
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.s3_uploads import PartSizes
from headpond_workers.storage.settings import StorageAddress, configured_storage
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from memory_blobs import MemoryBlobs

WRITERS = 8
SMALL_PARTS = PartSizes(single_bytes=1 << 20, part_bytes=5 << 20, parallel=3)
"""As small as S3 allows."""
FILE_BYTES = (11 << 20) + 7
"""Three of these parts."""


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


def open_s3(seaweed: SeaweedProcess, url: str | None = None, *, rates: Rates | None = None) -> S3Blobs:
    return S3Blobs(
        StorageAddress(
            url or seaweed.url,
            seaweed.bucket,
            seaweed.region,
            seaweed.access_key,
            seaweed.secret_key,
            configured_in="the test",
        ),
        parts=SMALL_PARTS,
        rates=rates,
    )


@pytest.fixture(scope="module")
def s3_blobs(seaweed: SeaweedProcess) -> S3Blobs:
    return open_s3(seaweed)


@pytest.fixture(scope="module")
def cut_blobs(seaweed: SeaweedProcess) -> Iterator[S3Blobs]:
    """Behind a network that loses a quarter of all requests, or their replies."""
    with CuttingProxy(urlsplit(seaweed.url).port or 0) as proxy:
        proxy.cut_often(Cut.LOSE_REPLY, Cut.ANSWER_503, Cut.LOSE_REQUEST, every=4)
        yield open_s3(seaweed, proxy.url)


@pytest.fixture(
    params=["memory", pytest.param("s3", marks=pytest.mark.slow), pytest.param("cut s3", marks=pytest.mark.slow)]
)
def blobs(request: pytest.FixtureRequest) -> Blobs:
    if request.param == "memory":
        return MemoryBlobs()
    found: Blobs = request.getfixturevalue("s3_blobs" if request.param == "s3" else "cut_blobs")
    return found


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return f"test/{secrets.token_hex(8)}/thing"


def behind_cuts(request: pytest.FixtureRequest) -> bool:
    return bool(request.node.callspec.params["blobs"] == "cut s3")


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


def test_put_once_says_whether_it_stored_the_object(blobs: Blobs, key: str, request: pytest.FixtureRequest) -> None:
    digest = hashlib.sha256(b"content").digest()
    # Where replies are lost, the first call may have been answered for by its second try.
    assert blobs.put_once(key, b"content", sha256=digest) or behind_cuts(request)
    assert not blobs.put_once(key, b"content", sha256=digest)
    assert not blobs.put_once(key, b"content")
    assert blobs.get(key).body == b"content"


def test_a_body_that_is_not_what_was_hashed_is_not_stored(blobs: Blobs, key: str) -> None:
    hashed, body = secrets.token_bytes(100_000), secrets.token_bytes(100_000)
    with pytest.raises(BlobMismatch) as caught:
        blobs.put_once(key, body, sha256=hashlib.sha256(hashed).digest())
    assert caught.value.key == key
    assert blobs.size_of(key) is None
    blobs.put_once(key, hashed, sha256=hashlib.sha256(hashed).digest())
    # What was hashed is there, so the call may well succeed; it changes nothing.
    with contextlib.suppress(BlobMismatch):
        assert not blobs.put_once(key, body, sha256=hashlib.sha256(hashed).digest())
    assert blobs.get(key).body == hashed


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


def test_a_range_of_bytes_fills_a_buffer_where_it_stands(blobs: Blobs, key: str) -> None:
    body = secrets.token_bytes(3_000_000)
    blobs.put_new(key, body)
    buffer = bytearray(b"-" * 2_000_004)
    blobs.read_into(key, memoryview(buffer)[2:-2], offset=999_999)
    assert buffer == b"--" + body[999_999:2_999_999] + b"--"
    whole = bytearray(len(body))
    blobs.read_into(key, memoryview(whole))
    assert whole == body


def test_a_range_that_the_object_does_not_have_is_corrupt(blobs: Blobs, key: str) -> None:
    blobs.put_new(key, b"x" * 1000)
    for size, offset in ((1001, 0), (2, 999), (1, 1000), (1, 5000), (0, 1001)):
        with pytest.raises(BlobCorrupt) as caught:
            blobs.read_into(key, memoryview(bytearray(size)), offset=offset)
        assert caught.value.key == key
    blobs.read_into(key, memoryview(bytearray(0)), offset=1000)
    for size in (0, 1):
        with pytest.raises(BlobMissing):
            blobs.read_into(key + "-2", memoryview(bytearray(size)))


def test_many_threads_read_ranges_of_one_object(blobs: Blobs, key: str) -> None:
    body = secrets.token_bytes(1 << 20)
    blobs.put_new(key, body)
    buffer = bytearray(len(body))
    piece = len(body) // 16

    def read(number: int) -> None:
        blobs.read_into(key, memoryview(buffer)[number * piece : (number + 1) * piece], offset=number * piece)

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(read, range(16)))
    assert buffer == body


def test_the_size_of_an_object_is_known_and_none_if_there_is_none(blobs: Blobs, key: str) -> None:
    assert blobs.size_of(key) is None
    blobs.put_new(key, b"x" * 12_345)
    assert blobs.size_of(key) == 12_345


def test_a_listing_with_sizes_has_the_keys_of_one_without(
    blobs: Blobs, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "LIST_PAGE_KEYS", 2)
    sizes = [(f"{key}/{number}", number * 1000) for number in range(5)]
    for name, size in sizes:
        blobs.put_new(name, bytes(size))
    assert list(blobs.list_sizes(key + "/")) == sizes
    assert list(blobs.list_keys(key + "/")) == [name for name, _ in sizes]


@pytest.mark.parametrize("size", [0, 1000, 1 << 20, FILE_BYTES], ids=["none", "few", "one put", "in parts"])
def test_a_file_of_any_size_is_stored_whole_and_once(
    blobs: Blobs, key: str, tmp_path: Path, size: int, request: pytest.FixtureRequest
) -> None:
    body = secrets.token_bytes(size)
    path = tmp_path / "weights"
    path.write_bytes(body)
    blobs.put_file(key, path)
    assert blobs.size_of(key) == size
    found = bytearray(size)
    blobs.read_into(key, memoryview(found))
    assert found == body
    blobs.put_file(key, path)
    if size:
        path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
        with pytest.raises(BlobCorrupt, match="other content"):
            blobs.put_file(key, path)
    path.write_bytes(body + b"more")
    with pytest.raises(BlobCorrupt, match="other content"):
        blobs.put_file(key, path)
    blobs.read_into(key, memoryview(found))
    assert found == body
    left = blobs.abort_uploads(key, older_than_s=0)
    # Nobody knows the name of an upload whose beginning got no reply.
    assert left == 0 or behind_cuts(request)


def test_of_many_writers_of_one_file_each_finds_it_stored(
    blobs: Blobs, key: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(secrets.token_bytes(6 << 20))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: blobs.put_file(key, path), range(3)))
    assert blobs.size_of(key) == 6 << 20
    assert blobs.abort_uploads(key, older_than_s=0) == 0 or behind_cuts(request)


def test_what_is_no_readable_file_is_refused_with_its_path(blobs: Blobs, key: str, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ModelFileError, match=str(path)):
            blobs.put_file(key, path)
    assert blobs.size_of(key) is None


def test_of_many_writers_that_create_one_key_exactly_one_wins(
    blobs: Blobs, key: str, request: pytest.FixtureRequest
) -> None:
    for number in range(3 if behind_cuts(request) else 10):
        name = f"{key}-{number}"

        def create(writer: str, name: str = name) -> str:
            blobs.put_new(name, writer.encode())
            return writer

        won = race([partial(create, f"writer-{n}") for n in range(WRITERS)])
        assert len(won) == 1
        assert blobs.get(name).body == won[0].encode()


def test_a_counter_that_many_writers_swap_loses_no_update(
    blobs: Blobs, key: str, request: pytest.FixtureRequest
) -> None:
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
    counted = int(blobs.get(key).body.split()[0])
    if behind_cuts(request):
        # A swap whose reply was lost and that another writer went on from is reported as lost, and was counted.
        assert counted >= WRITERS * rounds
    else:
        assert counted == WRITERS * rounds


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


class Counted(ByteRate):
    """Holds nobody up, and knows what went through."""

    def __init__(self) -> None:
        super().__init__(1e6, clock=lambda: 0.0, sleep=lambda _: None)
        self.taken = 0

    def take(self, size: int) -> None:
        self.taken += size
        super().take(size)


@pytest.mark.slow
def test_every_byte_that_goes_or_comes_keeps_to_its_rate(seaweed: SeaweedProcess, key: str, tmp_path: Path) -> None:
    rates = Rates(up=Counted(), down=Counted())

    def counted() -> tuple[int, int]:
        return rates.up.taken, rates.down.taken  # type: ignore[union-attr]

    blobs = open_s3(seaweed, rates=rates)
    etag = blobs.put_new(key, b"x" * 1000)
    blobs.put_if(key, b"y" * 500_000, etag=etag)
    assert counted() == (501_000, 0)
    blobs.get(key)
    blobs.read_into(key, memoryview(bytearray(1234)), offset=5)
    assert counted() == (501_000, 501_234)
    path = tmp_path / "weights"
    path.write_bytes(bytes(FILE_BYTES))
    blobs.put_file(key + "-2", path)
    assert counted() == (501_000 + FILE_BYTES, 501_234)


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
