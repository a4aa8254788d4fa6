"""The files of one version, brought from storage into a folder of this machine and checked.

Four threads read, each into a buffer of its own; while one checks and writes, the others receive, and a fifth has the
disk take what was written. What a chunk's digest says is there already is not fetched again, so a pull that was
interrupted goes on where it was.

Each chunk is checked, and a file is its chunks in order, so its own digest is not computed again: push computed it
from the same bytes, and `verify` does so from storage.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import queue
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from headpond.errors import ModelFileError
from headpond_workers.checkpoints.manifest import Manifest
from headpond_workers.checkpoints.pulls.chunk_reads import (
    CONNECTIONS,
    ChunkDamaged,
    ChunkRead,
    Piece,
    read_checked,
    reads_by_object,
)
from headpond_workers.checkpoints.pulls.early_sync import EarlySync
from headpond_workers.checkpoints.quarantine import quarantined
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionDocument

Progress = Callable[[str, int, int], None]
"""Told of a stage, the bytes that are done and those that there are, 0 and 0 where nobody knows. Called in the thread
of the caller, about five times a second or more often; what it raises ends the work."""

PULLING = "pulling"
_HEARTBEAT_S = 0.2
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fetch(
    registry: Registry, document: VersionDocument, manifest: Manifest, folder: Path, *, progress: Progress
) -> None:
    """Make `folder` hold the files of a version and nothing else, on the disk when this returns.

    folder: of an earlier fetch of the same files, or empty, or not there; nobody else writes there.
    Raises VersionUnusable for a version that is damaged, which is quarantined then; ModelFileError if the disk
    refuses; StorageUnavailable. What was fetched stays for the next try.
    """
    try:
        begun = _prepare(folder, manifest)
        _Fetch(registry, manifest, folder, check_first=begun).run(progress)
        _sync(folder, manifest)
    except ChunkDamaged as error:
        raise quarantined(registry, document.number, str(error)) from error
    except OSError as error:
        raise disk_error(error, f"pull {registry.model}@{document.number} into", folder) from error


def disk_error(error: OSError, what: str, folder: Path) -> ModelFileError:
    """What the disk refused, in words. what: such as `pull chat@3 into`."""
    if error.errno in _DISK_FULL:
        advice = "Free some space, or choose a folder on another disk."
    else:
        advice = "Give this user the right to write there, or choose another folder."
    return ModelFileError(f"Cannot {what} {folder}: {error.strerror or error}. {advice}")


def sync_folder(folder: Path) -> None:
    """Have the disk remember which names a folder holds."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Fetch:
    """One run. check_first: the folder may hold right chunks already."""

    def __init__(self, registry: Registry, manifest: Manifest, folder: Path, *, check_first: bool) -> None:
        self._blobs, self._manifest, self._folder = registry.blobs, manifest, folder
        self._check_first = check_first
        self._reads = reads_by_object(manifest)
        self._early = EarlySync()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._news: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        """Bytes that are in place; None from each thread that ends."""

    def run(self, progress: Progress) -> None:
        total, done, left = self._manifest.size_bytes, 0, CONNECTIONS
        progress(PULLING, 0, total)
        with self._early, ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="pull") as pool:
            threads = [pool.submit(self._work) for _ in range(CONNECTIONS)]
            try:
                while left:
                    with contextlib.suppress(queue.Empty):
                        news = self._news.get(timeout=_HEARTBEAT_S)
                        done, left = (done, left - 1) if news is None else (done + news, left)
                    progress(PULLING, done, total)
            finally:
                self._stop.set()
        for thread in threads:
            thread.result()

    def _work(self) -> None:
        buffer = memoryview(bytearray(0))
        try:
            while not self._stop.is_set() and (read := self._next()) is not None:
                if len(buffer) < read.size:
                    buffer = memoryview(bytearray(read.size))
                self._bring(read, buffer[: read.size])
                self._news.put(sum(piece.chunk.size for piece in read.pieces))
        except BaseException:
            self._stop.set()
            raise
        finally:
            self._news.put(None)

    def _next(self) -> ChunkRead | None:
        with self._lock:
            return next(self._reads, None)

    def _bring(self, read: ChunkRead, buffer: memoryview) -> None:
        if self._check_first and self._is_there(read, buffer):
            return
        read_checked(self._blobs, self._manifest, read, buffer)
        for index, pieces in _by_file(read):
            with self._open(index, os.O_WRONLY) as descriptor:
                for piece in pieces:
                    _write(descriptor, read.part(buffer, piece), piece.at)
            self._early.wrote(self._path(index), sum(piece.chunk.size for piece in pieces))

    def _is_there(self, read: ChunkRead, buffer: memoryview) -> bool:
        for index, pieces in _by_file(read):
            with self._open(index, os.O_RDONLY) as descriptor:
                for piece in pieces:
                    part = read.part(buffer, piece)
                    if os.preadv(descriptor, [part], piece.at) != len(part):
                        return False
                    if hashlib.sha256(part).digest() != piece.chunk.sha256:
                        return False
        return True

    @contextlib.contextmanager
    def _open(self, index: int, flags: int) -> Iterator[int]:
        descriptor = os.open(self._path(index), flags | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _path(self, index: int) -> Path:
        return self._folder / self._manifest.files[index].path


def _by_file(read: ChunkRead) -> Iterator[tuple[int, list[Piece]]]:
    """Pieces of one file together."""
    run: list[Piece] = []
    for piece in read.pieces:
        if run and run[-1].file != piece.file:
            yield run[-1].file, run
            run = []
        run.append(piece)
    yield run[-1].file, run


def _write(descriptor: int, part: memoryview, at: int) -> None:
    while part:
        written = os.pwrite(descriptor, part, at)
        part, at = part[written:], at + written


def _prepare(folder: Path, manifest: Manifest) -> bool:
    """Make every file at its full size. True if some were there before: their chunks may be right."""
    if not _is_of(folder, manifest):
        shutil.rmtree(folder)
    begun = folder.is_dir() and any(folder.iterdir())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    present = sum(path.lstat().st_blocks * 512 for path in _files_below(folder))
    free = shutil.disk_usage(folder).free
    if free < (needed := manifest.size_bytes - present):
        raise OSError(errno.ENOSPC, f"{free >> 20} MiB are free, {needed >> 20} MiB are needed")
    for file in manifest.files:
        path = folder / file.path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size > file.size:
                os.ftruncate(descriptor, file.size)
            if file.size:
                os.posix_fallocate(descriptor, 0, file.size)
        finally:
            os.close(descriptor)
    return begun


def _is_of(folder: Path, manifest: Manifest) -> bool:
    """Whether nothing is in the folder but regular files of the version, and the folders that they stand in."""
    paths = {file.path for file in manifest.files}
    folders = {path[:at] for path in paths for at in range(len(path)) if path[at] == "/"}
    if not folder.is_dir():
        return not folder.exists()
    for parent, names, files in os.walk(folder):
        for name in [*names, *files]:
            path = Path(parent, name)
            mode, inside = path.lstat().st_mode, str(path.relative_to(folder))
            fits = inside in folders if stat.S_ISDIR(mode) else stat.S_ISREG(mode) and inside in paths
            if not fits:
                return False
    return True


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, _, files in os.walk(folder):
        yield from (Path(parent, name) for name in files)


def _sync(folder: Path, manifest: Manifest) -> None:
    """Files first, then the folders that name them, innermost first."""
    for file in manifest.files:
        descriptor = os.open(folder / file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for parent, _, _ in os.walk(folder, topdown=False):
        sync_folder(Path(parent))
