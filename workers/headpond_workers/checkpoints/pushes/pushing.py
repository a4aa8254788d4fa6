"""Push files as a version. docs/checkpoint-format.md, "A push", has the steps and what a kill between them leaves."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from pathlib import Path

from headpond.errors import BlobChanged, BlobMissing, PushOvertaken, StorageUnavailable
from headpond_workers.checkpoints.description import Description
from headpond_workers.checkpoints.document_io import checked, new_txn, now_ms
from headpond_workers.checkpoints.manifest import Manifest
from headpond_workers.checkpoints.names import chunk_key, intent_key, manifest_key
from headpond_workers.checkpoints.pushes.intent import MAX_INTENT_BYTES, Intent
from headpond_workers.checkpoints.pushes.numbering import complete, take_number
from headpond_workers.checkpoints.pushes.push_plan import NamedObject, lay_out, new_objects
from headpond_workers.checkpoints.pushes.push_progress import Counter, OnProgress, Stage
from headpond_workers.checkpoints.pushes.scanning import ScannedFile, digest_of, scan
from headpond_workers.checkpoints.pushes.sending import digests_of, send
from headpond_workers.checkpoints.pushes.source_files import Source, list_source
from headpond_workers.checkpoints.pushes.stored_chunks import (
    Collected,
    Versions,
    find_chunks,
    newest_files,
    read_collected,
    read_gc_txn,
    read_versions,
)
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionDocument, VersionState

__all__ = ["How", "OnProgress", "Pushed", "Stage", "Unchanged", "push"]

logger = logging.getLogger(__name__)
BEGINNINGS = 3
"""How often one push begins anew because a collector overtook it."""


class Unchanged(Enum):
    """What a push of the very files that the newest complete version has comes to."""

    NO_VERSION = "the push names the version that is there"
    NEW_VERSION = "another version with the same files"


class How(Enum):
    """What came of a push."""

    NEW = "new"
    UNCHANGED = "unchanged"
    """The newest complete version has these files."""
    RESUMED = "resumed"
    """An earlier push of these files was interrupted after all was sent; its version is complete now."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What came of a push. new_bytes: of chunks that no version had. sent_bytes: of objects that were put now; the rest
    of the new ones an interrupted push had sent. left_out: hidden entries of the folder. hash_s, send_s: seconds until
    all was hashed, and from then on."""

    number: int
    how: How
    document: VersionDocument
    left_out: tuple[str, ...]
    new_bytes: int = 0
    sent_bytes: int = 0
    hash_s: float = 0.0
    send_s: float = 0.0


def push(
    registry: Registry,
    path: Path,
    description: Description,
    *,
    unchanged: Unchanged = Unchanged.NO_VERSION,
    host: str | None = None,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> Pushed:
    """Push a file or a folder as a version. It is complete and lasting when this returns.

    Interrupted anywhere, the same call goes on where it stopped. host: who takes an interrupted push over; None: this
    machine's name. Raises ModelFileError for files that are refused or change meanwhile, StorageUnavailable,
    PushOvertaken if collectors overtook it again and again.
    """
    source = list_source(path)
    counter = Counter(on_progress)
    started = time.monotonic()
    counter.begin(Stage.HASH, source.size_bytes)
    files = scan(source, counter.add, known=newest_files(registry))
    hash_s = time.monotonic() - started
    one = _Push(
        registry,
        source,
        files,
        description,
        unchanged=unchanged,
        host=host or socket.gethostname(),
        counter=counter,
    )
    beginnings = 1
    while True:
        try:
            return replace(one.run(), hash_s=hash_s)
        except PushOvertaken as error:
            logger.warning("push_overtaken model=%s error=%s", registry.model, error)
            if beginnings == BEGINNINGS:
                raise
        beginnings += 1


@dataclass(frozen=True, slots=True)
class _Plan:
    """put: what storage lacks, each key once. objects: keys of all that the version leads to. manifest: its bytes."""

    gc: Collected
    parent: int
    put: tuple[NamedObject, ...] = field(repr=False)
    objects: tuple[str, ...] = field(repr=False)
    manifest: bytes = field(repr=False)
    doubtful: frozenset[str] = field(repr=False)


class _Push:
    """One set of files on its way into storage."""

    def __init__(
        self,
        registry: Registry,
        source: Source,
        files: Sequence[ScannedFile],
        description: Description,
        *,
        unchanged: Unchanged,
        host: str,
        counter: Counter,
    ) -> None:
        self._registry, self._blobs = registry, registry.blobs
        self._source, self._files, self._digest = source, files, digest_of(files)
        self._description, self._unchanged, self._host = description, unchanged, host
        self._counter = counter

    def run(self) -> Pushed:
        """All steps after the hashing, under a txn of its own."""
        txn, etag = new_txn(), ""
        damaged: set[str] = set()
        started, sent_bytes = time.monotonic(), 0
        while True:
            gc = read_collected(self._registry)
            versions = read_versions(self._registry)
            there = self._there_already(versions) or self._taken_over(versions)
            if there is not None:
                if etag:
                    self._drop_intent(txn)
                return there
            plan = self._plan(txn, gc, versions, damaged)
            etag = self._put_intent(txn, plan, etag)
            if read_gc_txn(self._registry) != gc.txn:
                continue
            self._counter.begin(Stage.SEND, sum(each.size for each in plan.put))
            sent = send(self._blobs, plan.put, doubtful=plan.doubtful, on_bytes=self._counter.add)
            sent_bytes += sent.put_bytes
            if not sent.damaged:
                break
            # Nothing is put in the place of what others may name: the same content gets another key.
            damaged |= sent.damaged
            logger.warning("objects_damaged model=%s keys=%s", self._registry.model, sorted(sent.damaged))
        self._source.check_unchanged()
        self._blobs.put_once(manifest_key(self._registry.model, txn), plan.manifest)
        at = complete(self._registry, take_number(self._registry, partial(self._draft, txn, plan)))
        self._drop_intent(txn)
        return Pushed(
            at.document.number,
            How.NEW,
            at.document,
            self._source.left_out,
            new_bytes=sum(each.size for each in plan.put),
            sent_bytes=sent_bytes,
            send_s=time.monotonic() - started,
        )

    def _there_already(self, versions: Versions) -> Pushed | None:
        newest = versions.newest
        if newest is None or newest.model_digest != self._digest or self._unchanged is Unchanged.NEW_VERSION:
            return None
        # Its push may have been killed just before this, its last step.
        self._drop_intent(newest.push)
        return Pushed(newest.number, How.UNCHANGED, newest, self._source.left_out)

    def _taken_over(self, versions: Versions) -> Pushed | None:
        """The version of an interrupted push of the same, completed."""
        for at in versions.all:
            document = at.document
            same = (document.model_digest, document.engine, document.note) == (
                self._digest,
                self._description.engine,
                self._description.note,
            )
            if document.state is VersionState.PENDING and same and self._is_ours(document.push):
                document = complete(self._registry, at).document
                self._drop_intent(document.push)
                return Pushed(document.number, How.RESUMED, document, self._source.left_out)
        return None

    def _drop_intent(self, txn: str) -> None:
        """Of a push that is over. One that stays keeps objects from being collected until a collector removes it."""
        try:
            self._blobs.delete(intent_key(txn))
        except StorageUnavailable as error:
            logger.warning("intent_left model=%s txn=%s error=%s", self._registry.model, txn, error)

    def _is_ours(self, txn: str) -> bool:
        """Whether the intent of a push is there, and of this host."""
        key = intent_key(txn)
        try:
            body = self._blobs.get(key, max_bytes=MAX_INTENT_BYTES).body
        except BlobMissing:
            return False
        return checked(key, partial(Intent.unpack, body)).host == self._host

    def _plan(self, txn: str, gc: Collected, versions: Versions, damaged: Collection[str]) -> _Plan:
        wanted = {chunk.sha256 for file in self._files for chunk in file.chunks}
        stored = find_chunks(self._registry, versions, wanted, gc)
        parts = new_objects(self._files, stored.places)
        new = [
            NamedObject(_free_key(gc.epoch, sha256, damaged), sha256, part)
            for part, sha256 in zip(parts, digests_of(parts), strict=True)
        ]
        layout = lay_out(self._files, stored.places, new)
        newest = versions.newest
        manifest = Manifest(
            txn=txn,
            created_ms=now_ms(),
            writer=self._registry.writer,
            model=self._registry.model,
            objects=layout.objects,
            chunks=layout.chunks,
            files=layout.files,
            engine=self._description.engine,
            parameters=self._description.parameters,
            adapters=self._description.adapters,
            parent=0 if newest is None else newest.number,
        )
        keys = tuple(stored.key for stored in layout.objects)
        put = {each.key: each for each in new}
        return _Plan(gc, manifest.parent, tuple(put.values()), keys, manifest.pack(), stored.doubtful)

    def _put_intent(self, txn: str, plan: _Plan, etag: str) -> str:
        """etag: of the intent that is there; empty for none."""
        intent = Intent(
            txn=txn,
            created_ms=now_ms(),
            writer=self._registry.writer,
            model=self._registry.model,
            host=self._host,
            pid=os.getpid(),
            objects=(manifest_key(self._registry.model, txn), *plan.objects),
            gc_txn=plan.gc.txn,
            revision=new_txn(),
        )
        key = intent_key(txn)
        if not etag:
            return self._blobs.put_new(key, intent.pack())
        try:
            return self._blobs.put_if(key, intent.pack(), etag=etag)
        except BlobChanged as error:
            raise PushOvertaken(key) from error

    def _draft(self, txn: str, plan: _Plan, number: int) -> VersionDocument:
        return VersionDocument(
            txn=new_txn(),
            created_ms=now_ms(),
            writer=self._registry.writer,
            model=self._registry.model,
            number=number,
            state=VersionState.PENDING,
            push=txn,
            manifest=manifest_key(self._registry.model, txn),
            manifest_digest=hashlib.sha256(plan.manifest).digest(),
            model_digest=self._digest,
            size_bytes=self._source.size_bytes,
            files=len(self._files),
            engine=self._description.engine,
            parent=plan.parent,
            note=self._description.note,
        )


def _free_key(epoch: int, sha256: str, damaged: Collection[str]) -> str:
    """The key of an object, under the epoch of now, or the next one where no damaged object stands."""
    while (key := chunk_key(epoch, sha256)) in damaged:
        epoch += 1
    return key
