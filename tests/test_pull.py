"""A version pulled into a folder: whole or not there, checked, gone on with, and never damaged."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from child_environment import with_test_modules
from conftest import DEADLINE_S
from cutting_proxy import Cut, CuttingProxy
from headpond.errors import (
    ConfigError,
    InvalidRequest,
    ModelFileError,
    StorageUnavailable,
    VersionMissing,
    VersionUnusable,
)
from headpond_workers.checkpoints.description import Description
from headpond_workers.checkpoints.manifest import MAX_OBJECT_BYTES, Manifest
from headpond_workers.checkpoints.pulls import fetching
from headpond_workers.checkpoints.pulls.chunk_reads import MOST_GAP_BYTES, ChunkRead, reads_by_object, reads_in_order
from headpond_workers.checkpoints.pulls.pull import pull
from headpond_workers.checkpoints.pushes.pushing import push
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.verify import MOST_DAMAGE, verify
from headpond_workers.checkpoints.version_document import VersionState
from headpond_workers.storage.blobs import Blobs
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from memory_blobs import MemoryBlobs
from reading_blobs import ReadingBlobs, away_after, flip
from stored_versions import CHUNK_BYTES, StoredVersion, bytes_of, put_documents, put_version

FILES = {
    "config.json": b'{"layers": 2}',
    "empty.txt": b"",
    "weights/one.safetensors": bytes_of("one", 5 * CHUNK_BYTES + 17),
    "weights/two.safetensors": bytes_of("two", 40 * CHUNK_BYTES),
    "weights/again.safetensors": bytes_of("one", 5 * CHUNK_BYTES + 17),
}


def files_of(seed: str) -> dict[str, bytes]:
    """As FILES, of other bytes: tests that damage objects share a server."""
    return {path: body and bytes_of(seed + path, len(body)) for path, body in FILES.items()}


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
def anywhere(request: pytest.FixtureRequest) -> Blobs:
    if request.param == "memory":
        return MemoryBlobs()
    return open_s3(request.getfixturevalue("seaweed"))


@pytest.fixture
def blobs() -> ReadingBlobs:
    return ReadingBlobs(MemoryBlobs())


@pytest.fixture
def model() -> str:
    """A name that no other test uses."""
    return f"m{secrets.token_hex(6)}"


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def found_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}


def state_of(version: StoredVersion) -> tuple[VersionState, str]:
    document = version.registry.read(version.number).document
    return document.state, document.reason


def partial_of(folder: Path) -> Path:
    (partial,) = folder.parent.glob(f".{folder.name}.pull-*")
    return partial


def test_a_pulled_folder_holds_the_files_of_the_version_and_nothing_else(
    anywhere: Blobs, model: str, tmp_path: Path
) -> None:
    version = put_version(anywhere, model, FILES, number=7)
    told: list[tuple[str, int, int]] = []
    pulled = pull(version.registry, 7, tmp_path / "new" / "w", progress=lambda *news: told.append(news))
    assert pulled.folder == tmp_path / "new" / "w"
    assert found_in(pulled.folder) == FILES
    assert (pulled.document, pulled.manifest) == (version.document, version.manifest)
    assert os.listdir(tmp_path / "new") == ["w"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in pulled.folder.rglob("*") if path.is_file()}
    assert modes == {0o600}
    total = version.manifest.size_bytes
    assert (told[0], told[-1]) == (("pulling", 0, total), ("pulling", total, total))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["a", "b/c", "b/d.json", "e e", "f"]), st.integers(0, 3000), min_size=1),
    st.integers(1, 900), st.integers(900, 4000), st.sampled_from([reads_in_order, reads_by_object]),
)  # fmt: skip
def test_however_files_are_cut_each_chunk_is_read_where_it_stands(
    sizes: dict[str, int], chunk_bytes: int, pack_bytes: int, reads_of: Callable[[Manifest], Iterator[ChunkRead]]
) -> None:
    blobs = MemoryBlobs()
    files = {path: bytes_of(path, size) for path, size in sizes.items()}
    version = put_version(blobs, "m", files, chunk_bytes=chunk_bytes, pack_bytes=pack_bytes)
    manifest = version.manifest
    made = {path: bytearray(size) for path, size in sizes.items()}
    reads = list(reads_of(manifest))
    for read in reads:
        stored = manifest.objects[read.object]
        assert read.offset >= 0
        assert read.offset + read.size <= stored.size <= MAX_OBJECT_BYTES
        body = memoryview(blobs.get(stored.key).body)[read.offset : read.offset + read.size]
        for piece in read.pieces:
            path = manifest.files[piece.file].path
            made[path][piece.at : piece.at + piece.chunk.size] = read.part(body, piece)
    assert {path: bytes(body) for path, body in made.items()} == files
    # What lies together in an object comes in one request.
    for one, other in pairwise(reads):
        gap = other.offset - (one.offset + one.size)
        assert one.object != other.object or not 0 <= gap <= MOST_GAP_BYTES


def test_whoever_reads_in_order_gets_each_file_from_its_first_byte_to_its_last() -> None:
    version = put_version(MemoryBlobs(), "m", FILES, chunk_bytes=100, pack_bytes=350)
    pieces = [piece for read in reads_in_order(version.manifest) for piece in read.pieces]
    at = 0
    for before, piece in pairwise(pieces):
        at = at + before.chunk.size if before.file == piece.file else 0
        assert (piece.file, piece.at) >= (before.file, before.at)
        assert piece.at == at
    assert sum(piece.chunk.size for piece in pieces) == version.manifest.size_bytes


def test_a_pack_is_read_once_however_far_apart_its_chunks_lie_in_the_files(tmp_path: Path) -> None:
    blobs = ReadingBlobs(MemoryBlobs())
    one, two = bytes_of("one", 1000), bytes_of("two", 1000)
    mixed = b"".join(one[at : at + 100] + two[at : at + 100] for at in range(0, 1000, 100))
    files = {"1.bin": one, "2.bin": two, "3.bin": mixed}
    version = put_version(blobs, "m", files, chunk_bytes=100, pack_bytes=1000)
    pull(version.registry, 1, tmp_path / "w", progress=silent)
    assert found_in(tmp_path / "w") == files
    assert len(list(reads_in_order(version.manifest))) > 20
    assert sorted(size for _, _, size in blobs.reads) == [1000, 1000]


def test_neighbours_in_an_object_come_with_one_request(blobs: ReadingBlobs, tmp_path: Path) -> None:
    files = {f"{number:03}.json": bytes_of(str(number), 1000) for number in range(200)}
    version = put_version(blobs, "m", files)
    pull(version.registry, 1, tmp_path / "w", progress=silent)
    assert len(blobs.reads) == len(version.manifest.objects) == 1


def test_a_version_that_is_not_complete_is_not_pulled(blobs: ReadingBlobs, tmp_path: Path) -> None:
    version = put_version(blobs, "m", FILES, state=VersionState.PENDING)
    with pytest.raises(VersionUnusable, match=r"m@1: the version is pending"):
        pull(version.registry, 1, tmp_path / "w", progress=silent)
    with pytest.raises(VersionMissing, match=r"m@2: there is no such version"):
        pull(version.registry, 2, tmp_path / "w", progress=silent)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_holds_something_is_left_alone(blobs: ReadingBlobs, tmp_path: Path) -> None:
    version = put_version(blobs, "m", FILES)
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    for name in ("w", "file", "link"):
        with pytest.raises(InvalidRequest, match="is there already, and a version is pulled into a new folder"):
            pull(version.registry, 1, tmp_path / name, progress=silent)
    assert blobs.reads == []
    assert (tmp_path / "w" / "mine").read_text() == "mine"
    pull(version.registry, 1, tmp_path / "empty", progress=silent)
    assert found_in(tmp_path / "empty") == FILES


def test_a_chunk_that_was_damaged_on_the_way_is_read_once_more(blobs: ReadingBlobs, tmp_path: Path) -> None:
    version = put_version(blobs, "m", FILES)
    blobs.flips[version.key_of("weights/two.safetensors", 20)] = 1
    pull(version.registry, 1, tmp_path / "w", progress=silent)
    assert found_in(tmp_path / "w") == FILES
    assert state_of(version) == (VersionState.COMPLETE, "")


@pytest.mark.parametrize("damage", ["flipped", "missing", "short"])
def test_a_damaged_version_is_quarantined_and_never_there(
    anywhere: Blobs, model: str, damage: str, tmp_path: Path
) -> None:
    version = put_version(anywhere, model, files_of(model))
    key = version.key_of("weights/two.safetensors", 20)
    body = anywhere.get(key).body
    if damage == "flipped":
        flip(anywhere, key, at=len(body) // 2)
    else:
        anywhere.delete(key)
        if damage == "short":
            anywhere.put_once(key, body[:-1])
    with pytest.raises(VersionUnusable, match=f"^{model}@1: it is damaged in storage, and quarantined: {key}"):
        pull(version.registry, 1, tmp_path / "w", progress=silent)
    assert not (tmp_path / "w").exists()
    state, reason = state_of(version)
    assert state is VersionState.QUARANTINED
    assert key in reason
    # Nor later, though what is damaged be mended.
    anywhere.delete(key)
    anywhere.put_once(key, body)
    with pytest.raises(VersionUnusable, match="the version is quarantined"):
        pull(version.registry, 1, tmp_path / "w", progress=silent)
    assert not (tmp_path / "w").exists()


def test_a_damaged_manifest_quarantines_too(blobs: ReadingBlobs, tmp_path: Path) -> None:
    version = put_version(blobs, "m", FILES)
    flip(blobs, version.document.manifest, at=100)
    with pytest.raises(VersionUnusable, match="it is not the manifest of m@1"):
        pull(version.registry, 1, tmp_path / "w", progress=silent)
    assert state_of(version)[0] is VersionState.QUARANTINED
    other = put_version(blobs, "other", FILES)
    blobs.delete(other.document.manifest)
    with pytest.raises(VersionUnusable, match="no such object"):
        verify(other.registry, 1, progress=silent)
    assert state_of(other)[0] is VersionState.QUARANTINED


def test_a_version_that_is_deleted_amid_a_pull_is_not_called_damaged(blobs: ReadingBlobs, tmp_path: Path) -> None:
    version = many_reads(blobs)

    def delete(count: int) -> None:
        if count == 10:
            at = version.registry.read(1)
            version.registry.swap(version.registry.swap(at, VersionState.DELETING), VersionState.DELETED)
            for stored in version.manifest.objects:
                blobs.delete(stored.key)

    blobs.before = delete
    with pytest.raises(VersionUnusable, match=r"^m@1: the version is deleted by now: chunks/.* no such object"):
        pull(version.registry, 1, tmp_path / "w", progress=silent)
    assert state_of(version)[0] is VersionState.DELETED
    assert not (tmp_path / "w").exists()


class ReadOnlyBlobs(ReadingBlobs):
    """Keys without the right to write."""

    def put_if(self, key: str, body: bytes, *, etag: str) -> str:
        raise ConfigError("refused to put", where="[storage]")


def test_who_may_not_write_refuses_a_damaged_version_all_the_same(tmp_path: Path) -> None:
    memory = MemoryBlobs()
    version = put_version(memory, "m", FILES)
    flip(memory, version.key_of("config.json"))
    registry = Registry(ReadOnlyBlobs(memory), "m", writer="the test")
    with pytest.raises(VersionUnusable, match=r"It could not be quarantined: \[storage\]: refused to put"):
        pull(registry, 1, tmp_path / "w", progress=silent)
    assert not (tmp_path / "w").exists()


def interrupted(version: StoredVersion, blobs: ReadingBlobs, folder: Path, *, after: int) -> int:
    """Bytes that were read before storage went away."""
    blobs.before = away_after(after)
    with pytest.raises(StorageUnavailable):
        pull(version.registry, version.number, folder, progress=silent)
    assert not folder.exists()
    done = blobs.read_bytes
    blobs.before = lambda count: None
    blobs.reads.clear()
    return done


def many_reads(blobs: Blobs, model: str = "m", *, number: int = 1, seed: str = "a") -> StoredVersion:
    """A version of 41 requests."""
    return put_version(
        blobs, model, {"w/model.bin": bytes_of(seed, 40 * CHUNK_BYTES), "note": b"x"}, number=number,
        pack_bytes=CHUNK_BYTES,
    )  # fmt: skip


def test_a_pull_goes_on_where_it_was_interrupted(blobs: ReadingBlobs, tmp_path: Path) -> None:
    version = many_reads(blobs)
    total = version.manifest.size_bytes
    done = interrupted(version, blobs, tmp_path / "w", after=25)
    assert done == 24 * CHUNK_BYTES + 1
    pull(version.registry, 1, tmp_path / "w", progress=silent)
    assert found_in(tmp_path / "w") == dict(version.files)
    assert blobs.read_bytes == total - done


def test_what_lies_in_an_interrupted_pull_is_checked_and_not_believed(blobs: ReadingBlobs, tmp_path: Path) -> None:
    version = many_reads(blobs)
    interrupted(version, blobs, tmp_path / "w", after=25)
    half = partial_of(tmp_path / "w") / "w" / "model.bin"
    with half.open("r+b") as file:
        file.seek(3 * CHUNK_BYTES + 5)
        file.write(b"altered")
    pull(version.registry, 1, tmp_path / "w", progress=silent)
    assert found_in(tmp_path / "w") == dict(version.files)
    assert len(blobs.reads) == 41 - 25 + 1
    assert version.key_of("w/model.bin", 3) in {key for key, _, _ in blobs.reads}


@pytest.mark.parametrize("strange", ["file", "link", "folder", "longer"])
def test_an_interrupted_pull_with_something_strange_in_it_begins_anew(
    blobs: ReadingBlobs, strange: str, tmp_path: Path
) -> None:
    version = many_reads(blobs)
    interrupted(version, blobs, tmp_path / "w", after=25)
    half = partial_of(tmp_path / "w")
    (tmp_path / "outside").write_text("outside")
    match strange:
        case "file":
            (half / "more").write_text("x")
        case "link":
            (half / "note").unlink(missing_ok=True)
            (half / "note").symlink_to(tmp_path / "outside")
        case "folder":
            (half / "w" / "more").mkdir()
        case _:
            with (half / "note").open("ab") as file:
                file.write(b"y" * 100)
    pull(version.registry, 1, tmp_path / "w", progress=silent)
    assert found_in(tmp_path / "w") == dict(version.files)
    assert (tmp_path / "outside").read_text() == "outside"


def test_the_rest_of_another_versions_pull_is_removed(blobs: ReadingBlobs, tmp_path: Path) -> None:
    one, two = many_reads(blobs), many_reads(blobs, number=2, seed="b")
    interrupted(one, blobs, tmp_path / "w", after=25)
    pull(one.registry, 2, tmp_path / "w", progress=silent)
    assert found_in(tmp_path / "w") == dict(two.files)
    assert os.listdir(tmp_path) == ["w"]


def test_two_pulls_into_one_folder_do_not_meet(blobs: ReadingBlobs, tmp_path: Path) -> None:
    version = many_reads(blobs)
    refusals: list[str] = []

    def second(count: int) -> None:
        if count == 10:
            with pytest.raises(ModelFileError) as refused:
                pull(Registry(MemoryBlobsOf(blobs), "m", writer="b"), 1, tmp_path / "w", progress=silent)
            refusals.append(str(refused.value))

    blobs.before = second
    pull(version.registry, 1, tmp_path / "w", progress=silent)
    assert found_in(tmp_path / "w") == dict(version.files)
    (refusal,) = refusals
    assert "Another process pulls into" in refusal


def MemoryBlobsOf(blobs: ReadingBlobs) -> Blobs:
    """The same objects, without what is done at each read."""
    return blobs._below


def test_a_disk_that_is_too_small_is_told_before_anything_is_made(
    blobs: ReadingBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = many_reads(blobs)
    total = version.manifest.size_bytes
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: SimpleNamespace(free=total - 1, total=usage.total))
    with pytest.raises(ModelFileError, match=r"Cannot pull m@1 into .*MiB are free.*Free some space"):
        pull(version.registry, 1, tmp_path / "w", progress=silent)
    assert blobs.reads == []
    assert list(partial_of(tmp_path / "w").iterdir()) == []
    assert state_of(version)[0] is VersionState.COMPLETE
    # What an interrupted pull has taken already is not needed again.
    monkeypatch.undo()
    interrupted(version, blobs, tmp_path / "w", after=25)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: SimpleNamespace(free=0, total=usage.total))
    pull(version.registry, 1, tmp_path / "w", progress=silent)
    assert found_in(tmp_path / "w") == dict(version.files)


def test_who_watches_may_end_a_pull(blobs: ReadingBlobs, tmp_path: Path) -> None:
    version = many_reads(blobs)

    def watch(stage: str, done: int, total: int) -> None:
        if done >= 10 * CHUNK_BYTES:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(version.registry, 1, tmp_path / "w", progress=watch)
    assert not (tmp_path / "w").exists()
    read = blobs.read_bytes
    blobs.reads.clear()
    pull(version.registry, 1, tmp_path / "w", progress=silent)
    assert blobs.read_bytes == version.manifest.size_bytes - read


PULLING = """
import sys, threading
from pathlib import Path
from headpond_workers.checkpoints.description import Description
from headpond_workers.checkpoints.pulls.pull import pull
from headpond_workers.checkpoints.pushes.pushing import push
from headpond_workers.checkpoints.registry import Registry
from reading_blobs import ReadingBlobs
from test_pull import s3_of, silent

