"""Scrub: every object that a complete version names is read, and each chunk in it is compared with its SHA-256."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from headpond.errors import BlobCorrupt, BlobMissing
from headpond_workers.checkpoints.collection.gc_mark import read_versions
from headpond_workers.checkpoints.manifest import MAX_OBJECT_BYTES, Manifest, StoredChunk
from headpond_workers.checkpoints.parallel import in_parallel
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionState
from headpond_workers.storage.blobs import Blobs

SCRUB_THREADS = 4
"""Each holds one object, of 16 MiB at most."""
OnBytes = Callable[[int, int], None]
"""Bytes that were read, of how many."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was pushed. key: the object. versions: that name it, `chat@3`. quarantined: those of
    them that were quarantined for it."""

    key: str
    reason: str
    versions: tuple[str, ...]
    quarantined: tuple[str, ...]


@dataclass(slots=True)
class Scrubbed:
    versions: int = 0
    objects: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A chunk in an object."""

    offset: int
    size: int
    sha256: bytes


@dataclass(slots=True)
class _Object:
    """size: as the manifests say. pieces: with the versions that need each."""

    size: int = 0
    pieces: dict[_Piece, set[tuple[str, int]]] = field(default_factory=lambda: defaultdict(set))


def scrub(
    blobs: Blobs,
    *,
    writer: str,
    threads: int = SCRUB_THREADS,
    on_bytes: OnBytes = lambda done, total: None,
) -> Scrubbed:
    """Read and check everything that complete versions name, and quarantine each version that has something bad.

    Raises StorageUnavailable; BlobCorrupt for a version document that cannot be read. What was found until then is
    quarantined.
    """
    done = Scrubbed()
    objects: dict[str, _Object] = defaultdict(_Object)
    for at in read_versions(blobs, threads=threads):
        document = at.document
        if document.state is not VersionState.COMPLETE:
            continue
        done.versions += 1
        registry = Registry(blobs, document.model, writer=writer)
        try:
            _collect(objects, registry.manifest_of(document), document.number)
        except BlobCorrupt as error:
            _report(blobs, done, error.key, str(error), {(document.model, document.number)}, writer=writer)
        except BlobMissing as error:
            _report(blobs, done, error.key, "it is not there", {(document.model, document.number)}, writer=writer)
    total = sum(found.size for found in objects.values())
    for key, bad in in_parallel(
        lambda item: (item[0], _bad_pieces(blobs, *item)), list(objects.items()), threads=threads
    ):
        found = objects[key]
        done.objects += 1
        done.bytes += found.size
        on_bytes(done.bytes, total)
        if bad:
            reason = next(iter(bad.values()))
            versions = {version for piece in bad for version in found.pieces[piece]}
            _report(blobs, done, key, reason, versions, writer=writer)
    return done


def _collect(objects: dict[str, _Object], manifest: Manifest, number: int) -> None:
    for chunk in manifest.chunks:
        stored = manifest.objects[chunk.object]
        found = objects[stored.key]
        found.size = max(found.size, stored.size)
        found.pieces[_piece(chunk)].add((manifest.model, number))


def _piece(chunk: StoredChunk) -> _Piece:
    return _Piece(chunk.offset, chunk.size, chunk.sha256)


def _bad_pieces(blobs: Blobs, key: str, found: _Object) -> dict[_Piece, str]:
    """Those that are not in the object as they should be, with the reason."""
    bad = _look(blobs, key, found)
    # Once more: the wire may have damaged it, rather than the disk.
    return _look(blobs, key, found) if bad else bad


def _look(blobs: Blobs, key: str, found: _Object) -> dict[_Piece, str]:
    try:
        body = memoryview(blobs.get(key, max_bytes=MAX_OBJECT_BYTES).body)
    except BlobMissing:
        return dict.fromkeys(found.pieces, "it is not there")
    except BlobCorrupt as error:
        return dict.fromkeys(found.pieces, error.reason)
    bad = {}
    for piece in found.pieces:
        part = body[piece.offset : piece.offset + piece.size]
        if len(part) != piece.size:
            bad[piece] = f"it has {len(body)} bytes, and a chunk ends at {piece.offset + piece.size}"
        elif hashlib.sha256(part).digest() != piece.sha256:
            bad[piece] = f"the chunk of {piece.size} bytes at {piece.offset} has another SHA-256"
    return bad


def _report(
    blobs: Blobs, done: Scrubbed, key: str, reason: str, versions: set[tuple[str, int]], *, writer: str
) -> None:
    """Quarantine, at once: nobody should load it while the rest is read. A version that was deleted since may have lost
    its objects rightly; it is no finding."""
    quarantined, still = [], []
    for model, number in sorted(versions):
        registry = Registry(blobs, model, writer=writer)
        name = f"{model}@{number}"
        if registry.quarantine(number, reason=f"scrub: {key}: {reason}"):
            quarantined.append(name)
        if registry.read(number).document.state is VersionState.QUARANTINED:
            still.append(name)
    if still:
        done.findings.append(Finding(key, reason, tuple(still), tuple(quarantined)))
