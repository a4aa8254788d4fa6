"""Stored prefixes on a real S3 server: from one host to another, damaged there, cut off, away, forgotten."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from child_environment import with_test_modules
from conftest import eventually
from headpond.errors import BlobCorrupt, HeadpondError, MalformedDocument, StorageUnavailable, UnsupportedSchema
from headpond_workers.prefixes.blocks import BLOCK_TOKENS, block_hashes
from headpond_workers.prefixes.document import (
    PREFIX_SCHEMA,
    StoredPrefixDocument,
    data_key,
    document_key,
    model_root,
)
from headpond_workers.prefixes.folders import OUTBOX, prefixes_in
from headpond_workers.prefixes.forgetting import forget_model, forget_stored
from headpond_workers.prefixes.purges import PurgedPrefixes
from headpond_workers.prefixes.uploads import PrefixUploads
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.s3_client import S3Timeouts
from headpond_workers.storage.sealed import seal
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from paper_engine import PaperEngine
from prefix_turns import MODEL, Host, host_of

PROMPT = tuple(range(400))
FINGERPRINT = PaperEngine().prefix_fingerprint(None) or ""
BRISK = S3Timeouts(connect_s=1.0, unreachable_s=1.0, read_s=1.0, deadline_s=2.0)
NOW_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


def open_s3(seaweed: SeaweedProcess, url: str | None = None) -> S3Blobs:
    return S3Blobs(
        StorageAddress(
            url or seaweed.url, seaweed.bucket, seaweed.region, seaweed.access_key, seaweed.secret_key, "the test"
        ),
        timeouts=BRISK,
    )


@pytest.fixture
def blobs(seaweed: SeaweedProcess) -> Iterator[S3Blobs]:
    """Without any prefix before and after."""
    opened = open_s3(seaweed)
    opened.ensure_bucket()
    yield opened
    for key in list(opened.list_keys("kv/")):
        opened.delete(key)


@pytest.fixture
def hosts(blobs: S3Blobs, tmp_path: Path) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def host(folder: str, engine: PaperEngine | None = None, storage: S3Blobs | None = None) -> Host:
        made.append(host_of(engine or PaperEngine(), tmp_path / folder, blobs=storage or blobs))
        return made[-1]

    yield host
    for each in made:
        each.prefixes.stop()


def uploads_of(host: Host, blobs: S3Blobs) -> PrefixUploads:
    return PrefixUploads(blobs, host.kv, writer="persister-1")


def uploaded(host: Host, blobs: S3Blobs) -> tuple[int, ...]:
    """A turn of the prompt on a host, and its prefix in storage. The answer."""
    answer, _ = host.turn(PROMPT)
    eventually(lambda: prefixes_in(host.local().folder / OUTBOX), what="a prefix that waits for the persister")
    assert uploads_of(host, blobs).upload_all() == 1
    return answer


def measured(host: Host) -> None:
    """Let it know how fast its engine computes, with a prompt that is like no other."""
    host.turn(tuple(range(50_000, 50_200)))


def documents(blobs: S3Blobs) -> list[str]:
    return list(blobs.list_keys(f"{model_root(MODEL)}{FINGERPRINT}/prefixes/"))


def data(blobs: S3Blobs) -> list[str]:
    return list(blobs.list_keys(f"{model_root(MODEL)}{FINGERPRINT}/data/"))


@pytest.mark.slow
def test_a_session_goes_on_at_another_host(hosts: Callable[..., Host], blobs: S3Blobs) -> None:
    answer = uploaded(hosts("a"), blobs)
    other = hosts("b")
    measured(other)
    other.look()
    assert other.turn((*PROMPT, *answer, 1, 2))[1] == len(PROMPT) + len(answer) - 1
    assert (other.counts().hits, other.counts().fetched) == (1, 1)
    # It is on this machine's disk now.
    assert other.turn((*PROMPT, *answer, 3, 4))[1] == len(PROMPT) + len(answer) - 1
    assert other.counts().fetched == 1


@pytest.mark.slow
def test_a_slow_storage_is_not_waited_for(hosts: Callable[..., Host], blobs: S3Blobs) -> None:
    uploaded(hosts("a"), blobs)
    other = hosts("b")
    measured(other)
    other.look()
    shelf = other.prefixes._shelf(None)
    assert shelf is not None
    shelf.rates.fetched(1, 1.0)
    assert other.turn(PROMPT)[1] == 0
    assert other.counts().slower == 1


@pytest.mark.slow
def test_a_prefix_that_is_damaged_in_storage_is_not_used(hosts: Callable[..., Host], blobs: S3Blobs) -> None:
    answer = uploaded(hosts("a"), blobs)
    (key,) = data(blobs)
    body = bytearray(blobs.get(key).body)
    body[len(body) // 2] ^= 1
    blobs.delete(key)
    blobs.put_new(key, bytes(body))
    other = hosts("b")
    measured(other)
    other.look()
    assert other.turn(PROMPT) == (answer, 0)
    assert other.counts().hits == 0
    # Neither by the next one.
    assert other.turn(PROMPT)[0] == answer


@pytest.mark.slow
def test_data_that_is_gone_or_cut_off_costs_the_prefill(hosts: Callable[..., Host], blobs: S3Blobs) -> None:
    answer = uploaded(hosts("a"), blobs)
    (key,) = data(blobs)
    body = blobs.get(key).body
    for number, left in enumerate((None, body[:-100])):
        blobs.delete(key)
        if left is not None:
            blobs.put_new(key, left)
        other = hosts(f"b{number}")
        measured(other)
        other.look()
        assert other.turn(PROMPT) == (answer, 0)


@pytest.mark.slow
def test_a_prefix_of_another_model_under_this_ones_key_is_refused(
    hosts: Callable[..., Host], blobs: S3Blobs, tmp_path: Path
) -> None:
    """Whoever may write to the bucket may put it there; the engine looks at what made it."""
    stranger = PaperEngine(weights="other")
    source = hosts("a")
    answer, _ = source.turn(PROMPT)
    path = tmp_path / "forged"
    stranger.save_prefix((*PROMPT, *answer), path)
    body = path.read_bytes()
    digest = hashlib.sha256(body).digest()
    blobs.put_new(data_key(MODEL, FINGERPRINT, digest), body)
    ids = (*PROMPT, *answer)[:-1]
    document = document_of(ids, size=len(body), sha256=digest)
    blobs.put_new(document_key(MODEL, FINGERPRINT, "f" * 32), document.pack())
    other = hosts("b")
    measured(other)
    other.look()
    assert other.turn(PROMPT) == (answer, 0)
    assert other.counts().refused == 1
    assert not other.local().path("f" * 32).exists()
    # It is not fetched a second time.
    other.turn((*PROMPT, 5))
    assert (other.counts().refused, other.counts().fetched) == (1, 1)


@pytest.mark.slow
def test_two_hosts_with_the_same_prompt_leave_one_prefix(hosts: Callable[..., Host], blobs: S3Blobs) -> None:
    uploaded(hosts("a"), blobs)
    second = hosts("b")
    second.turn(PROMPT)
    eventually(lambda: prefixes_in(second.local().folder / OUTBOX), what="a prefix that waits")
    assert uploads_of(second, blobs).upload_all() == 0
    assert not prefixes_in(second.local().folder / OUTBOX)
    assert (len(documents(blobs)), len(data(blobs))) == (1, 1)


@pytest.mark.slow
def test_while_storage_is_away_what_is_here_goes_on_and_waits_to_be_uploaded(
    hosts: Callable[..., Host], seaweed: SeaweedProcess, blobs: S3Blobs
) -> None:
    away = open_s3(seaweed, "http://127.0.0.1:9")
    host = hosts("a", storage=away)
    host.turn(PROMPT)
    waiting = host.local().folder / OUTBOX
    eventually(lambda: prefixes_in(waiting), what="a prefix that waits")
    with pytest.raises(StorageUnavailable):
        PrefixUploads(away, host.kv, writer="p").upload_all()
    assert host.turn(PROMPT)[1] == len(PROMPT) - 1
    assert len(prefixes_in(waiting)) == 1
    # It is back.
    assert uploads_of(host, blobs).upload_all() == 1
    assert not prefixes_in(waiting)


@pytest.mark.slow
def test_storage_that_goes_away_amid_a_download_costs_the_prefill_once(
    hosts: Callable[..., Host], seaweed: SeaweedProcess, blobs: S3Blobs
) -> None:
    answer = uploaded(hosts("a"), blobs)
    other = hosts("b")
    measured(other)
    other.look()
    shelf = other.prefixes._shelf(None)
    assert shelf is not None
    assert shelf.remote is not None
    shelf.remote._blobs = open_s3(seaweed, "http://127.0.0.1:9")
    assert other.turn(PROMPT) == (answer, 0)
    # For a while it is not asked again: this would take a second otherwise.
    assert other.prefixes._away_until > time.monotonic() + 20


@pytest.mark.slow
def test_an_upload_that_is_killed_is_done_by_the_next_persister(
    hosts: Callable[..., Host], seaweed: SeaweedProcess, blobs: S3Blobs, tmp_path: Path
) -> None:
    host = hosts("a")
    program = (
        "import sys\nfrom pathlib import Path\nfrom headpond_workers.storage.s3 import S3Blobs\n"
        "from headpond_workers.storage.settings import StorageAddress\n"
        "from headpond_workers.prefixes.uploads import PrefixUploads\n"
        "blobs = S3Blobs(StorageAddress(*sys.argv[2:7], 'the test'))\n"
        "print('begins', flush=True)\nPrefixUploads(blobs, Path(sys.argv[1]), writer='p').upload_all()\n"
    )
    for number in range(12):
        host.local().send(_saved(host, number))
    for delay_s in (0.0, 0.05, 0.1, 0.2):
        child = subprocess.Popen(
            [sys.executable, "-c", program, str(host.kv), seaweed.url, seaweed.bucket, seaweed.region,
             seaweed.access_key, seaweed.secret_key],
            stdout=subprocess.PIPE, env=with_test_modules(),
        )  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        try:
            child.wait(delay_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(30)
        child.stdout.close()
    uploads_of(host, blobs).upload_all()
    assert len(documents(blobs)) == 12
    for key in documents(blobs):
        document = StoredPrefixDocument.unpack(blobs.get(key).body)
        assert blobs.size_of(document.data_key) == document.size


def _saved(host: Host, number: int) -> str:
    name = f"{number:032x}"
    base = 100_000 + number * 1000
    host.engine.save_prefix(range(base, base + 500), host.local().path(name))
    return name


@pytest.mark.slow
def test_what_is_no_prefix_is_not_uploaded_and_goes(hosts: Callable[..., Host], blobs: S3Blobs) -> None:
    host = hosts("a")
    PaperEngine(weights="other").save_prefix(PROMPT, host.local().path("1" * 32))
    host.local().path("2" * 32).write_bytes(b"no file of that kind")
    host.engine.save_prefix(PROMPT, host.local().path("3" * 32))
    damaged = bytearray(host.local().path("3" * 32).read_bytes())
    damaged[-1] ^= 1
    host.local().path("3" * 32).write_bytes(damaged)
    for name in ("1" * 32, "2" * 32, "3" * 32):
        host.local().send(name)
    assert uploads_of(host, blobs).upload_all() == 0
    assert documents(blobs) == data(blobs) == []
    assert not prefixes_in(host.local().folder / OUTBOX)


@pytest.mark.slow
def test_forgetting_a_model_leaves_none_of_its_prompts_in_storage(hosts: Callable[..., Host], blobs: S3Blobs) -> None:
    host = hosts("a")
    uploaded(host, blobs)
    blobs.put_new(f"kv/{MODEL}-other/{FINGERPRINT}/prefixes/x", os.urandom(16))
    host.local().send(_saved(host, 1))
    assert forget_model(host.kv, MODEL) == 2
    assert uploads_of(host, blobs).upload_all() == 0
    assert forget_stored(blobs, MODEL) == 2
    assert not list(blobs.list_keys(model_root(MODEL)))
    assert list(blobs.list_keys(f"kv/{MODEL}-other/"))
    host.look()
    assert host.turn(PROMPT)[1] == 0


@pytest.mark.slow
def test_old_prefixes_and_data_that_nothing_names_are_swept(hosts: Callable[..., Host], blobs: S3Blobs) -> None:
    host = hosts("a")
    uploaded(host, blobs)
    orphan = data_key(MODEL, FINGERPRINT, os.urandom(32))
    blobs.put_new(orphan, os.urandom(16))
    blobs.put_new(document_key(MODEL, FINGERPRINT, "9" * 32), b"no document")
    uploads = uploads_of(host, blobs)
    now_ms = time.time_ns() // 1_000_000
    assert uploads.sweep(now_ms=now_ms) == 1
    assert orphan in data(blobs)
    # Seen twice: no upload is about to name it.
    assert uploads.sweep(now_ms=now_ms) == 1
    assert orphan not in data(blobs)
    assert (len(documents(blobs)), len(data(blobs))) == (1, 1)
    assert uploads.sweep(now_ms=now_ms + 8 * 86_400_000) == 1
    assert uploads.sweep(now_ms=now_ms + 8 * 86_400_000) == 1
    assert documents(blobs) == data(blobs) == []


# --- the document


def document_of(ids: tuple[int, ...], *, size: int = 1, sha256: bytes = bytes(32)) -> StoredPrefixDocument:
    return StoredPrefixDocument(
        txn="0" * 32, created_ms=NOW_MS, writer="w", model=MODEL, fingerprint=FINGERPRINT, tokens=len(ids),
        hashes=block_hashes(FINGERPRINT, ids), size=size, sha256=sha256,
    )  # fmt: skip


@given(st.lists(st.integers(0, 1 << 31), max_size=5 * BLOCK_TOKENS), st.integers(0, 1 << 50))
def test_a_document_comes_back_as_it_was(ids: list[int], size: int) -> None:
    document = document_of(tuple(ids), size=size)
    assert StoredPrefixDocument.unpack(document.pack()) == document


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_document_is_refused(data: st.DataObject) -> None:
    packed = bytearray(document_of(PROMPT).pack())
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(HeadpondError) as caught:
        StoredPrefixDocument.unpack(bytes(packed))
    assert isinstance(caught.value, MalformedDocument | UnsupportedSchema | BlobCorrupt)


@pytest.mark.parametrize(
    "change",
    [{"tokens": 10}, {"model": "../x"}, {"fingerprint": "short"}, {"sha256": b""}, {"size": -1}, {"hashes": (b"x",)}],
)
def test_a_document_that_contradicts_itself_cannot_be_made(change: dict[str, object]) -> None:
    with pytest.raises(MalformedDocument):
        replace(document_of(PROMPT), **change)  # type: ignore[arg-type]


def test_a_newer_major_version_is_refused() -> None:
    with pytest.raises(UnsupportedSchema):
        StoredPrefixDocument.unpack(seal(PREFIX_SCHEMA, 2, {"txn": "0" * 32}, max_bytes=1000))


@pytest.mark.slow
def test_each_machine_follows_a_purge_once_and_once_more_when_storage_is_clean(
    hosts: Callable[..., Host], blobs: S3Blobs
) -> None:
    host, other = hosts("a"), hosts("b")
    uploaded(host, blobs)
    _saved(other, 1)
    purged = PurgedPrefixes(other.kv, blobs)
    assert purged.follow(MODEL, "1-7")
    assert not list(blobs.list_keys(model_root(MODEL)))
    assert forget_model(other.kv, MODEL) == 0
    _saved(other, 2)
    assert not PurgedPrefixes(other.kv, blobs).follow(MODEL, "1-7"), "a restart has forgotten what was done"
    assert PurgedPrefixes(other.kv, blobs).follow(MODEL, "1-7 1-7")
    assert forget_model(other.kv, MODEL) == 0
    assert forget_model(host.kv, MODEL) == 1, "that machine has a persister of its own"
