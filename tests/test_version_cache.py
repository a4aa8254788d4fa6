"""The cache of versions: pulled once for all processes, checked, bounded, never evicted while it is used."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from child_environment import with_test_modules
from conftest import DEADLINE_S, eventually
from headpond.errors import ConfigError, ModelFileError, StorageUnavailable, VersionMissing, VersionUnusable
from headpond.settings import check_settings
from headpond_workers.checkpoints.pulls.cache import HeldVersion, VersionCache
from headpond_workers.checkpoints.pulls.cache_entry import CacheEntry
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionState
from headpond_workers.engines.formats import weights_digest
from headpond_workers.engines.formats.weights_digest import digest_of, read_sidecar, remembered_digest_of
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from memory_blobs import MemoryBlobs
from reading_blobs import ReadingBlobs, away_after, flip
from stored_versions import CHUNK_BYTES, StoredVersion, bytes_of, put_version

FOLDER = {"config.json": b"{}", "w/model.safetensors": bytes_of("w", 40 * CHUNK_BYTES)}
SIZE = sum(map(len, FOLDER.values()))


@pytest.fixture
def blobs() -> ReadingBlobs:
    return ReadingBlobs(MemoryBlobs())


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def cache_at(folder: Path, max_bytes: int | None = None, *, storage: str = "s3 here") -> VersionCache:
    return VersionCache(folder / "versions", max_bytes, storage=storage, digests=folder / "digests")


def hold(cache: VersionCache, version: StoredVersion) -> HeldVersion:
    return cache.hold(version.registry, version.number, silent)


def found_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}


def put_number(blobs: ReadingBlobs, number: int, *, size: int = 10_000, model: str = "m") -> StoredVersion:
    """Another version for each number."""
    return put_version(blobs, model, {"a.bin": bytes_of(f"{model}{number}", size)}, number=number)


def entries(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder / "versions") if name != "locks"}


def test_a_version_is_pulled_once_and_then_found(blobs: ReadingBlobs, tmp_path: Path) -> None:
    version = put_version(blobs, "m", FOLDER)
    with hold(cache_at(tmp_path), version) as held:
        assert held.path.is_dir()
        assert found_in(held.path) == FOLDER
        assert (held.document, held.manifest) == (version.document, version.manifest)
    assert entries(tmp_path) == {version.document.model_digest}
    blobs.reads.clear()
    blobs.delete(version.document.manifest)  # not even that is asked for again
    with hold(cache_at(tmp_path), version) as held:
        assert (held.document, held.manifest) == (version.document, version.manifest)
    assert blobs.reads == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"model.gguf": b"g"}, "model.gguf"),
        ({"model.gguf": b"g", "README.md": b"r"}, "model.gguf"),
        ({"deep/model.gguf": b"g", "README.md": b"r"}, "deep/model.gguf"),
        ({"scripted.json": b"{}"}, "scripted.json"),
        ({"a.gguf": b"g", "b.gguf": b"h"}, "."),
        ({"config.json": b"{}", "model.safetensors": b"s"}, "."),
    ],
)
def test_what_an_engine_loads_is_the_one_model_file_or_the_folder(
    blobs: ReadingBlobs, files: dict[str, bytes], expected: str, tmp_path: Path
) -> None:
    version = put_version(blobs, "m", files)
    with hold(cache_at(tmp_path), version) as held:
        assert held.path == tmp_path / "versions" / version.document.model_digest / "files" / expected
        assert held.path.exists()


def test_the_same_files_under_two_numbers_and_names_are_kept_once(blobs: ReadingBlobs, tmp_path: Path) -> None:
    versions = [put_version(blobs, name, FOLDER, number=number) for name, number in (("m", 1), ("m", 2), ("n", 5))]
    cache = cache_at(tmp_path)
    held = [hold(cache, version) for version in versions]
    assert len({one.path for one in held}) == 1
    assert blobs.read_bytes == SIZE
    for one in held:
        one.release()
    for version in versions:
        offline = cache.offline(version.document.model, version.number)
        assert offline is not None
        assert offline.document == version.document
        offline.release()


def test_engines_do_not_hash_again_what_was_checked(
    blobs: ReadingBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = put_version(blobs, "g", {"model.gguf": bytes_of("g", 2 << 20), "note": b"n"})
    folder = put_version(blobs, "f", {"config.json": b"{}", "model.safetensors": bytes_of("f", 2 << 20)})
    cache = cache_at(tmp_path)

    def hashed(*arguments: object) -> str:
        raise AssertionError("it was hashed again")

    with hold(cache, gguf) as one, hold(cache, folder) as two:
        monkeypatch.setattr(weights_digest, "_sha256", hashed)
        assert digest_of(one.path) == gguf.manifest.files[0].sha256.hex()
        weights = two.path / "model.safetensors"
        found = remembered_digest_of(weights, digest_cache=tmp_path / "digests")
        assert found == folder.manifest.files[1].sha256.hex()
        with pytest.raises(AssertionError, match="hashed again"):
            remembered_digest_of(two.path / "config.json", digest_cache=tmp_path / "digests")


def test_a_file_of_the_version_is_not_taken_for_a_digest_of_its_neighbour(blobs: ReadingBlobs, tmp_path: Path) -> None:
    files = {"model.gguf": bytes_of("g", 5000), "model.gguf.json": b'{"sha256": "x"}'}
    version = put_version(blobs, "g", files)
    with hold(cache_at(tmp_path), version) as held:
        assert found_in(held.path.parent) == files
        assert digest_of(held.path) == version.manifest.files[0].sha256.hex()


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def altered(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(b"altered")


def made_a_link(file: Path) -> None:
    elsewhere = file.with_name("elsewhere")
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def with_a_damaged_entry(file: Path) -> None:
    entry = file.parents[2] / "entry.json"
    document = json.loads(entry.read_text())
    document["files"][1]["sha256"] = "0" * 64
    entry.write_text(json.dumps(document))


def without_an_entry(file: Path) -> None:
    (file.parents[2] / "entry.json").write_text("{")


@pytest.mark.parametrize(
    "damage", [cut_short, altered, Path.unlink, made_a_link, with_a_damaged_entry, without_an_entry]
)
def test_a_damaged_entry_is_made_anew_and_who_uses_it_keeps_the_old(
    blobs: ReadingBlobs, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    version = put_version(blobs, "m", FOLDER)
    cache = cache_at(tmp_path)
    user = hold(cache, version)
    file = user.path / "w" / "model.safetensors"
    with file.open("rb") as opened:
        damage(file)
        assert cache.offline("m", 1) is None
        blobs.reads.clear()
        with hold(cache, version) as held:
            assert found_in(held.path) == FOLDER
        assert blobs.read_bytes == SIZE
        assert len(opened.read()) >= SIZE - 10
    user.release()
    assert entries(tmp_path) == {version.document.model_digest}


def test_a_version_larger_than_the_bound_is_refused_in_words(blobs: ReadingBlobs, tmp_path: Path) -> None:
    version = put_version(blobs, "m", FOLDER)
    with pytest.raises(ConfigError, match=r"\[storage\] cache_gb: m@1 has 0\.00262 GB, .* may hold 0\.002 GB"):
        hold(cache_at(tmp_path, 2_000_000), version)
    assert blobs.reads == []


def test_the_version_whose_use_is_longest_ago_makes_room(blobs: ReadingBlobs, tmp_path: Path) -> None:
    cache = cache_at(tmp_path, 35_000)
    versions = [put_number(blobs, number) for number in (1, 2, 3, 4)]
    digests = [version.document.model_digest for version in versions]
    for version in versions[:3]:
        hold(cache, version).release()
    hold(cache, versions[0]).release()
    hold(cache, versions[3]).release()
    assert entries(tmp_path) == {digests[0], digests[2], digests[3]}
    assert cache.offline("m", 2) is None
    hold(cache, versions[1]).release()
    assert entries(tmp_path) == {digests[0], digests[1], digests[3]}


def test_what_engines_were_told_of_a_version_goes_with_it(blobs: ReadingBlobs, tmp_path: Path) -> None:
    one, two = (put_number(blobs, number, size=2 << 20) for number in (1, 2))
    cache = cache_at(tmp_path, 3 << 20)
    hold(cache, one).release()
    told = os.listdir(tmp_path / "digests")
    hold(cache, two).release()
    assert len(told) == len(os.listdir(tmp_path / "digests")) == 1
    assert told != os.listdir(tmp_path / "digests")


def test_a_version_in_use_is_never_removed(blobs: ReadingBlobs, tmp_path: Path) -> None:
    cache = cache_at(tmp_path, 25_000)
    one, two, three = (put_number(blobs, number) for number in (1, 2, 3))
    first, second = hold(cache, one), hold(cache, two)
    with pytest.raises(ConfigError, match=r"cache_gb: the cache may hold .* versions in use take 2e-05 GB"):
        hold(cache, three)
    assert first.path.is_file()
    assert second.path.is_file()
    second.release()
    with hold(cache, three):
        assert entries(tmp_path) == {one.document.model_digest, three.document.model_digest}
    first.release()


def test_room_that_another_pull_has_claimed_is_not_given_twice(blobs: ReadingBlobs, tmp_path: Path) -> None:
    cache = cache_at(tmp_path, 25_000)
    one, two, three = (put_number(blobs, number) for number in (1, 2, 3))
    hold(cache, two).release()
    refused: list[str] = []

    def amid(count: int) -> None:
        if not refused:
            refused.append("")
            with pytest.raises(ConfigError) as error:
                # The half-made one and this are too much together, also once the other is removed.
                hold(
                    cache_at(tmp_path, 15_000),
                    StoredVersion(Registry(inner, "m", writer="x"), three.document, three.manifest, {}),
                )
            refused.append(str(error.value))

    inner = MemoryBlobs()
    inner.objects = blobs._below.objects  # type: ignore[attr-defined]
    blobs.before = amid
    with hold(cache, one) as held:
        assert held.path.is_file()
    assert "versions in use take 1e-05 GB" in refused[1]


def test_storage_that_is_away_keeps_nobody_from_what_is_here(blobs: ReadingBlobs, tmp_path: Path) -> None:
    version = put_version(blobs, "m", FOLDER)
    cache = cache_at(tmp_path)
    assert cache.offline("m", 1) is None
    hold(cache, version).release()
    held = cache_at(tmp_path).offline("m", 1)
    assert held is not None
    with held:
        assert found_in(held.path) == FOLDER
        assert (held.document, held.manifest) == (version.document, version.manifest)
    assert cache.offline("m", 2) is None
    assert cache.offline("n", 1) is None
    # Another storage may have given that number to something else.
    assert cache_at(tmp_path, storage="s3 there").offline("m", 1) is None


def test_a_version_that_was_quarantined_is_not_used_from_here_either(blobs: ReadingBlobs, tmp_path: Path) -> None:
    version = put_version(blobs, "m", FOLDER)
    cache = cache_at(tmp_path)
    hold(cache, version).release()
    version.registry.quarantine(1, reason="scrub found it")
    with pytest.raises(VersionUnusable, match="the version is quarantined: scrub found it"):
        hold(cache, version)
    assert cache.offline("m", 1) is None
    with pytest.raises(VersionMissing):
        cache.hold(version.registry, 9, silent)


def test_a_number_that_means_something_else_now_is_learnt_anew(blobs: ReadingBlobs, tmp_path: Path) -> None:
    """As in a storage that was emptied and filled again."""
    cache = cache_at(tmp_path)
    hold(cache, put_number(blobs, 1)).release()
    again = ReadingBlobs(MemoryBlobs())
    other = put_version(again, "m", {"a.bin": b"another"}, number=1)
    hold(cache, other).release()
    held = cache.offline("m", 1)
    assert held is not None
    with held:
        assert held.path.read_bytes() == b"another"


def test_a_damaged_version_is_not_kept(blobs: ReadingBlobs, tmp_path: Path) -> None:
    version = put_version(blobs, "m", FOLDER)
    flip(blobs, version.key_of("w/model.safetensors", 20))
    cache = cache_at(tmp_path)
    with pytest.raises(VersionUnusable, match="damaged in storage, and quarantined"):
        hold(cache, version)
    assert version.registry.read(1).document.state is VersionState.QUARANTINED
    assert cache.offline("m", 1) is None


def test_an_interrupted_pull_is_gone_on_with(blobs: ReadingBlobs, tmp_path: Path) -> None:
    version = put_version(blobs, "m", FOLDER, pack_bytes=CHUNK_BYTES)
    cache = cache_at(tmp_path)
    blobs.before = away_after(25)
    with pytest.raises(StorageUnavailable):
        hold(cache, version)
    assert entries(tmp_path) == {f"{version.document.model_digest}.making"}
    assert cache.offline("m", 1) is None
    blobs.before = lambda count: None
    with hold(cache, version) as held:
        assert found_in(held.path) == FOLDER
    assert blobs.read_bytes == SIZE


@pytest.mark.parametrize("last_step", ["discard", "note_name", "tell_engines"])
def test_a_process_that_ends_amid_the_last_steps_costs_no_byte(
    blobs: ReadingBlobs, last_step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = put_version(blobs, "m", {"model.gguf": bytes_of("g", 2 << 20)})
    cache = cache_at(tmp_path)

    def ends(*arguments: object, **keys: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CacheEntry, last_step, ends)
    with pytest.raises(KeyboardInterrupt):
        hold(cache, version)
    monkeypatch.undo()
    with hold(cache, version) as held:
        assert held.path.read_bytes() == version.files["model.gguf"]
        assert digest_of(held.path) == version.manifest.files[0].sha256.hex()
        assert read_sidecar(held.path) is not None
    assert blobs.read_bytes == version.manifest.size_bytes
    assert entries(tmp_path) == {version.document.model_digest}


def test_a_half_made_version_that_nobody_makes_any_more_gives_way(blobs: ReadingBlobs, tmp_path: Path) -> None:
    one, two = put_number(blobs, 1), put_number(blobs, 2)
    cache = cache_at(tmp_path, 15_000)
    blobs.before = away_after(0)
    with pytest.raises(StorageUnavailable):
        hold(cache, one)
    blobs.before = lambda count: None
    hold(cache, two).release()
    assert entries(tmp_path) == {two.document.model_digest}


def test_a_folder_in_which_others_may_write_is_refused(blobs: ReadingBlobs, tmp_path: Path) -> None:
    version = put_version(blobs, "m", FOLDER)
    (tmp_path / "versions").mkdir(mode=0o777)
    (tmp_path / "versions").chmod(0o777)
    with pytest.raises(ModelFileError, match="others than this user may write there"):
        hold(cache_at(tmp_path), version)


def test_who_waits_for_another_pull_may_leave(blobs: ReadingBlobs, tmp_path: Path) -> None:
    version = put_version(blobs, "m", FOLDER)
    cache = cache_at(tmp_path)
    inside, go_on = threading.Event(), threading.Event()

    def stand_still(count: int) -> None:
        inside.set()
        go_on.wait(DEADLINE_S)

    blobs.before = stand_still
    held: list[HeldVersion] = []
    first = threading.Thread(target=lambda: held.append(hold(cache, version)))
    first.start()
    assert inside.wait(DEADLINE_S)
    told: list[str] = []

    def leave(stage: str, done: int, total: int) -> None:
        told.append(stage)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.hold(version.registry, 1, leave)
    assert told == ["waiting for another process that pulls it"]
    go_on.set()
    first.join(DEADLINE_S)
    assert found_in(held[0].path) == FOLDER
    held[0].release()


def test_where_the_cache_stands_follows_from_the_settings(
    blobs: ReadingBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADPOND_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "headpond.toml"
    version = put_version(blobs, "m", FOLDER)
    bounded = VersionCache.of(check_settings({"models": {}, "storage": {"cache_gb": 0.002}}, file=file))
    with pytest.raises(ConfigError, match=r"may hold 0\.002 GB"):
        hold(bounded, version)
    embedded = VersionCache.of(check_settings({"models": {}}, file=file))
    with hold(embedded, version) as held:
        assert held.path.is_relative_to(tmp_path / "cache" / "versions")
    own = {"endpoint_url": "http://h:1", "bucket": "other"}
    assert VersionCache.of(check_settings({"models": {}, "storage": own}, file=file)).offline("m", 1) is None
    again = VersionCache.of(check_settings({"models": {}}, file=file)).offline("m", 1)
    assert again is not None
    again.release()


HOLDING = """
import sys, threading
from pathlib import Path
from headpond_workers.checkpoints.registry import Registry
from reading_blobs import ReadingBlobs
from test_version_cache import cache_at, s3_of, silent

