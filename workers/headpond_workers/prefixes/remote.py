"""The prefixes of one fingerprint in storage, as a worker sees them: an index that is renewed beside the jobs, and
downloads that give up where prefilling would be done by then."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from headpond.errors import BlobCorrupt, BlobMissing, MalformedDocument, UnsupportedSchema
from headpond_workers.prefixes.document import MAX_DOCUMENT_BYTES, StoredPrefixDocument, document_key, model_root
from headpond_workers.prefixes.index import Found, PrefixIndex
from headpond_workers.storage.blobs import Blobs

logger = logging.getLogger(__name__)

MOST_DOCUMENTS = 200
"""Read in one look: others wait for the next one."""
_PART_BYTES = 4 << 20


class RemotePrefixes:
    """Thread-safe: one thread looks, others find and fetch."""

    def __init__(self, blobs: Blobs, model: str, fingerprint: str) -> None:
        self._blobs, self._model, self._fingerprint = blobs, model, fingerprint
        self._index = PrefixIndex()
        self._documents: dict[str, StoredPrefixDocument] = {}

    def look(self) -> None:
        """Take over what others stored and removed. Raises StorageUnavailable, ConfigError."""
        root = f"{model_root(self._model, self._fingerprint)}prefixes/"
        names = {key.removeprefix(root) for key in self._blobs.list_keys(root)}
        self._index.keep(names)
        for gone in self._documents.keys() - names:
            self._documents.pop(gone, None)
        for name in sorted(names - self._documents.keys())[:MOST_DOCUMENTS]:
            key = document_key(self._model, self._fingerprint, name)
            try:
                document = StoredPrefixDocument.unpack(self._blobs.get(key, max_bytes=MAX_DOCUMENT_BYTES).body)
            except BlobMissing:
                continue
            except (BlobCorrupt, MalformedDocument, UnsupportedSchema) as error:
                logger.warning("kv_document_refused key=%s error=%s", key, error)
                continue
            if (document.model, document.fingerprint) != (self._model, self._fingerprint):
                logger.warning("kv_document_refused key=%s error=of %s", key, document.model)
                continue
            self._documents[name] = document
            self._index.put(name, document.hashes, document.size)
            logger.info("kv_prefix_known model=%s tokens=%d bytes=%d", self._model, document.tokens, document.size)

    def find(self, hashes: Sequence[bytes]) -> Found | None:
        """The longest stored beginning of a prompt, by the last look."""
        return self._index.find(hashes)

    def fetch(self, name: str, into: Path, *, until: float, proceed: Callable[[], bool]) -> bool:
        """Bring a prefix to the file `into`, whole or not at all, mode 0600. False if it was not there by `until`, of
        time.monotonic(), or `proceed` said no.

        Raises BlobMissing and BlobCorrupt, after which it is found no more; StorageUnavailable, ConfigError, OSError.
        """
        document = self._documents.get(name)
        if document is None:
            return False
        descriptor, temporary = tempfile.mkstemp(prefix=".kv-", suffix=".partial", dir=into.parent)  # 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                hasher = hashlib.sha256()
                buffer = memoryview(bytearray(min(_PART_BYTES, document.size)))
                for offset in range(0, document.size, _PART_BYTES):
                    if time.monotonic() >= until or not proceed():
                        return False
                    part = buffer[: min(_PART_BYTES, document.size - offset)]
                    self._blobs.read_into(document.data_key, part, offset=offset)
                    hasher.update(part)
                    file.write(part)
            if hasher.digest() != document.sha256:
                raise BlobCorrupt(document.data_key, "its SHA-256 is another than its document says")
            os.replace(temporary, into)
            return True
        except (BlobMissing, BlobCorrupt):
            self.forget(name)
            raise
        finally:
            Path(temporary).unlink(missing_ok=True)

    def forget(self, name: str) -> None:
        """Find it no more. Its document is not read again: the next look would find the same."""
        self._index.put(name, (), 0)