url, bucket, access, secret, model, folder, stop = sys.argv[1:]
blobs = ReadingBlobs(s3_of(url, bucket, access, secret))

def before(count):
    if count == int(stop):
        print("here", flush=True)
        threading.Event().wait()

blobs.before = before
pull(Registry(blobs, model, writer="child"), 1, Path(folder), progress=silent)
print("done", blobs.read_bytes, flush=True)
"""


def s3_of(url: str, bucket: str, access_key: str, secret_key: str) -> S3Blobs:
    return S3Blobs(StorageAddress(url, bucket, "us-east-1", access_key, secret_key, configured_in="the test"))


def pulling(seaweed: SeaweedProcess, model: str, folder: Path, *, stop: int) -> subprocess.Popen[str]:
    """A process that pulls, and stands still at a read for ever."""
    arguments = [seaweed.url, seaweed.bucket, seaweed.access_key, seaweed.secret_key, model, str(folder), str(stop)]
    return subprocess.Popen(
        [sys.executable, "-c", PULLING, *arguments], stdout=subprocess.PIPE, text=True, env=with_test_modules()
    )


@pytest.mark.slow
def test_a_pulling_process_that_is_killed_leaves_no_folder_and_the_next_goes_on(
    seaweed: SeaweedProcess, model: str, tmp_path: Path
) -> None:
    version = many_reads(open_s3(seaweed), model)
    folder = tmp_path / "w"
    for stop in (3, 17):
        child = pulling(seaweed, model, folder, stop=stop)
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait(DEADLINE_S) == -signal.SIGKILL
        assert not folder.exists()
        assert partial_of(folder).is_dir()
    blobs = ReadingBlobs(open_s3(seaweed))
    pull(Registry(blobs, model, writer="after"), 1, folder, progress=silent)
    assert found_in(folder) == dict(version.files)
    # Of what the two had asked for, at most one read a thread was not written yet.
    assert 41 - (3 + 17) <= len(blobs.reads) <= 41 - (17 - 3)
    assert os.listdir(tmp_path) == ["w"]


@pytest.mark.slow
def test_replies_that_are_cut_or_damaged_cost_time_and_nothing_else(
    seaweed: SeaweedProcess, model: str, tmp_path: Path
) -> None:
    version = many_reads(open_s3(seaweed), model)
    chunks = f"GET /{seaweed.bucket}/chunks"
    with CuttingProxy(int(seaweed.url.rpartition(":")[2])) as proxy:
        registry = Registry(s3_of(proxy.url, *seaweed_keys(seaweed)), model, writer="the test")
        proxy.cut(Cut.CUT_REPLY, chunks, count=3)
        proxy.cut(Cut.LOSE_REPLY, chunks, count=2)
        proxy.cut(Cut.ANSWER_503, chunks)
        proxy.cut(Cut.DAMAGE, chunks)
        pull(registry, 1, tmp_path / "w", progress=silent)
        assert sorted(cut.name for cut in proxy.done) == [
            "ANSWER_503",
            *["CUT_REPLY"] * 3,
            "DAMAGE",
            *["LOSE_REPLY"] * 2,
        ]
        proxy.cut(Cut.DAMAGE, chunks)
        assert verify(registry, 1, progress=silent).error is None
    assert found_in(tmp_path / "w") == dict(version.files)
    assert state_of(version)[0] is VersionState.COMPLETE


def seaweed_keys(seaweed: SeaweedProcess) -> tuple[str, str, str]:
    return seaweed.bucket, seaweed.access_key, seaweed.secret_key


def test_what_was_pushed_is_pulled_byte_for_byte(blobs: ReadingBlobs, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "config.json").write_bytes(b"{}")
    (source / "empty").touch()
    (source / "deep" / "vocabulary.txt").write_bytes(bytes_of("v", 3 << 20))
    registry = Registry(blobs, "m", writer="the test")
    push(registry, source, Description())
    with (source / "deep" / "vocabulary.txt").open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"changed")
    push(registry, source, Description())
    pull(registry, 2, tmp_path / "two", progress=silent)
    assert found_in(tmp_path / "two") == found_in(source)
    for number in (1, 2):
        assert verify(registry, number, progress=silent).error is None
    pull(registry, 1, tmp_path / "one", progress=silent)
    one = found_in(tmp_path / "one")
    assert one["deep/vocabulary.txt"] == bytes_of("v", 3 << 20)


def test_a_sound_version_is_verified_whole(anywhere: Blobs, model: str) -> None:
    version = put_version(anywhere, model, FILES)
    told: list[tuple[str, int, int]] = []
    verified = verify(version.registry, 1, progress=lambda *news: told.append(news))
    assert (verified.damage, verified.error) == ((), None)
    assert (verified.chunks, verified.bytes) == (len(version.manifest.chunks), version.manifest.size_bytes)
    total = version.manifest.size_bytes
    assert (told[0], told[-1]) == (("verifying", 0, total), ("verifying", total, total))
    assert state_of(version)[0] is VersionState.COMPLETE


def test_verifying_finds_every_damaged_object_and_quarantines(blobs: ReadingBlobs) -> None:
    version = many_reads(blobs)
    keys = [version.key_of("w/model.bin", index) for index in (2, 30)]
    flip(blobs, keys[0])
    blobs.delete(keys[1])
    verified = verify(version.registry, 1, progress=silent)
    assert len(verified.damage) == 2
    assert verified.damage[0].startswith(f"{keys[0]}: the chunk ")
    assert verified.damage[1].startswith(f"{keys[1]}: no such object")
    assert isinstance(verified.error, VersionUnusable)
    assert state_of(version)[0] is VersionState.QUARANTINED
    with pytest.raises(VersionUnusable, match="the version is quarantined"):
        verify(version.registry, 1, progress=silent)


def test_verifying_tells_of_some_damage_where_all_is_gone(blobs: ReadingBlobs) -> None:
    version = many_reads(blobs)
    for stored in version.manifest.objects:
        blobs.delete(stored.key)
    verified = verify(version.registry, 1, progress=silent)
    assert len(verified.damage) == MOST_DAMAGE
    assert len(state_of(version)[1]) <= 1000


def test_a_file_that_is_not_what_its_chunks_make_is_found(blobs: ReadingBlobs) -> None:
    """As a push that was wrong would leave it: each chunk is right, the file's digest is another's."""
    from dataclasses import replace

    right = put_version(blobs, "m", FILES)
    index = [file.path for file in right.manifest.files].index("empty.txt")
    for path in ("empty.txt", "weights/two.safetensors"):
        index = [file.path for file in right.manifest.files].index(path)
        files = list(right.manifest.files)
        files[index] = replace(files[index], sha256=bytes(32))
        number = 2 if path == "empty.txt" else 3
        wrong = put_documents(
            blobs, replace(right.manifest, files=tuple(files)), FILES, number=number, state=VersionState.COMPLETE
        )
        verified = verify(wrong.registry, number, progress=silent)
        (damage,) = verified.damage
        assert damage.startswith(f"the file '{path}' has another SHA-256")
        assert state_of(wrong)[0] is VersionState.QUARANTINED


def test_storage_that_goes_away_quarantines_nothing(blobs: ReadingBlobs) -> None:
    version = many_reads(blobs)
    blobs.before = away_after(5)
    with pytest.raises(StorageUnavailable):
        verify(version.registry, 1, progress=silent)
    assert state_of(version)[0] is VersionState.COMPLETE