url, bucket, access, secret, model, number, folder, stop = sys.argv[1:]
blobs = ReadingBlobs(s3_of(url, bucket, access, secret))

def before(count):
    if count == int(stop):
        print("inside", flush=True)
        threading.Event().wait()

blobs.before = before
held = cache_at(Path(folder), 3_500_000).hold(Registry(blobs, model, writer="child"), int(number), silent)
print("holds", blobs.read_bytes, flush=True)
sys.stdin.read()
held.release()
"""
NEVER = 1 << 30


def s3_of(url: str, bucket: str, access_key: str, secret_key: str) -> S3Blobs:
    return S3Blobs(StorageAddress(url, bucket, "us-east-1", access_key, secret_key, configured_in="the test"))


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


class Children:
    """Real processes that hold versions of one cache."""

    def __init__(self, seaweed: SeaweedProcess, folder: Path) -> None:
        self.access = (seaweed.url, seaweed.bucket, seaweed.access_key, seaweed.secret_key)
        self._folder = folder
        self._running: list[subprocess.Popen[str]] = []

    def start(self, model: str, number: int = 1, *, stop: int = NEVER) -> subprocess.Popen[str]:
        """stop: it stands still for ever at this read."""
        child = subprocess.Popen(
            [sys.executable, "-c", HOLDING, *self.access, model, str(number), str(self._folder), str(stop)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=with_test_modules(),
        )  # fmt: skip
        self._running.append(child)
        return child

    def kill(self, child: subprocess.Popen[str]) -> None:
        child.send_signal(signal.SIGKILL)
        assert child.wait(DEADLINE_S) == -signal.SIGKILL

    def close(self) -> None:
        for child in self._running:
            child.kill()
            child.communicate()


def said_by(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


@pytest.fixture
def children(seaweed: SeaweedProcess, tmp_path: Path) -> Iterator[Children]:
    children = Children(seaweed, tmp_path)
    try:
        yield children
    finally:
        children.close()


@pytest.mark.slow
def test_of_two_processes_that_need_a_version_one_pulls_it(children: Children, tmp_path: Path) -> None:
    model = f"m{secrets.token_hex(6)}"
    put_version(s3_of(*children.access), model, FOLDER, pack_bytes=4 * CHUNK_BYTES)
    both = [children.start(model), children.start(model)]
    assert sorted(map(said_by, both)) == ["holds 0", f"holds {SIZE}"]
    (digest,) = entries(tmp_path)
    assert found_in(tmp_path / "versions" / digest / "files") == FOLDER


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_pulls_holds_up_nobody(children: Children, tmp_path: Path) -> None:
    model = f"m{secrets.token_hex(6)}"
    put_version(s3_of(*children.access), model, FOLDER, pack_bytes=CHUNK_BYTES)
    dying = children.start(model, stop=20)
    assert said_by(dying) == "inside"
    waiting = children.start(model)
    eventually(lambda: waits_for_a_lock(waiting.pid, tmp_path), what="the second process waiting")
    children.kill(dying)
    word, read = said_by(waiting).split()
    assert word == "holds"
    # It went on where the other was: at most one read a thread had not been written.
    assert SIZE - 20 * CHUNK_BYTES <= int(read) <= SIZE - 16 * CHUNK_BYTES
    (digest,) = entries(tmp_path)
    assert found_in(tmp_path / "versions" / digest / "files") == FOLDER


@pytest.mark.slow
def test_what_a_process_holds_stays_until_it_is_killed(children: Children, tmp_path: Path) -> None:
    model = f"m{secrets.token_hex(6)}"
    blobs = ReadingBlobs(s3_of(*children.access))
    one = put_version(blobs, model, FOLDER)
    two = put_version(blobs, model, {"b.bin": bytes_of("b", 1_000_000)}, number=2)
    holder = children.start(model)
    assert said_by(holder) == f"holds {SIZE}"
    cache = cache_at(tmp_path, 3_500_000)
    with pytest.raises(ConfigError, match=r"versions in use take 0\.00262 GB"):
        hold(cache, two)
    children.kill(holder)
    with hold(cache, two):
        assert entries(tmp_path) == {two.document.model_digest}
    assert cache.offline(model, one.number) is None


def waits_for_a_lock(pid: int, folder: Path) -> bool:
    """Whether the process has a lock file of the cache open besides the one that it shares."""
    try:
        opened = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    return any(path.startswith(str(folder)) and path.endswith(".use") for path in opened)
