"""One model's spool on this host's disk: batches of its journal that wait for storage to come back.

    <state folder>/spool/<model>/    0700
      id                             names this spool, in the queue's meta too; random, made once
      lock                           held by the one process that is at work with it
      frames                         the batches, oldest first (spool_frames.py); there only while something waits

What is appended is synced before the call returns, and only then may it leave Redis.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from headpond.errors import BlobCorrupt, MalformedDocument, SpoolBusy, UnsupportedSchema
from headpond.jobs import check_model_name
from headpond_workers.persistence.journal_id import JOURNAL_START, JournalId
from headpond_workers.persistence.spool_document import SpoolDocument
from headpond_workers.persistence.spool_frames import read_frame

logger = logging.getLogger(__name__)

FRAMES_FILE = "frames"
ID_FILE = "id"
LOCK_FILE = "lock"


class Spool:
    """The spool of one model. For one thread; whatever reads or changes it does so while it is `locked`."""

    def __init__(self, root: Path, model: str) -> None:
        """root: of the spools of all models of this host. Touches nothing."""
        self.model = check_model_name(model)
        self.folder = root / model
        self.path = self.folder / FRAMES_FILE
        self.id = ""
        self.last = JOURNAL_START
        """The last journal entry that it holds."""
        self.size_bytes = 0
        """Of what is whole."""
        self._file = 0

    @contextmanager
    def locked(self, *, whole: bool = True) -> Iterator[None]:
        """Have it alone, among the processes of this host; made if there is none. What others did is seen. whole: read
        what it holds; not where it is only to be removed, however damaged it is.

        Raises SpoolBusy, BlobCorrupt, OSError.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SpoolBusy(self.model, path=str(self.folder)) from None
            self.id = self.id or _id_of(self.folder)
            if whole:
                self._look_again()
            yield
        finally:
            os.close(descriptor)

    def identity(self) -> str:
        """Its id; empty if this host has no such spool. Raises OSError."""
        try:
            return (self.folder / ID_FILE).read_text(encoding="ascii")
        except FileNotFoundError:
            return ""

    @property
    def has_frames(self) -> bool:
        """Whether something waits. Touches nothing, and needs no lock."""
        return self.path.exists()

    def documents(self, *, start: int = 0) -> Iterator[SpoolDocument]:
        """What is whole, oldest first, one in memory at a time. A torn end is not there.

        start: byte at which a frame begins. Raises BlobCorrupt if a frame is whole and holds no document of ours.
        """
        whole = start
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                while (body := read_frame(file)) is not None:
                    try:
                        document = SpoolDocument.unpack(body)
                    except UnsupportedSchema:
                        raise
                    except MalformedDocument as error:
                        raise BlobCorrupt(str(self.path), f"at byte {whole}: {error.reason}") from error
                    whole = file.tell()
                    yield document
        except FileNotFoundError:
            pass
        self.size_bytes = whole

    def _look_again(self) -> None:
        """Another process may have appended, or put all of it into storage, since this one looked."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            self.size_bytes, self.last, self._file = 0, JOURNAL_START, 0
            return
        if found.st_ino != self._file or found.st_size < self.size_bytes:
            self.size_bytes, self.last, self._file = 0, JOURNAL_START, found.st_ino
        if found.st_size != self.size_bytes:
            for document in self.documents(start=self.size_bytes):
                self.last = document.batch.last or self.last

    def append(self, frames: Sequence[bytes], *, last: JournalId) -> None:
        """Have frames on the disk. last: the last entry that the spool holds then.

        Raises OSError, and nothing was appended.
        """
        new = not self.path.exists()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            # Behind a torn end nothing would be found.
            os.ftruncate(descriptor, self.size_bytes)
            os.lseek(descriptor, self.size_bytes, os.SEEK_SET)
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.writelines(frames)
                file.flush()
                end = file.tell()
            os.fdatasync(descriptor)
            self._file = os.fstat(descriptor).st_ino
        except OSError:
            os.ftruncate(descriptor, self.size_bytes)
            raise
        finally:
            os.close(descriptor)
        if new:
            _sync_names(self.folder)
        self.size_bytes, self.last = end, last

    def clear(self) -> None:
        """All of it is in storage, or given up. Raises OSError."""
        self.path.unlink(missing_ok=True)
        _sync_names(self.folder)
        self.size_bytes, self.last = 0, JOURNAL_START

    def set_aside(self) -> Path:
        """Keep the frames for an operator, out of the way of what comes. Raises OSError."""
        aside = self.folder / f"superseded-{time.time_ns() // 1_000_000}"
        self.path.rename(aside)
        _sync_names(self.folder)
        self.size_bytes, self.last = 0, JOURNAL_START
        return aside


def total_bytes(root: Path) -> int:
    """Of the spools of all models."""
    return sum(_size(path) for path in root.glob(f"*/{FRAMES_FILE}")) if root.is_dir() else 0


def _id_of(folder: Path) -> str:
    path = folder / ID_FILE
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        pass
    made = secrets.token_hex(16)
    temporary = path.with_suffix(".new")
    with open(temporary, "w", encoding="ascii", opener=_private) as file:
        file.write(made)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    _sync_names(folder)
    return made


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sync_names(folder: Path) -> None:
    """Which files there are: a new one's name is data of its folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
