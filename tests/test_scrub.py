"""Scrub: what was pushed is read again, and a version that has a bad chunk is never loaded again."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from headpond.errors import VersionUnusable
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.collection.scrub import scrub
from headpond_workers.checkpoints.delete import delete_version
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionState
from headpond_workers.storage.blobs import Blobs
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from memory_blobs import MemoryBlobs
from model_pusher import push


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def blobs(request: pytest.FixtureRequest) -> Blobs:
    """Empty."""
    if request.param == "memory":
        return MemoryBlobs()
    seaweed: SeaweedProcess = request.getfixturevalue("seaweed")
    bucket = f"b{secrets.token_hex(6)}"
    blobs = S3Blobs(
        StorageAddress(seaweed.url, bucket, seaweed.region, seaweed.access_key, seaweed.secret_key, "the test")
    )
    blobs.ensure_bucket()
    return blobs


SHARED = bytes(range(256)) * 400


@pytest.fixture
def registry(blobs: Blobs) -> Registry:
    """Three versions; two share a chunk."""
    push(blobs, "chat", [SHARED, b"first" * 100])
    push(blobs, "chat", [SHARED, b"second" * 100])
    push(blobs, "chat", [b"third" * 100])
    return Registry(blobs, "chat", writer="the test")


def object_of(registry: Registry, number: int, content: bytes) -> str:
    manifest = registry.manifest_of(registry.read(number).document)
    keys = [stored.key for stored in manifest.objects if registry.blobs.get(stored.key).body == content]
    return keys[0]


def overwrite(blobs: Blobs, key: str, body: bytes) -> None:
    """Other bytes, with a checksum that is right for them: storage itself notices nothing."""
    blobs.delete(key)
    blobs.put_new(key, body)


def states(registry: Registry) -> list[VersionState]:
    return [at.document.state for at in registry.all()]


def test_whole_versions_are_read_once_each_object_and_stay_as_they_are(registry: Registry, blobs: Blobs) -> None:
    seen: list[tuple[int, int]] = []
    done = scrub(blobs, writer="the test", on_bytes=lambda *bytes_: seen.append(bytes_))
    total = len(SHARED) + 500 + 600 + 500
    assert (done.versions, done.objects, done.bytes, done.findings) == (3, 4, total, [])
    assert seen[-1] == (total, total)
    assert states(registry) == [VersionState.COMPLETE] * 3


def test_a_flipped_bit_is_found_and_every_version_that_has_it_is_quarantined(registry: Registry, blobs: Blobs) -> None:
    key = object_of(registry, 1, SHARED)
    flipped = bytearray(SHARED)
    flipped[70_000] ^= 4
    overwrite(blobs, key, bytes(flipped))
    done = scrub(blobs, writer="the test")
    (finding,) = done.findings
    assert (finding.key, finding.versions) == (key, ("chat@1", "chat@2"))
    assert "another SHA-256" in finding.reason
    assert states(registry) == [VersionState.QUARANTINED, VersionState.QUARANTINED, VersionState.COMPLETE]
    with pytest.raises(VersionUnusable, match=r"quarantined: scrub: chunks/.*another SHA-256"):
        Aliases(registry).move("prod", to=1, left=None, who="ada")
    again = scrub(blobs, writer="the test")
    assert (again.versions, again.findings) == (1, [])


def test_what_a_scrub_quarantined_can_be_pushed_again(registry: Registry, blobs: Blobs) -> None:
    overwrite(blobs, object_of(registry, 1, SHARED), SHARED[::-1])
    assert scrub(blobs, writer="the test").findings
    assert push(blobs, "chat", [SHARED, b"first" * 100]) == 4
    assert scrub(blobs, writer="the test").findings == []
    assert registry.read(4).document.state is VersionState.COMPLETE


def test_an_object_that_is_short_or_gone_is_found(registry: Registry, blobs: Blobs) -> None:
    overwrite(blobs, object_of(registry, 2, b"second" * 100), b"second" * 99)
    blobs.delete(object_of(registry, 3, b"third" * 100))
    reasons = {finding.versions: finding.reason for finding in scrub(blobs, writer="the test").findings}
    assert "594 bytes" in reasons["chat@2",]
    assert "not there" in reasons["chat@3",]
    assert states(registry) == [VersionState.COMPLETE, VersionState.QUARANTINED, VersionState.QUARANTINED]


def test_a_damaged_or_lost_manifest_is_found(registry: Registry, blobs: Blobs) -> None:
    overwrite(blobs, registry.read(1).document.manifest, b"nonsense")
    blobs.delete(registry.read(3).document.manifest)
    found = {finding.versions for finding in scrub(blobs, writer="the test").findings}
    assert found == {("chat@1",), ("chat@3",)}
    assert states(registry)[1] is VersionState.COMPLETE


def test_a_version_that_is_deleted_meanwhile_is_no_finding(registry: Registry, blobs: Blobs) -> None:
    key = object_of(registry, 3, b"third" * 100)

    def delete(done: int, total: int) -> None:
        if registry.read(3).document.state is VersionState.COMPLETE:
            delete_version(Aliases(registry), 3)
            blobs.delete(key)

    # One at a time, the lost object last: it is read after the deletion.
    done = scrub(blobs, writer="the test", threads=1, on_bytes=delete)
    assert done.findings == []
    assert states(registry) == [VersionState.COMPLETE, VersionState.COMPLETE, VersionState.DELETED]
