"""From the outboxes of this host to storage: the persister's part of stored prefixes.

The data object first, then the document that names it: a document leads nowhere only where its data was deleted since.
Storage that is away leaves the links where they are; nobody waits for them.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from pathlib import Path

from headpond.errors import (
    BlobChanged,
    BlobCorrupt,
    BlobMissing,
    ConfigError,
    HeadpondError,
    MalformedDocument,
    PrefixRefused,
    StorageUnavailable,
    UnsupportedSchema,
)
from headpond_workers.engines.prefix_header import check_digest, read_head
from headpond_workers.prefixes.blocks import block_hashes
from headpond_workers.prefixes.document import (
    MAX_DOCUMENT_BYTES,
    ROOT,
    StoredPrefixDocument,
    data_key,
    document_key,
)
from headpond_workers.prefixes.folders import OUTBOX, StoredFile, fingerprint_folders, models_in, prefixes_in
from headpond_workers.storage.blobs import Blobs

logger = logging.getLogger(__name__)

EVERY_S = 2.0
SWEEP_EVERY_S = 3600.0
KEEP_S = 7 * 86400.0
"""A prefix in storage is removed so long after it was written: a session that goes on has written a longer one."""
_READ_BYTES = 1 << 20


class PrefixUploads:
    """One a process; several persisters of a host do no harm to each other."""

    def __init__(self, blobs: Blobs, kv: Path, *, writer: str) -> None:
        """kv: the folder of all models' prefixes."""
        self._blobs, self._kv, self._writer = blobs, kv, writer
        self._orphans: set[str] = set()

    def upload_all(self) -> int:
        """Upload what waits; how many there were. Raises StorageUnavailable and ConfigError, and leaves the rest."""
        count = 0
        for model in models_in(self._kv):
            for folder in fingerprint_folders(self._kv, model):
                for waiting in sorted(prefixes_in(folder / OUTBOX), key=lambda found: found.used_ns):
                    count += self._guarded(model, folder.name, waiting)
        return count

    def sweep(self, *, now_ms: int, keep_s: float = KEEP_S) -> int:
        """Delete prefixes that are older than that, and data that no document named now or an hour ago; how many
        objects. Raises StorageUnavailable."""
        deleted = 0
        named: set[str] = set()
        data: set[str] = set()
        for key in list(self._blobs.list_keys(ROOT)):
            kind = key.removeprefix(ROOT).split("/")[2:3]
            if kind == ["data"]:
                data.add(key)
            elif kind == ["prefixes"]:
                try:
                    body = self._blobs.get(key, max_bytes=MAX_DOCUMENT_BYTES).body
                    document = StoredPrefixDocument.unpack(body)
                except BlobMissing:
                    continue
                except (BlobCorrupt, MalformedDocument, UnsupportedSchema) as error:
                    logger.warning("kv_document_refused key=%s error=%s", key, error)
                    self._blobs.delete(key)
                    deleted += 1
                    continue
                if document.created_ms < now_ms - keep_s * 1000:
                    self._blobs.delete(key)
                    deleted += 1
                else:
                    named.add(document.data_key)
        if not named and not data:
            return deleted
        orphans = data - named
        for key in orphans & self._orphans:
            self._blobs.delete(key)
            deleted += 1
        self._orphans = orphans
        self._blobs.abort_uploads(ROOT, older_than_s=86400.0)
        return deleted

    def _guarded(self, model: str, fingerprint: str, waiting: StoredFile) -> int:
        try:
            uploaded = self._upload(model, fingerprint, waiting)
        except (StorageUnavailable, ConfigError):
            raise
        except (HeadpondError, OSError) as error:
            # It would fail again: the file here is as good as it was.
            logger.warning("kv_prefix_not_uploaded model=%s error=%s", model, error)
            uploaded = 0
        waiting.path.unlink(missing_ok=True)
        return uploaded

    def _upload(self, model: str, fingerprint: str, waiting: StoredFile) -> int:
        """Raises PrefixRefused, BlobError, OSError, StorageUnavailable."""
        key = document_key(model, fingerprint, waiting.path.stem)
        if self._blobs.size_of(key) is not None:
            return 0
        head = read_head(waiting.path)
        if head.fingerprint != fingerprint:
            raise PrefixRefused(f"{waiting.path} was made by something else than its folder is for.")
        # A damaged one would keep a sound one from being uploaded under its name.
        check_digest(waiting.path)
        sha256, size = _digest(waiting.path)
        document = StoredPrefixDocument(
            txn=secrets.token_hex(16),
            created_ms=time.time_ns() // 1_000_000,
            writer=self._writer,
            model=model,
            fingerprint=fingerprint,
            tokens=len(head.ids),
            hashes=block_hashes(fingerprint, head.ids),
            size=size,
            sha256=sha256,
        )
        self._blobs.put_file(document.data_key, waiting.path)
        if not waiting.path.exists():
            # Forgotten meanwhile.
            self._blobs.delete(document.data_key)
            return 0
        try:
            self._blobs.put_new(key, document.pack())
        except BlobChanged:
            self._give_way(key, document)
            return 0
        logger.info("kv_prefix_uploaded model=%s tokens=%d bytes=%d", model, document.tokens, size)
        return 1

    def _give_way(self, key: str, own: StoredPrefixDocument) -> None:
        """Another host was first, with data of its own where its numbers differ in a bit."""
        theirs = StoredPrefixDocument.unpack(self._blobs.get(key, max_bytes=MAX_DOCUMENT_BYTES).body)
        if theirs.sha256 != own.sha256:
            self._blobs.delete(data_key(own.model, own.fingerprint, own.sha256))


class PrefixUploader(threading.Thread):
    """Uploads beside the commits of the persister, which come first: they share its rates."""

    def __init__(self, uploads: PrefixUploads) -> None:
        super().__init__(name="kv-uploads", daemon=True)
        self._uploads = uploads
        self._leave = threading.Event()

    def stop(self) -> None:
        self._leave.set()

    def run(self) -> None:
        swept = time.monotonic() - SWEEP_EVERY_S
        while not self._leave.is_set():
            try:
                self._uploads.upload_all()
                if time.monotonic() - swept >= SWEEP_EVERY_S:
                    swept = time.monotonic()
                    self._uploads.sweep(now_ms=time.time_ns() // 1_000_000)
            except (HeadpondError, OSError) as error:
                logger.warning("kv_uploads_delayed error=%s", error)
            self._leave.wait(EVERY_S)


def _digest(path: Path) -> tuple[bytes, int]:
    hasher, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            hasher.update(block)
            size += len(block)
    return hasher.digest(), size
