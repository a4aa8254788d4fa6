"""The policies of docs/security.md: each role can do its part under its policy, needs all of it, and can do no more."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bucket_policy import ACTIONS, Policy, policies
from headpond.errors import ConfigError
from headpond_workers.persistence.batch import Batch
from headpond_workers.persistence.history import collect as collect_state
from headpond_workers.persistence.history import list_unsettled, raise_floor
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.records import DropRecord, SubmitRecord
from headpond_workers.persistence.segments import StateStore
from headpond_workers.persistence.snapshots import make_snapshot
from headpond_workers.prefixes.local import LocalPrefixes
from headpond_workers.prefixes.remote import RemotePrefixes
from headpond_workers.prefixes.uploads import PrefixUploads
from headpond_workers.storage import s3_bucket
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.s3_uploads import PartSizes
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from paper_engine import PaperEngine

SECURITY = (Path(__file__).parents[1] / "docs" / "security.md").read_text(encoding="utf-8")
POLICIES = dict(
    zip(("persister", "loader", "pusher", "collector", "kv uploader", "kv worker"), policies(SECURITY), strict=True)
)


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


@pytest.fixture(scope="module")
def all_rights(seaweed: SeaweedProcess) -> S3Blobs:
    return open_s3(seaweed)


def open_s3(seaweed: SeaweedProcess, policy: Policy | None = None) -> S3Blobs:
    """policy: None may do everything."""
    blobs = S3Blobs(
        StorageAddress(seaweed.url, seaweed.bucket, seaweed.region, seaweed.access_key, seaweed.secret_key, "the test"),
        parts=PartSizes(single_bytes=1 << 20, part_bytes=5 << 20),
    )
    if policy is not None:
        policy.guard(blobs._bucket.client)
    return blobs


def unique() -> bytes:
    return secrets.token_bytes(16)


def swap(blobs: S3Blobs, key: str) -> None:
    """Read a document, and replace it."""
    found = blobs.get(key)
    etag = blobs.put_if(key, unique(), etag=found.etag)
    assert etag != found.etag


def persist(own: S3Blobs, all_rights: S3Blobs, tmp_path: Path) -> None:
    own.ensure_bucket()
    store = StateStore(own, "chat")
    assert store.read_head() is None
    at = store.create_head(lineage="line", writer="test")
    record = SubmitRecord(JournalId(1, 1), "chat/a", b"data")
    batch = Batch(first=JournalId(1, 1), last=JournalId(1, 1), inc=1, records=(record,))
    at = store.commit(at, batch, writer="test")
    at = make_snapshot(store, at, writer="test")
    drop = DropRecord(JournalId(1, 2), "chat/a")
    batch = Batch(first=drop.journal_id, last=drop.journal_id, inc=1, records=(drop,))
    at = store.commit(at, batch, writer="test")
    listed = list_unsettled(store)
    at = make_snapshot(store, at, writer="test")
    at = raise_floor(store, at, history_ms=0, purged=drop.journal_id, writer="test")
    assert collect_state(store, at, listed) == 4
    assert store.read_head() == at


def load(own: S3Blobs, all_rights: S3Blobs, tmp_path: Path) -> None:
    for key in ("models/load/aliases/prod", "models/load/versions/0000000001", "models/load/manifests/a"):
        all_rights.put_new(key, unique())
    all_rights.put_new("chunks/000001/aa/aab", b"x" * 100)
    assert list(own.list_keys("models/load/versions/")) == ["models/load/versions/0000000001"]
    assert own.size_of("models/load/aliases/other") is None
    own.get("models/load/manifests/a")
    own.read_into("chunks/000001/aa/aab", memoryview(bytearray(50)), offset=50)
    swap(own, "models/load/aliases/prod")
    swap(own, "models/load/versions/0000000001")
    all_rights.delete("gc/state")
    own.put_new("gc/state", unique())
    swap(own, "gc/state")


def push(own: S3Blobs, all_rights: S3Blobs, tmp_path: Path) -> None:
    all_rights.delete("gc/state")
    all_rights.put_new("gc/state", unique())
    all_rights.put_new("gc/condemned/000001", unique())
    own.get("gc/state")
    own.get("gc/condemned/000001")
    own.put_new("intents/one", unique())
    swap(own, "intents/one")
    own.put_once("chunks/000001/aa/aaa", b"x" * 100)
    own.put_once("chunks/000001/aa/aaa", b"x" * 100)
    large = tmp_path / "large"
    large.write_bytes(secrets.token_bytes(6 << 20))
    own.put_file("chunks/000001/bb/bbb", large)
    own._uploads._give_up("chunks/000001/bb/bbb", begin_upload(all_rights, "chunks/000001/bb/bbb"))
    assert all_rights.abort_uploads("chunks/", older_than_s=0) == 0
    own.put_new("models/push/manifests/b", unique())
    assert "models/push/versions/0000000002" not in own.list_keys("models/push/versions/")
    own.put_new("models/push/versions/0000000002", unique())
    swap(own, "models/push/versions/0000000002")
    own.put_new("models/push/aliases/canary", unique())
    swap(own, "models/push/aliases/canary")
    own.delete("intents/one")


def collect(own: S3Blobs, all_rights: S3Blobs, tmp_path: Path) -> None:
    for key in (
        "intents/two",
        "models/collect/versions/0000000003",
        "models/collect/manifests/c",
        "chunks/000001/cc/ccc",
    ):
        all_rights.put_new(key, unique())
    all_rights.delete("gc/state")
    begin_upload(all_rights, "chunks/000001/dd/ddd")
    own.put_new("gc/state", unique())
    for prefix in ("intents/", "chunks/", "models/"):
        assert list(own.list_keys(prefix))
    own.get("intents/two")
    own.get("models/collect/manifests/c")
    swap(own, "models/collect/versions/0000000003")
    own.read_into("chunks/000001/cc/ccc", memoryview(bytearray(16)))
    own.put_new("gc/condemned/000002", unique())
    swap(own, "gc/state")
    assert own.abort_uploads("chunks/", older_than_s=0) == 1
    for key in ("chunks/000001/cc/ccc", "models/collect/manifests/c", "gc/condemned/000002", "intents/two"):
        own.delete(key)


def upload_prefixes(own: S3Blobs, all_rights: S3Blobs, tmp_path: Path) -> None:
    prefixes = LocalPrefixes(tmp_path, "chat", PaperEngine().prefix_fingerprint(None) or "", max_bytes=1 << 30)
    large = tuple(range(30_000))
    assert PaperEngine().save_prefix(large, prefixes.path("0" * 32))
    prefixes.send("0" * 32)
    uploads = PrefixUploads(own, tmp_path, writer="test")
    assert uploads.upload_all() == 1
    assert uploads.sweep(now_ms=1) == 0
    assert uploads.sweep(now_ms=1 << 50) == 1
    begin_upload(all_rights, "kv/chat/x")
    assert own.abort_uploads("kv/", older_than_s=0) >= 1


def fetch_prefixes(own: S3Blobs, all_rights: S3Blobs, tmp_path: Path) -> None:
    prefixes = LocalPrefixes(tmp_path, "chat", PaperEngine().prefix_fingerprint(None) or "", max_bytes=1 << 30)
    PaperEngine().save_prefix(tuple(range(200)), prefixes.path("1" * 32))
    prefixes.send("1" * 32)
    assert PrefixUploads(all_rights, tmp_path, writer="test").upload_all() == 1
    remote = RemotePrefixes(own, "chat", prefixes.fingerprint)
    remote.look()
    into = tmp_path / "fetched"
    assert remote.fetch("1" * 32, into, until=time.monotonic() + 60, proceed=lambda: True)
    assert into.read_bytes() == prefixes.path("1" * 32).read_bytes()


def begin_upload(blobs: S3Blobs, key: str) -> str:
    bucket = blobs._bucket
    return bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)["UploadId"]


WORK: dict[str, Callable[[S3Blobs, S3Blobs, Path], None]] = {
    "persister": persist,
    "loader": load,
    "pusher": push,
    "collector": collect,
    "kv uploader": upload_prefixes,
    "kv worker": fetch_prefixes,
}


def test_the_document_has_a_policy_for_each_role() -> None:
    said = {role: paragraph.lower() for role, (paragraph, _) in POLICIES.items()}
    words = {"persister": "persister", "loader": "loads versions", "pusher": "pushes", "collector": "collector"}
    words |= {"kv uploader": "uploads keys and values", "kv worker": "only fetches them"}
    for role, word in words.items():
        assert word in said[role]


@pytest.mark.slow
@pytest.mark.parametrize("role", WORK)
def test_a_role_can_do_its_part_under_its_policy_and_needs_all_of_it(
    role: str, seaweed: SeaweedProcess, all_rights: S3Blobs, tmp_path: Path
) -> None:
    policy = Policy(POLICIES[role][1].statements)
    WORK[role](open_s3(seaweed, policy), all_rights, tmp_path)
    assert policy.unused() == []


BEYOND: dict[str, list[Callable[[S3Blobs, Path], object]]] = {
    "persister": [
        lambda blobs, _: blobs.get("models/chat/aliases/prod"),
        lambda blobs, _: blobs.delete("state/chat/head"),
    ],
    "loader": [
        lambda blobs, _: blobs.get("state/chat/head"),
        lambda blobs, _: blobs.put_new("chunks/000001/ee/eee", b"x"),
        lambda blobs, _: blobs.put_new("models/chat/manifests/d", b"x"),
        lambda blobs, _: blobs.delete("models/chat/versions/0000000001"),
    ],
    "pusher": [
        lambda blobs, _: blobs.get("state/chat/head"),
        lambda blobs, _: blobs.put_new("state/chat/head", b"x"),
        lambda blobs, _: blobs.delete("chunks/000001/aa/aaa"),
        lambda blobs, _: blobs.put_new("gc/state", b"x"),
    ],
    "collector": [
        lambda blobs, _: blobs.get("state/chat/head"),
        lambda blobs, _: blobs.delete("models/chat/versions/0000000001"),
        lambda blobs, _: blobs.delete("models/chat/aliases/prod"),
        lambda blobs, _: blobs.put_new("models/chat/aliases/prod", b"x"),
        lambda blobs, path: blobs.put_file("chunks/000001/ee/eee", path),
    ],
    "kv uploader": [
        lambda blobs, _: blobs.get("state/chat/head"),
        lambda blobs, _: blobs.put_new("chunks/000001/ee/eee", b"x"),
    ],
    "kv worker": [
        lambda blobs, _: blobs.get("state/chat/head"),
        lambda blobs, _: blobs.put_new("kv/chat/f/prefixes/x", b"x"),
        lambda blobs, _: blobs.delete("kv/chat/f/prefixes/x"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("role", BEYOND)
def test_a_role_can_do_no_more_than_its_part(role: str, seaweed: SeaweedProcess, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(2 << 20))
    own = open_s3(seaweed, Policy(POLICIES[role][1].statements))
    for refused in BEYOND[role]:
        with pytest.raises(ConfigError, match=r"AccessDenied.*their rights"):
            refused(own, path)


def test_every_request_that_the_store_can_make_has_its_right_in_the_table() -> None:
    folder = Path(s3_bucket.__file__).parent
    source = "".join(path.read_text(encoding="utf-8") for path in folder.glob("s3*.py"))
    client = S3Blobs(StorageAddress("http://127.0.0.1:9", "b", "us-east-1", "k", "s", "the test"))._bucket.client
    called = {
        operation for method, operation in client.meta.method_to_api_mapping.items() if f"client.{method}(" in source
    }
    assert called == set(ACTIONS)
