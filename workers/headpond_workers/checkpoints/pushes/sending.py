"""New objects of a push: read from their files and put, a few at once, and no more of them in memory than that."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from enum import Enum, auto
from itertools import groupby

from headpond.errors import BlobCorrupt, BlobMismatch, BlobMissing, ModelFileError
from headpond_workers.checkpoints.pushes.known_files import OnBytes
from headpond_workers.checkpoints.pushes.push_plan import NamedObject, NewObject, Piece
from headpond_workers.checkpoints.pushes.source_files import changed, opened
from headpond_workers.engines.formats.model_files import unreadable
from headpond_workers.storage.blobs import Blobs

PARALLEL_PUTS = 4
HASHERS = 2
LOOKS = 8
"""So many new objects in a row, and the next ones are new too, most likely."""


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes that were put, and bytes of objects that were there before. damaged: keys of objects that do not hold what
    their names say, so that the content needs other keys."""

    put_bytes: int
    found_bytes: int
    damaged: frozenset[str]


class _Outcome(Enum):
    PUT = auto()
    FOUND = auto()
    DAMAGED = auto()


def digests_of(objects: Sequence[NewObject]) -> list[str]:
    """SHA-256 of each object, 64 hex digits. That of a single chunk is known; packs are read, and their chunks
    compared with those of the scan.

    Raises ModelFileError if a file changed.
    """
    with ThreadPoolExecutor(HASHERS, "hash-packs") as pool:
        return list(pool.map(_digest_of, objects))


def send(blobs: Blobs, objects: Collection[NamedObject], *, doubtful: Collection[str], on_bytes: OnBytes) -> Sent:
    """Put every object that is not there, PARALLEL_PUTS at once.

    doubtful: keys of objects that are read and checked if they are there. Raises ModelFileError if a file changed.
    """
    sender = _Sender(blobs, doubtful)
    totals = dict.fromkeys(_Outcome, 0)
    damaged = set()
    pool = ThreadPoolExecutor(PARALLEL_PUTS, "put")
    try:
        started = {pool.submit(sender.send, each): each for each in objects}
        for future in as_completed(started):
            each, outcome = started[future], future.result()
            totals[outcome] += each.size
            on_bytes(each.size)
            if outcome is _Outcome.DAMAGED:
                damaged.add(each.key)
    finally:
        pool.shutdown(cancel_futures=True)
    return Sent(totals[_Outcome.PUT], totals[_Outcome.FOUND], frozenset(damaged))


class _Looks:
    """Whether an object is asked for before it is put. What storage has without a version that says so are runs: what
    an interrupted push sent first, or a part of another model. After LOOKS objects that were not there, the puts alone
    tell, which change nothing where something is; the first of a run may so be sent in vain."""

    def __init__(self) -> None:
        self._absent, self._lock = 0, threading.Lock()

    def worth_it(self) -> bool:
        with self._lock:
            return self._absent < LOOKS

    def add(self, outcome: _Outcome) -> None:
        with self._lock:
            self._absent = self._absent + 1 if outcome is _Outcome.PUT else 0


class _Sender:
    def __init__(self, blobs: Blobs, doubtful: Collection[str]) -> None:
        self._blobs, self._doubtful = blobs, doubtful
        self._reading, self._looks = threading.Lock(), _Looks()

    def send(self, new: NamedObject) -> _Outcome:
        found = self._look(new)
        if found is not None:
            self._looks.add(found)
            return found
        with self._reading:  # one at a time: a pack stands in memory twice while it is put together
            body = _read(new.content)
        try:
            stored = self._blobs.put_once(new.key, body, sha256=bytes.fromhex(new.sha256))
        except BlobMismatch as error:
            raise _culprit(new.content, body) from error
        except BlobCorrupt:
            return _Outcome.DAMAGED
        outcome = _Outcome.PUT if stored else _Outcome.FOUND
        self._looks.add(outcome)
        return outcome

    def _look(self, new: NamedObject) -> _Outcome | None:
        """What is at the key; None for nothing, or if only the put shall tell."""
        if new.key not in self._doubtful and not self._looks.worth_it():
            return None
        size = self._blobs.size_of(new.key)
        if size is None:
            return None
        if size != new.size:
            return _Outcome.DAMAGED
        if new.key not in self._doubtful:
            return _Outcome.FOUND
        try:
            body = self._blobs.get(new.key, max_bytes=new.size).body
        except BlobMissing:
            return None
        except BlobCorrupt:
            return _Outcome.DAMAGED
        return _Outcome.FOUND if hashlib.sha256(body).hexdigest() == new.sha256 else _Outcome.DAMAGED


def _digest_of(new: NewObject) -> str:
    if len(new.pieces) == 1:
        return new.pieces[0].sha256.hex()
    whole = hashlib.sha256()
    for piece, content in _pieces(new):
        # Between the scan and this, a byte may have changed without a new time stamp: the pack would have a digest that
        # fits its bytes, and a chunk that no reader accepts.
        if hashlib.sha256(content).digest() != piece.sha256:
            raise changed(piece.file.at)
        whole.update(content)
    return whole.hexdigest()


def _read(new: NewObject) -> bytes:
    """The bytes of an object, from its files."""
    parts = [content for _, content in _pieces(new)]
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _pieces(new: NewObject) -> Iterator[tuple[Piece, bytes]]:
    """Each piece of an object with its bytes, in order."""
    for file, pieces in groupby(new.pieces, key=lambda piece: piece.file):
        with opened(file) as descriptor:
            for piece in pieces:
                yield piece, _read_piece(descriptor, piece)


def _read_piece(descriptor: int, piece: Piece) -> bytes:
    try:
        content = os.pread(descriptor, piece.size, piece.offset)
        while len(content) < piece.size:
            more = os.pread(descriptor, piece.size - len(content), piece.offset + len(content))
            if not more:
                raise changed(piece.file.at)
            content += more
    except OSError as error:
        raise unreadable(piece.file.at, error) from error
    return content


def _culprit(new: NewObject, body: bytes) -> ModelFileError:
    """The error that names the file whose bytes are not those that were hashed."""
    at = 0
    for piece in new.pieces:
        if hashlib.sha256(memoryview(body)[at : at + piece.size]).digest() != piece.sha256:
            return changed(piece.file.at)
        at += piece.size
    return changed(new.pieces[0].file.at)
