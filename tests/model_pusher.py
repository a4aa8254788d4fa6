"""A push as docs/checkpoint-format.md has it, step by step, of one file whose chunks are objects of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from headpond.errors import BlobChanged, BlobMissing, PushOvertaken
from headpond_workers.checkpoints.collection.gc_mark import read_intent
from headpond_workers.checkpoints.collection.gc_state import FIRST_EPOCH, GcStateAt, GcStore
from headpond_workers.checkpoints.document_io import new_txn
from headpond_workers.checkpoints.manifest import Manifest, StoredChunk, StoredFile, StoredObject
from headpond_workers.checkpoints.names import chunk_key, intent_key, manifest_key, version_key
from headpond_workers.checkpoints.pushes.intent import Intent
from headpond_workers.checkpoints.registry import Registry, VersionAt
from headpond_workers.checkpoints.version_document import VersionDocument, VersionState
from headpond_workers.storage.blobs import Blobs

Clock = Callable[[], int]


def push(blobs: Blobs, model: str, chunks: Sequence[bytes], *, now_ms: Clock = lambda: 0, host: str = "h") -> int:
    """The number of the version, once it is acknowledged. chunks: different, not empty."""
    return ModelPush(blobs, model, chunks, now_ms=now_ms, host=host).run()


class ModelPush:
    """Steps are methods, so that a test can leave one out."""

    def __init__(self, blobs: Blobs, model: str, chunks: Sequence[bytes], *, now_ms: Clock, host: str = "h") -> None:
        self.blobs, self.model, self.now_ms, self.host = blobs, model, now_ms, host
        self.registry = Registry(blobs, model, writer=host)
        self.store = GcStore(blobs, writer=host)
        self.chunks = {hashlib.sha256(chunk).digest(): chunk for chunk in chunks}

    def run(self) -> int:
        while True:
            try:
                # A push that begins anew is another push: what its intent protected may be gone.
                return self.attempt(new_txn())
            except PushOvertaken:
                continue

    def attempt(self, txn: str) -> int:
        etag = None
        while True:
            at = self.store.read()  # 1, in this order: the state, its lists, then the versions
            known = self.known(at)
            if known is None:
                continue
            epoch = FIRST_EPOCH if at is None else at.state.epoch
            keys = {sha256: known.get(sha256) or chunk_key(epoch, sha256.hex()) for sha256 in self.chunks}  # 2
            etag = self.put_intent(txn, [*keys.values(), manifest_key(self.model, txn)], at, etag)  # 3
            if self.is_unchanged(at):  # 4
                break
        for sha256, key in keys.items():  # 5
            if sha256 not in known and self.blobs.size_of(key) is None:
                self.blobs.put_once(key, self.chunks[sha256])
        manifest = self.manifest(txn, list(keys.items()))
        self.blobs.put_new(manifest_key(self.model, txn), manifest.pack())  # 6
        version = self.create(txn, manifest)  # 7
        if self.intent_is_gone(txn):  # 8
            self.give_up(version)
            raise PushOvertaken(intent_key(txn))
        try:
            self.registry.swap(version, VersionState.COMPLETE)  # 9
        except BlobChanged as error:
            raise PushOvertaken(intent_key(txn)) from error
        self.blobs.delete(intent_key(txn))  # 10
        return version.document.number

    def known(self, at: GcStateAt | None) -> dict[bytes, str] | None:
        """Chunks of complete versions, but those in objects that are condemned. None: a round ended meanwhile."""
        condemned = set()
        for round_ in at.state.rounds if at is not None else ():
            try:
                condemned.update(self.store.condemned(round_))
            except BlobMissing:
                return None
        known = {}
        for number in self.registry.numbers():
            document = self.registry.read(number).document
            if document.state is not VersionState.COMPLETE:
                continue
            try:
                manifest = self.registry.manifest_of(document)
            except BlobMissing:
                continue  # Deleted and collected since.
            for chunk in manifest.chunks:
                key = manifest.objects[chunk.object].key
                if key not in condemned and chunk.sha256 in self.chunks:
                    known[chunk.sha256] = key
        return known

    def put_intent(self, txn: str, keys: list[str], at: GcStateAt | None, etag: str | None) -> str:
        intent = Intent(
            txn=txn, created_ms=self.now_ms(), writer=self.host, model=self.model, host=self.host, pid=1,
            objects=tuple(keys), gc_txn="" if at is None else at.state.txn, revision=new_txn(),
        )  # fmt: skip
        if etag is None:
            return self.blobs.put_new(intent_key(txn), intent.pack())
        try:
            return self.blobs.put_if(intent_key(txn), intent.pack(), etag=etag)
        except BlobChanged as error:
            raise PushOvertaken(intent_key(txn)) from error

    def is_unchanged(self, at: GcStateAt | None) -> bool:
        now = self.store.read()
        return (now and now.state.txn) == (at and at.state.txn)

    def manifest(self, txn: str, keys: list[tuple[bytes, str]]) -> Manifest:
        sizes = [len(self.chunks[sha256]) for sha256, _ in keys]
        whole = b"".join(self.chunks[sha256] for sha256, _ in keys)
        return Manifest(
            txn=txn, created_ms=self.now_ms(), writer=self.host, model=self.model,
            objects=tuple(StoredObject(key, size) for (_, key), size in zip(keys, sizes, strict=True)),
            chunks=tuple(
                StoredChunk(sha256, size, index, 0)
                for index, ((sha256, _), size) in enumerate(zip(keys, sizes, strict=True))
            ),
            files=(StoredFile("weights", len(whole), hashlib.sha256(whole).digest(), tuple(range(len(keys)))),),
        )  # fmt: skip

    def create(self, txn: str, manifest: Manifest) -> VersionAt:
        number = 1 + max(self.registry.numbers(), default=0)
        while True:
            document = VersionDocument(
                txn=new_txn(), created_ms=self.now_ms(), writer=self.host, model=self.model, number=number,
                state=VersionState.PENDING, push=txn, manifest=manifest_key(self.model, txn),
                manifest_digest=hashlib.sha256(manifest.pack()).digest(), model_digest=manifest.model_digest,
                size_bytes=manifest.size_bytes, files=1,
            )  # fmt: skip
            try:
                etag = self.blobs.put_new(version_key(self.model, number), document.pack())
            except BlobChanged:
                number += 1
            else:
                return VersionAt(document, etag)

    def intent_is_gone(self, txn: str) -> bool:
        return read_intent(self.blobs, txn) is None

    def give_up(self, version: VersionAt) -> None:
        try:
            self.registry.swap(version, VersionState.DELETED, reason="overtaken")
        except BlobChanged as error:
            raise PushOvertaken(version.document.push) from error
